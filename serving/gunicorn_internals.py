# ruff: noqa: SLF001 - this module patches private attributes
"""Patches to gunicorn's internals, and the versions that they were tested with.

`serving/gunicorn_conf.py` applies them in each worker process, because gunicorn has no settings or hooks for
what they do.
"""

from __future__ import annotations

from typing import Any, Final

from gunicorn.asgi.protocol import ASGIProtocol  # type: ignore[import-untyped]

from cachesync.tested_packages import require_tested

TESTED: Final = ">=26.2,<26.3"

require_tested("gunicorn", TESTED)


def read_settings_once(cfg: Any) -> None:
    """Turn gunicorn's settings into plain attributes.

    gunicorn looks up a dozen settings for each request, and each lookup calls two Python functions: together
    a tenth of the time of a cached hit. In a worker process, the settings are final.

    Args:
        cfg: the worker process's `gunicorn.config.Config`.
    """
    vars(cfg).update({name: setting.get() for name, setting in cfg.settings.items()})


def answer_parse_errors() -> None:
    """Respond with 400 to every request that the fast parser rejects.

    gunicorn handles three of the fast parser's exceptions. On any other, it closes the connection without a
    response and logs a traceback. All of them are subclasses of ValueError.
    """
    # gunicorn calls this at the first connection. A later call would overwrite the attribute.
    ASGIProtocol._check_h1c_protocol_available()
    ASGIProtocol._h1c_invalid_chunk_extension = ValueError


def close_idle_connections() -> None:
    """Make the setting `keepalive` effective.

    gunicorn starts the timer of an idle connection after each response, but cancels it as soon as it begins
    to wait for the next request. With this patch, the timer runs on and, when it expires, closes the
    connection unless a request is in progress.
    """
    cancel = ASGIProtocol._cancel_keepalive_timer
    close = ASGIProtocol._keepalive_timeout

    def cancel_when_lost(connection: Any) -> None:
        if connection._conn_lost_handled:
            cancel(connection)

    def close_when_idle(connection: Any) -> None:
        # Set from the headers of a request until its response, which starts the timer again.
        if not connection._request_ready.is_set():
            close(connection)

    ASGIProtocol._cancel_keepalive_timer = cancel_when_lost
    ASGIProtocol._keepalive_timeout = close_when_idle
