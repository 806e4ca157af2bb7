"""A Redis Cluster of three primaries, each a process of its own."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final, Self

import redis
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from local.ports import HOST, free_port, take_port
from local.process import start_all, stop_all
from local.redis import Redis

if TYPE_CHECKING:
    from pathlib import Path

_NODES: Final = 3
# A node's bus has its port and so many; that port, too, should be none of those that the kernel gives away.
_BUS: Final = 10_000
_KERNELS: Final = 32_768


class Node(Redis):
    """A node, at first alone and without a key."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name=name, port=_free_port())

    def take_another_port(self) -> None:
        """To be found there when it starts the next time."""
        self.port = _free_port()
        self.ports = {self.name: self.port}

    def command(self) -> list[str]:
        options = {
            "cluster-enabled": "yes",
            "cluster-config-file": f"{self.name}.conf",
            "cluster-node-timeout": "1000",
            # One that is away takes no other's keys with it.
            "cluster-require-full-coverage": "no",
        }
        return [
            *super().command(),
            *(item for name, value in options.items() for item in (f"--{name}", value)),
        ]

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)


class RedisCluster:
    """The nodes; the hash slots are shared out evenly."""

    def __init__(self, folder: Path) -> None:
        self.nodes = [Node(folder, f"node-{number}") for number in range(_NODES)]

    @property
    def url(self) -> str:
        return f"redis+cluster://{HOST}:{self.nodes[0].port}"

    def node_of(self, name: str) -> Node:
        return self.nodes[key_slot(name.encode()) * _NODES // REDIS_CLUSTER_HASH_SLOTS]

    def move(self, name: str, target: Node) -> None:
        """Give an empty key's hash slot to another primary."""
        with target.client() as client:
            number = client.execute_command("CLUSTER MYID")
        for node in (target, *self.nodes):
            with node.client() as client:
                client.execute_command("CLUSTER SETSLOT", key_slot(name.encode()), "NODE", number)

    def __enter__(self) -> Self:
        start_all(self.nodes)
        starts = [-(-number * REDIS_CLUSTER_HASH_SLOTS // _NODES) for number in range(_NODES + 1)]
        for number, node in enumerate(self.nodes):
            with node.client() as client:
                client.execute_command("CLUSTER ADDSLOTS", *range(starts[number], starts[number + 1]))
                client.execute_command("CLUSTER SET-CONFIG-EPOCH", number + 1)
        with self.nodes[0].client() as client:
            for node in self.nodes[1:]:
                client.execute_command("CLUSTER MEET", HOST, node.port)
        self.wait_until_whole()
        return self

    def wait_until_whole(self) -> None:
        """Each node knows of all others, and that they answer."""
        deadline = time.monotonic() + 30
        while not all(self._is_whole(node) for node in self.nodes):
            assert time.monotonic() < deadline, "the cluster does not come together"
            time.sleep(0.05)

    @staticmethod
    def _is_whole(node: Node) -> bool:
        with node.client() as client:
            info = client.execute_command("CLUSTER INFO")
        whole = {"cluster_state": "ok", "cluster_slots_ok": str(REDIS_CLUSTER_HASH_SLOTS)}
        return bool(info.items() >= whole.items())

    def __exit__(self, *_: object) -> None:
        stop_all(self.nodes)


def _free_port() -> int:
    while (bus := (port := free_port()) + _BUS) >= _KERNELS or not take_port(bus):
        pass
    return port
