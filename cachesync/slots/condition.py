"""What is known about a Redis: whether it can be used, and if not, why."""

from __future__ import annotations

import time
from typing import Final

import structlog

_log = structlog.get_logger(__name__)

# A Redis that is just about full refuses some writes and takes others.
_CALM_SECONDS: Final = 10.0


class Condition:
    """Logs each change of a Redis's condition once.

    Args:
        fields: fields of the log messages, which identify the Redis.

    Attributes:
        refuses: whether the Redis responds, but has recently rejected commands.
    """

    def __init__(self, **fields: str) -> None:
        self._fields = fields
        self._unavailable = False
        self.refuses = False
        self._refused_at = 0.0

    def unavailable(self, reason: str) -> None:
        """Record that the Redis did not respond, or rejected the connection, several times in a row."""
        if not self._unavailable:
            self._unavailable = True
            _log.warning("cache unavailable", reason=reason, **self._fields)

    def responded(self) -> None:
        """Record that the Redis responded."""
        if self._unavailable:
            self._unavailable = False
            _log.info("cache available", **self._fields)

    def refused(self, reason: str) -> None:
        """Record that the Redis responded, but rejected a command."""
        self._refused_at = time.monotonic()
        if not self.refuses:
            self.refuses = True
            _log.warning("cache refuses commands", reason=reason, **self._fields)

    def stored(self) -> None:
        """Record that the Redis stored something."""
        if self.refuses and time.monotonic() >= self._refused_at + _CALM_SECONDS:
            self.refuses = False
            _log.info("cache accepts commands", **self._fields)
