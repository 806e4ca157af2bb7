"""Access to redis-py internals, limited to the versions that were tested."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from cachesync.tested_packages import require_tested

if TYPE_CHECKING:
    from socket import socket

    from redis.connection import AbstractConnection

TESTED: Final = ">=8.1,<8.2"

require_tested("redis", TESTED)


def socket_of(connection: AbstractConnection) -> socket:
    """Return the socket of a connection, which redis-py does not expose."""
    connected: Any = connection._sock  # noqa: SLF001 - guarded by TESTED
    return connected  # type: ignore[no-any-return]
