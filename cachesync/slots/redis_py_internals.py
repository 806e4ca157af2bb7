"""What this library uses of redis-py's internals, with the versions that it was tested with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cachesync.versions import require_tested

if TYPE_CHECKING:
    from socket import socket

    from redis.connection import AbstractConnection

TESTED: Final = ">=8.1,<8.2"

require_tested("redis", TESTED)


def socket_of(connection: AbstractConnection) -> socket:
    """Return the socket of a connection, for which redis-py has no public name."""
    connected: Any = connection._sock  # noqa: SLF001 - see the module
    return connected  # type: ignore[no-any-return]
