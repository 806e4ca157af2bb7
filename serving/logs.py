"""Structured logs: one JSON object per line, including gunicorn's own log."""

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
    """Write the entries of structlog and of `logging` to standard error in one format.

    Args:
        level: the minimum level, such as `logging.INFO`.
    """
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
