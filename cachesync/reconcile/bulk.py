"""Many commands to a Redis at a time, over a connection of redis-py.

A pipeline of redis-py spends some ten times as long on each command and answer as Redis does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

import hiredis

from cachesync.errors import CacheUnavailableError
from cachesync.slots.clients import translate_redis_errors
from cachesync.slots.redis_py_internals import socket_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from redis import Redis

    from cachesync.slots.scripts import Command

_TIMEOUT_SECONDS: Final = 10.0
_READ_BYTES: Final = 1 << 18


class Bulk:
    """One connection, of one thread at a time.

    Args:
        client: the Redis.
        name: what messages call it.

    Raises:
        CacheUnavailableError: Redis does not let us in.
    """

    def __init__(self, client: Redis, name: str) -> None:
        self._name = name
        self._pool = client.connection_pool
        with translate_redis_errors(name):
            self._connection = self._pool.get_connection()
        self._reader = hiredis.Reader(replyError=self._refused)
        self._moved = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Answers may be left in it.
        self._connection.disconnect()
        self._pool.release(self._connection)

    def call(self, commands: Sequence[Command]) -> list[Any]:
        """The answers, one to each command; a hiredis.ReplyError where that one was refused.

        Raises:
            CacheUnavailableError: Redis does not answer, or another node of its cluster has a key.
        """
        return self.send(self.pack(commands), len(commands))

    @staticmethod
    def pack(commands: Iterable[Command]) -> bytes:
        """Commands as they go over the connection."""
        # Its stub knows commands of one part only.
        return b"".join(map(hiredis.pack_command, commands))  # type: ignore[arg-type]

    def send(self, packed: bytes, count: int) -> list[Any]:
        """The answers to so many commands that the caller has packed; like `call`."""
        connected = socket_of(self._connection)
        reader = self._reader
        answers: list[Any] = []
        with translate_redis_errors(self._name):
            connected.settimeout(_TIMEOUT_SECONDS)
            connected.sendall(packed)
            while len(answers) < count:
                answer = reader.gets()
                if answer is not False:
                    answers.append(answer)
                elif received := connected.recv(_READ_BYTES):
                    reader.feed(received)
                else:
                    message = f"{self._name} closed the connection"
                    raise CacheUnavailableError(message)
        if self._moved:
            message = (
                f"keys move between {self._name} and other nodes of its cluster; go on when that is done"
            )
            raise CacheUnavailableError(message)
        return answers

    def _refused(self, reason: str) -> hiredis.ReplyError:
        if reason.startswith(("MOVED ", "ASK ")):
            self._moved = True
        return hiredis.ReplyError(reason)
