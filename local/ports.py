"""Which ports are free."""

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
    """The ports that processes of this user have been given, each until its process ends."""

    def __init__(self) -> None:
        self._ports: set[int] = set()
        self._lock = threading.Lock()
        self._file: int | None = None

    def take(self, port: int) -> bool:
        """Whether nobody had the port; it is ours then."""
        with self._lock:
            if port in self._ports:
                return False
            if self._file is None:
                path = Path(tempfile.gettempdir()) / f"db-cache-sync-{os.getuid()}-ports"
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
            try:
                # One byte of the file, which stays empty, is one port.
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
            except OSError:
                return False
            self._ports.add(port)
            return True


_given = _Given()


def free_port() -> int:
    """A port on which nothing listens, and that no other call has returned, in any process that still runs.

    It stays free for whoever asked while what is to listen on it is made ready, which takes seconds.
    """
    # Not one of those that the kernel gives to outgoing connections: while a part is down, one of them could
    # get its port, even a client that tries to reach that very part.
    while not take_port(port := _FIRST + secrets.randbelow(_LAST - _FIRST)):
        pass
    return port


def take_port(port: int) -> bool:
    """Whether nothing listens on this port and nobody was given it; it is ours then."""
    return _is_free(port) and _given.take(port)


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
