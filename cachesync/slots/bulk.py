"""Sends many commands to a Redis in one round trip, over a redis-py connection.

redis-py's own pipeline spends about ten times as long on each command and reply as Redis does.
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
# The timeout of a socket is that for everything that one call sends.
_SEND_BYTES: Final = 1 << 16


class Bulk:
    """One connection to a Redis, used as a context manager and by one thread at a time.

    Args:
        client: the client from whose pool the connection is taken.
        name: the name of the Redis in error messages.
        seconds: the timeout for a reply; None for that of the client.

    Raises:
        CacheUnavailableError: Redis did not accept the connection.
    """

    def __init__(self, client: Redis, name: str, seconds: float | None = _TIMEOUT_SECONDS) -> None:
        self._name = name
        self._seconds = seconds
        self._is_reusable = seconds is None
        self._pool = client.connection_pool
        with translate_redis_errors(name):
            self._connection = self._pool.get_connection()
        self._reader = hiredis.Reader(replyError=self._refused)
        self._moved = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._is_reusable:
            self._connection.disconnect()
        self._pool.release(self._connection)

    def call(self, commands: Sequence[Command]) -> list[Any]:
        """Send commands and return the reply to each; a `hiredis.ReplyError` for a rejected command.

        Raises:
            CacheUnavailableError: Redis did not respond, or a key has moved to another node of its cluster.
        """
        return self.send(self.pack(commands), len(commands))

    @staticmethod
    def pack(commands: Iterable[Command]) -> bytes:
        """Return commands in Redis's wire format."""
        # hiredis's stub allows only commands of one part.
        return b"".join(map(hiredis.pack_command, commands))  # type: ignore[arg-type]

    def send(self, packed: bytes, count: int) -> list[Any]:
        """Send packed commands and return the reply to each, as `call` does.

        Args:
            packed: the commands, as returned by `pack`.
            count: the number of commands.

        Raises:
            CacheUnavailableError: as for `call`.
        """
        connected = socket_of(self._connection)
        reader = self._reader
        replies: list[Any] = []
        # Until the end, there are replies that nobody has read.
        is_reusable, self._is_reusable = self._is_reusable, False
        with translate_redis_errors(self._name):
            if self._seconds is not None:
                connected.settimeout(self._seconds)
            rest = memoryview(packed)
            while rest:
                connected.sendall(rest[:_SEND_BYTES])
                rest = rest[_SEND_BYTES:]
            while len(replies) < count:
                reply = reader.gets()
                if isinstance(reply, hiredis.PushNotification):
                    continue
                if reply is not False:
                    replies.append(reply)
                elif received := connected.recv(_READ_BYTES):
                    reader.feed(received)
                else:
                    message = f"{self._name} closed the connection"
                    raise CacheUnavailableError(message)
        self._is_reusable = is_reusable
        if self._moved:
            message = (
                f"keys are moving between {self._name} and other nodes of its cluster; "
                "retry when that has finished"
            )
            raise CacheUnavailableError(message)
        return replies

    def _refused(self, reason: str) -> hiredis.ReplyError:
        if reason.startswith(("MOVED ", "ASK ")):
            self._moved = True
        return hiredis.ReplyError(reason)
