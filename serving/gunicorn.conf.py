# ruff: noqa: N999 - gunicorn looks for this name
"""gunicorn's settings for both services: `gunicorn --config serving/gunicorn.conf.py serving.sa:app`."""

from __future__ import annotations

import atexit
import os
import shutil
import sys
import tempfile
from importlib import import_module
from pathlib import Path
from typing import Any

from gunicorn.asgi.protocol import ASGIProtocol  # type: ignore[import-untyped]


def _share_metrics() -> None:
    """Give the processes of this service a folder that they count in together."""
    prefix = f"db-cache-sync-{os.getpid()}-"
    # A reload runs this file again in the same process, which goes on counting where it is.
    if prefix not in os.environ.get("PROMETHEUS_MULTIPROC_DIR", ""):
        folder = os.environ["PROMETHEUS_MULTIPROC_DIR"] = tempfile.mkdtemp(prefix=prefix)
        atexit.register(_remove, folder, os.getpid())


def _remove(folder: str, owner: int) -> None:
    if os.getpid() == owner:  # and not one of its workers, which inherit the registration
        shutil.rmtree(folder, ignore_errors=True)


# Before anything imports prometheus_client, which decides on import where it counts.
_share_metrics()
sys.path.insert(0, str(Path.cwd()))

# gunicorn tells its configuration nothing of the application, whose settings these are.
_application = next(word for word in sys.argv[1:] if word.startswith("serving."))
_settings = import_module(_application.partition(":")[0]).settings

bind = f"{_settings.listen_address}:{_settings.port}"
workers = _settings.workers

worker_class = "asgi"
asgi_lifespan = "on"
# Requests/s of a constant response: 1.47 times those of asyncio with the parser in Python; 1.08 times is
# due to uvloop alone, 1.10 to the parser alone.
asgi_loop = "uvloop"
http_parser = "fast"
# A text key of the 2.7 kB that PostgreSQL can index is three times as long when it is percent-encoded.
limit_request_line = 8190

logger_class = "serving.logs.GunicornLogger"
control_socket_disable = True

# Longer than a load balancer's or a client pool's pause between two requests would close too much; longer
# than this, connections without a request hold up a stop.
keepalive = 5
graceful_timeout = 30


def post_fork(server: Any, worker: Any) -> None:
    """Tell a worker what only the master knows."""
    # gunicorn kills a worker after the graceful timeout, and the worker waits just as long for its
    # clients: it must wait less, or it is killed before it has closed the service.
    worker.cfg.set("graceful_timeout", 20)
    worker.state["replaces_another"] = worker.age > server.num_workers


def post_worker_init(worker: Any) -> None:
    """Mend what gunicorn does at every request."""
    # It looks a dozen settings up, each by two calls of Python: a tenth of a cached hit. They are final now.
    vars(worker.cfg).update({name: setting.get() for name, setting in worker.cfg.settings.items()})
    # It answers three errors of its fast parser with a 400, all of them ValueErrors; at the others it drops
    # the connection without an answer, and logs a traceback.
    ASGIProtocol._check_h1c_protocol_available()  # noqa: SLF001 - there is no other way
    ASGIProtocol._h1c_invalid_chunk_extension = ValueError  # noqa: SLF001
    _close_idle_connections()


def _close_idle_connections() -> None:
    """Let `keepalive` have its effect: gunicorn starts the time after an answer and takes it back at once."""
    take_back = ASGIProtocol._cancel_keepalive_timer  # noqa: SLF001
    close = ASGIProtocol._keepalive_timeout  # noqa: SLF001

    def take_back_when_lost(connection: Any) -> None:
        if connection._conn_lost_handled:  # noqa: SLF001
            take_back(connection)

    def close_when_idle(connection: Any) -> None:
        # It is set from a request's headers until its answer, after which the time starts again.
        if not connection._request_ready.is_set():  # noqa: SLF001
            close(connection)

    ASGIProtocol._cancel_keepalive_timer = take_back_when_lost  # noqa: SLF001
    ASGIProtocol._keepalive_timeout = close_when_idle  # noqa: SLF001
