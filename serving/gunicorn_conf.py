"""gunicorn's settings for both services: `gunicorn --config python:serving.gunicorn_conf serving.sa:app`."""

from __future__ import annotations

import atexit
import ctypes
import os
import shutil
import sys
import tempfile
from importlib import import_module
from typing import Any, Final

_M_MMAP_THRESHOLD: Final = -3
_LARGE_BYTES: Final = 65_536


def _share_metrics() -> None:
    """Give the processes of this service a directory for their shared counts."""
    folder = os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix=f"db-cache-sync-{os.getpid()}-")
    atexit.register(_remove, folder, os.getpid())


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # not a worker process, which inherits the registration
        shutil.rmtree(folder, ignore_errors=True)


def _return_large_blocks() -> None:
    """Have glibc return large blocks of memory to the system when they are freed.

    By default, glibc keeps ever larger blocks once some were freed. Clients that do not finish their bodies
    then made a process take five times as much memory as their bodies have.

    Source: https://man7.org/linux/man-pages/man3/mallopt.3.html
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None)
    if set_option is not None:  # glibc
        set_option(_M_MMAP_THRESHOLD, _LARGE_BYTES)


_return_large_blocks()

# Before the application imports prometheus_client, which then decides where to count.
_share_metrics()

# The application has the settings, but gunicorn does not tell its configuration which application it runs.
_application = next(word for word in sys.argv[1:] if word.startswith("serving."))
try:
    _settings = import_module(_application.partition(":")[0]).settings
except ImportError as error:  # such as that of a package whose version was not tested
    sys.exit(f"cannot start: {error}")

_host = _settings.listen_address
if ":" in _host:  # IPv6
    _host = f"[{_host}]"
bind = [f"{_host}:{port}" for port in (_settings.port, _settings.metrics_port)]
workers = _settings.workers

worker_class = "serving.worker.Worker"

logger_class = "serving.logs.GunicornLogger"
control_socket_disable = True

# If it were much shorter, gunicorn would close the connections of load balancers and client pools between two
# requests. If it were longer, idle connections would delay a shutdown.
keepalive = 5
graceful_timeout = 30


def post_fork(server: Any, worker: Any) -> None:
    """Tell a worker process what only the master knows."""
    worker.replaces_another = worker.age > server.num_workers


def child_exit(_server: Any, worker: Any) -> None:
    """Forget the gauges of a worker process that has ended; what it has counted stays."""
    from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415 - after `_share_metrics`

    mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
