"""Allocation of free TCP ports."""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import tempfile
import threading
from pathlib import Path
from typing import TYPE_CHECKING

from local.errors import PortTakenError

if TYPE_CHECKING:
    from collections.abc import Mapping

HOST = "127.0.0.1"
_FIRST = 20_000
_LAST = 32_000


class _Given:
    """Ports allocated to this user's processes, each until its process ends."""

    def __init__(self) -> None:
        self._ports: set[int] = set()
        self._lock = threading.Lock()
        self._file: int | None = None

    def take(self, port: int) -> bool:
        """Allocate the port; return False if it is already allocated."""
        with self._lock:
            if port in self._ports:
                return False
            if self._file is None:
                path = Path(tempfile.gettempdir()) / f"db-cache-sync-{os.getuid()}-ports"
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                # Each port is one byte of the file, which stays empty.
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            except OSError:
                return False
            self._ports.add(port)
            return True


_given = _Given()


def free_port() -> int:
    """Return an unused port that has not been allocated to any process that is still running.

    It stays reserved for the caller, since a server can take seconds to start listening on it.
    """
    # Not from the range that the kernel assigns to outgoing connections: while a server is down, an outgoing
    # connection could take its port, even one from a client that is trying to reach that server.
    while not take_port(port := _FIRST + secrets.randbelow(_LAST - _FIRST)):
        pass
    return port


def take_port(port: int) -> bool:
    """Allocate this port; return False if something listens on it or it is already allocated."""
    return _is_free(port) and _given.take(port)


def accepts(port: int) -> bool:
    """Return whether something listens on the port."""
    with socket.socket() as client:
        client.settimeout(1)
        return client.connect_ex((HOST, port)) == 0


def require_free(ports: Mapping[str, int]) -> None:
    """Check that all of these ports are free.

    Args:
        ports: the ports, by the name of the setting for each.

    Raises:
        PortTakenError: some are in use; the message lists all of them.
    """
    taken = {name: port for name, port in ports.items() if not _is_free(port)}
    if taken:
        raise PortTakenError(taken)


def _is_free(port: int) -> bool:
    # macOS lets a second listener bind to an address on which another one listens on all addresses.
    if accepts(port):
        return False
    with socket.socket() as listener:
        # A connection that the last run closed (TIME_WAIT) is not a listener.
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((HOST, port))
        except OSError:
            return False
    return True
