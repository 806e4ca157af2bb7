"""Many commands to a Redis at a time, over a connection of redis-py.

A pipeline of redis-py spends some ten times as long on each command and answer as Redis does.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Self

import hiredis
from redis.exceptions import RedisError

from cachesync.errors import CacheSyncError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from redis import Redis

_TIMEOUT_SECONDS: Final = 10.0
_READ_BYTES: Final = 1 << 18


class RedisUnavailableError(CacheSyncError):
    """A Redis does not answer, or refuses; nothing is wrong with what it was asked."""


class Bulk:
    """One connection, of one thread at a time.

    Args:
        client: the Redis.
        name: what messages call it.

    Raises:
        RedisUnavailableError: Redis does not let us in.
    """

    def __init__(self, client: Redis, name: str) -> None:
        self._name = name
        self._pool = client.connection_pool
        try:
            self._connection = self._pool.get_connection()
        except RedisError as error:
            message = f"{name} does not answer: {error}"
            raise RedisUnavailableError(message) from error
        self._reader = hiredis.Reader(replyError=self._refused)
        self._moved = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # Answers may be left in it.
        self._connection.disconnect()
        self._pool.release(self._connection)

    def call(self, commands: Iterable[tuple[bytes, ...]]) -> list[Any]:
        """The answers, one to each command; a hiredis.ReplyError where that one was refused.

        Raises:
            RedisUnavailableError: Redis does not answer, or another node of its cluster has a key.
        """
        listed = list(commands)
        return self.send(self.pack(listed), len(listed))

    @staticmethod
    def pack(commands: Iterable[tuple[bytes, ...]]) -> bytes:
        """Commands as they go over the connection."""
        # Its stub knows commands of one part only.
        return b"".join(map(hiredis.pack_command, commands))  # type: ignore[arg-type]

    def send(self, packed: bytes, count: int) -> list[Any]:
        """The answers to so many commands that the caller has packed; like `call`."""
        connected: Any = self._connection._sock  # noqa: SLF001 - redis-py offers no other way
        reader = self._reader
        answers: list[Any] = []
        try:
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
                    raise RedisUnavailableError(message)
        except OSError as error:
            message = f"{self._name} does not answer: {error or type(error).__name__}"
            raise RedisUnavailableError(message) from error
        if self._moved:
            message = (
                f"keys move between {self._name} and other nodes of its cluster; go on when that is done"
            )
            raise RedisUnavailableError(message)
        return answers

    def _refused(self, reason: str) -> hiredis.ReplyError:
        if reason.startswith(("MOVED ", "ASK ")):
            self._moved = True
        return hiredis.ReplyError(reason)
