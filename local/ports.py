"""Which ports are free."""

from __future__ import annotations

import secrets
import socket
from typing import TYPE_CHECKING

from local.errors import PortTakenError

if TYPE_CHECKING:
    from collections.abc import Mapping

HOST = "127.0.0.1"
_FIRST = 20_000
_LAST = 32_000


def free_port() -> int:
    """A port on which nothing listens at the moment."""
    # Not one of those that the kernel gives to outgoing connections: while a part is down, one of them could
    # get its port, even a client that tries to reach that very part.
    while not _is_free(port := _FIRST + secrets.randbelow(_LAST - _FIRST)):
        pass
    return port


def accepts(port: int) -> bool:
    """Whether something listens on the port."""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((HOST, port)) == 0


def require_free(ports: Mapping[str, int]) -> None:
    """Raise an error that names every one of these ports that cannot be listened on."""
    taken = {name: port for name, port in ports.items() if not _is_free(port)}
    if taken:
        raise PortTakenError(taken)


def _is_free(port: int) -> bool:
    # macOS lets a second listener bind to the address where another one listens on all addresses.
    if accepts(port):
        return False
    with socket.socket() as listener:
        # A connection that the last run closed (TIME_WAIT) is no listener.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
    return True
