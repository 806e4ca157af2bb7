"""A Redis Cluster of three primaries, each in its own process."""

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
# A node's cluster bus uses the node's port plus this offset. Neither port may be one that the kernel assigns
# to other sockets.
_BUS: Final = 10_000
_KERNELS: Final = 32_768


class Node(Redis):
    """A cluster node. It starts alone, without hash slots."""

    def __init__(self, folder: Path, name: str) -> None:
        super().__init__(folder, name=name, port=_free_port())

    def take_another_port(self) -> None:
        """Use another port from the next start on."""
        self.port = _free_port()
        self.ports = {self.name: self.port}

    def command(self) -> list[str]:
        options = {
            "cluster-enabled": "yes",
            "cluster-config-file": f"{self.name}.conf",
            "cluster-node-timeout": "1000",
            # A node that is down does not take the keys of the others with it.
            "cluster-require-full-coverage": "no",
        }
        return [
            *super().command(),
            *(item for name, value in options.items() for item in (f"--{name}", value)),
        ]

    def client(self) -> redis.Redis:
        return redis.Redis.from_url(self.url)


class RedisCluster:
    """The nodes, with the hash slots distributed evenly."""

    def __init__(self, folder: Path) -> None:
        self.nodes = [Node(folder, f"node-{number}") for number in range(_NODES)]

    @property
    def url(self) -> str:
        return f"redis+cluster://{HOST}:{self.nodes[0].port}"

    def node_of(self, name: str) -> Node:
        return self.nodes[key_slot(name.encode()) * _NODES // REDIS_CLUSTER_HASH_SLOTS]

    def move(self, name: str, target: Node) -> None:
        """Move the hash slot of a key that does not exist to another primary."""
        with target.client() as client:
            number = client.execute_command("CLUSTER MYID")
            # So that the target does not believe what the former owner still says.
            client.execute_command("CLUSTER BUMPEPOCH")
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
        """Wait until each node knows all others and sees them respond."""
        deadline = time.monotonic() + 30
        while not all(self._is_whole(node) for node in self.nodes):
            assert time.monotonic() < deadline, "the nodes did not form a cluster"
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
