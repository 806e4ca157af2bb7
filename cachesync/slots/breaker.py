"""A circuit breaker, which stops calls to a dependency that keeps failing."""

from __future__ import annotations

import time


class Breaker:
    """Lets calls through while closed; while open, refuses all but one probe per pause.

    Source: https://martinfowler.com/bliki/CircuitBreaker.html

    Args:
        failures: the number of consecutive failures that opens the breaker.
        pause: the time between probes while it is open, in seconds.
    """

    def __init__(self, failures: int, pause: float) -> None:
        self._limit = failures
        self._pause = pause
        self._failures = 0
        self._retry_at = 0.0

    @property
    def is_open(self) -> bool:
        """Whether only probes are allowed."""
        return self._failures >= self._limit

    def allows(self) -> bool:
        """Return whether to make a call now; while open, the caller that gets True makes the probe."""
        if not self.is_open:
            return True
        now = time.monotonic()
        if now < self._retry_at:
            return False
        self._retry_at = now + self._pause
        return True

    def succeeded(self) -> None:
        """Record that a call succeeded, which closes the breaker."""
        self._failures = 0

    def failed(self) -> None:
        """Record that a call failed or timed out."""
        self._failures += 1
        if self.is_open:
            self._retry_at = time.monotonic() + self._pause
