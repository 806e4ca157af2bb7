"""Serves the metrics of a process that is no service, such as one with streams or a relay."""

from __future__ import annotations

import threading
from typing import Final

import structlog
from prometheus_client import start_http_server

from cachesync.errors import SettingsError
from cachesync.metrics import process

_log = structlog.get_logger(__name__)

_lock: Final = threading.Lock()
_served: Final[set[tuple[str, int]]] = set()


def serve(address: str, port: int) -> None:
    """Serve the metrics of this process from now on, at every path; once, however often it is called.

    Args:
        address: the address to listen on.
        port: the port to listen on.

    Raises:
        SettingsError: the port is in use, or the address is not one of this machine.
    """
    with _lock:
        if (address, port) in _served:
            return
        process.begin()
        try:
            start_http_server(port, address)
        except OSError as error:
            message = f"cannot serve metrics on {address}:{port}: {error.strerror or error}"
            raise SettingsError(message) from error
        _served.add((address, port))


def serve_if_possible(address: str, port: int) -> None:
    """Serve the metrics of this process as `serve` does; if that fails, log why and go on.

    A second triggerer on the same machine is one such case. It tries again with its next work.
    """
    try:
        serve(address, port)
    except SettingsError as error:
        _log.warning("metrics are not served", error=str(error))
