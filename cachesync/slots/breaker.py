"""A circuit breaker: after repeated failures a dependency is left alone for a while."""

from __future__ import annotations

import time


class Breaker:
    """Closed, it lets calls through; open, it refuses them, but for one probe per pause.

    Args:
        failures: how many failures in a row open it.
        pause: seconds until the next probe.
    """

    def __init__(self, failures: int, pause: float) -> None:
        self._limit = failures
        self._pause = pause
        self._failures = 0
        self._retry_at = 0.0

    def allows(self) -> bool:
        """Whether to make a call now; while open, the caller who gets True is the probe."""
        if self._failures < self._limit:
            return True
        now = time.monotonic()
        if now < self._retry_at:
            return False
        self._retry_at = now + self._pause
        return True

    def succeeded(self) -> None:
        """A call came back."""
        self._failures = 0

    def failed(self) -> None:
        """A call failed or took too long."""
        self._failures += 1
        if self._failures >= self._limit:
            self._retry_at = time.monotonic() + self._pause
