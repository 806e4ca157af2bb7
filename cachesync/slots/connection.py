"""A connection to a Redis that carries one round trip at a time, without a task for it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Self

from hiredis import PushNotification
from redis.exceptions import ConnectionError, TimeoutError  # noqa: A004 - redis-py's own

from cachesync.slots.redis_py_internals import NOT_ENOUGH_DATA, take_over

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import ConnectionPool

    Finished = Callable[[list[Any] | Exception], None]


class Connection(asyncio.Protocol):
    """A connection that redis-py has established, logged in and encrypted, and that then works without it.

    For the few commands of a hit, redis-py's pipeline and the tasks around it cost several times as much as
    the event loop and the system calls.

    Args:
        stream: the stream of a connection of redis-py.
        reader: its reader of replies.
        seconds: the timeout for the replies of a round trip.

    Attributes:
        is_open: whether a round trip can begin; False once the connection has been lost.
    """

    def __init__(self, stream: asyncio.StreamWriter, reader: Any, seconds: float) -> None:
        self.is_open = True
        self._stream = stream
        self._transport = stream.transport
        self._reader = reader
        self._seconds = seconds
        self._loop = asyncio.get_running_loop()
        self._finished: Finished | None = None
        self._awaited = 0
        self._replies: list[Any] = []
        self._deadline = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._transport.set_protocol(self)

    @classmethod
    async def open(cls, pool: ConnectionPool) -> Self:
        """Connect as a connection of redis-py's pool would.

        Raises:
            RedisError: the Redis did not respond, or rejected the login.
        """
        connection = pool.make_connection()
        await connection.connect()
        return cls(*take_over(connection), connection.socket_timeout)

    def round_trip(self, commands: bytes, replies: int, finished: Finished) -> None:
        """Send commands. There must be no other round trip in progress.

        Args:
            commands: the packed commands.
            replies: the number of replies to them.
            finished: called once with the replies, or with the reason for which there are none. The
                connection is then lost.
        """
        # First, because it can fail.
        self._transport.write(commands)
        self._finished = finished
        self._awaited = replies
        self._deadline = time.monotonic() + self._seconds
        if self._timer is None:
            # One timer for as long as there are round trips: setting one for each would cost more.
            self._timer = self._loop.call_later(self._seconds, self._check_deadline)

    def close(self) -> None:
        """Disconnect; there must be no round trip in progress."""
        self.is_open = False
        if self._timer is not None:
            self._timer.cancel()
        self._transport.close()

    def data_received(self, data: bytes) -> None:
        """Collect replies, and finish the round trip with the last one."""
        self._reader.feed(data)
        try:
            while (reply := self._reader.gets()) is not NOT_ENOUGH_DATA:
                if isinstance(reply, PushNotification):
                    continue
                # For example that it is loading its data, or has too many clients.
                if isinstance(reply, ConnectionError):
                    self._lose(reply)
                    return
                self._replies.append(reply)
        except Exception as error:  # noqa: BLE001 - whatever arrived, it is not a reply
            self._lose(error)
            return
        if len(self._replies) == self._awaited:
            replies, self._replies = self._replies, []
            finished, self._finished, self._awaited = self._finished, None, 0
            if finished is not None:
                finished(replies)
        elif len(self._replies) > self._awaited:
            self._lose(ConnectionError("Redis sent more replies than were awaited"))

    def connection_lost(self, exc: Exception | None) -> None:
        """End the round trip in progress."""
        self._lose(exc or ConnectionError("Redis closed the connection"))

    def _check_deadline(self) -> None:
        self._timer = None
        if self._finished is None:
            return
        left = self._deadline - time.monotonic()
        if left > 0:
            self._timer = self._loop.call_later(left, self._check_deadline)
        else:
            self._lose(TimeoutError("timeout waiting for Redis"))

    def _lose(self, error: Exception) -> None:
        """Disconnect: a late reply must not be taken for that to another command."""
        self.is_open = False
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._transport.abort()
        finished, self._finished = self._finished, None
        if finished is not None:
            finished(error)
