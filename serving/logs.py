"""Structured logs: one JSON object per line, including gunicorn's own log."""

from __future__ import annotations

import logging
from typing import Any

import orjson
import structlog
from gunicorn.glogging import Logger  # type: ignore[import-untyped]

from cachesync import logs


def configure(level: int) -> None:
    """Write every entry to standard error as one JSON object.

    Args:
        level: the minimum level, such as `logging.INFO`.
    """
    logs.configure(level, structlog.processors.JSONRenderer(serializer=_serialize))


class GunicornLogger(Logger):  # type: ignore[misc]
    """gunicorn's logger without handlers of its own and without an access log.

    The application logs the requests itself. For an access log, gunicorn would collect data about every
    request, logged or not.
    """

    access_log_enabled = False

    def setup(self, cfg: Any) -> None:
        """Configure the log of the master process, which the worker processes inherit."""
        level = self.LOG_LEVELS.get(cfg.loglevel.lower(), logging.INFO)
        configure(level)
        self.error_log.setLevel(level)
        self.error_log.propagate = True


def _serialize(event: dict[str, Any], **_: Any) -> str:
    # Text from clients can contain characters that UTF-8 cannot express, such as an unpaired surrogate.
    try:
        return orjson.dumps(event, default=repr).decode()
    except orjson.JSONEncodeError:
        return orjson.dumps({name: ascii(value) for name, value in event.items()}).decode()
