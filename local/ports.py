"""Which ports are free."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING

from local.errors import PortTakenError

if TYPE_CHECKING:
    from collections.abc import Mapping

HOST = "127.0.0.1"


def free_port() -> int:
    """A port on which nothing listens at the moment."""
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
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
