"""Structured logs: one JSON object a line, gunicorn's own included."""

from __future__ import annotations

import logging
from typing import Any, Final

import orjson
import structlog
from gunicorn.glogging import Logger  # type: ignore[import-untyped]

_PROCESSORS: Final[list[structlog.types.Processor]] = [
    structlog.stdlib.add_logger_name,
    structlog.stdlib.add_log_level,
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
    structlog.processors.format_exc_info,
]


def configure(level: int) -> None:
    """Send what structlog and `logging` get to standard error, in one format."""
    handler = logging.StreamHandler()
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=_PROCESSORS,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.processors.JSONRenderer(serializer=_serialize),
            ],
        )
    )
    logging.root.handlers = [handler]
    logging.root.setLevel(level)
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *_PROCESSORS,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=True,
    )


class GunicornLogger(Logger):  # type: ignore[misc]
    """gunicorn's logger without handlers of its own, and without an access log.

    The application logs the requests that are worth a line; for every one, gunicorn would first
    collect what an access line might show.
    """

    access_log_enabled = False

    def setup(self, cfg: Any) -> None:
        """Prepare the log of the master process, which its workers inherit."""
        level = self.LOG_LEVELS.get(cfg.loglevel.lower(), logging.INFO)
        configure(level)
        self.error_log.setLevel(level)
        self.error_log.propagate = True


def _serialize(event: dict[str, Any], **_: Any) -> str:
    # Text from outside may hold what UTF-8 cannot express, such as half a surrogate pair.
    try:
        return orjson.dumps(event, default=repr).decode()
    except orjson.JSONEncodeError:
        return orjson.dumps({name: ascii(value) for name, value in event.items()}).decode()
