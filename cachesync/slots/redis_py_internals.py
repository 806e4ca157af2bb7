"""Access to redis-py internals, limited to the versions that were tested."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from redis._parsers.hiredis import NOT_ENOUGH_DATA as _NOT_ENOUGH_DATA

from cachesync.tested_packages import require_tested

if TYPE_CHECKING:
    import asyncio
    from socket import socket

    import hiredis
    from redis.asyncio import Connection as AsyncConnection
    from redis.connection import AbstractConnection

TESTED: Final = ">=8.1,<8.2"

require_tested("redis", TESTED)

NOT_ENOUGH_DATA: Final = _NOT_ENOUGH_DATA
"""What a reader of redis-py returns as long as it has no whole reply."""


def socket_of(connection: AbstractConnection) -> socket:
    """Return the socket of a connection, which redis-py does not expose."""
    connected: Any = connection._sock  # noqa: SLF001 - guarded by TESTED
    return connected  # type: ignore[no-any-return]


def take_over(connection: AsyncConnection) -> tuple[asyncio.StreamWriter, hiredis.Reader]:
    """Take the stream, and the reader of replies, from a connection that redis-py has established.

    The connection no longer knows them. What has arrived since the last reply is in the reader, whose errors
    are the exceptions of redis-py. The stream closes its transport when it is deleted.
    """
    connected: Any = connection
    writer = connected._writer  # noqa: SLF001 - guarded by TESTED, as are those below
    reader = connected._parser._reader  # noqa: SLF001
    reader.feed(bytes(connected._reader._buffer))  # noqa: SLF001
    connected._reader = connected._writer = None  # noqa: SLF001
    return writer, reader
