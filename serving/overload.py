"""Admission: how many requests are worked on at once, so that an overloaded service stays fast."""

from __future__ import annotations

import asyncio
from typing import Final, NoReturn

_SECONDS: Final = 0.1
# Of the new value, in the moving averages.
_WEIGHT: Final = 0.5
# Always admitted: more than the requests that can be slow at once because they wait for the same row.
_FLOOR: Final = 32
_GROWTH: Final = 1.25


class Admission:
    """Limits the requests in flight to those that the process can finish in time.

    The number in flight divided by the number finished per second is the time that a request takes (Little's
    law). When this has exceeded the target for as long as the target, new requests are refused until it no
    longer does. Unlike a fixed number, this fits hits as well as pages, which take fifty times as long, and
    allows bursts, of which nothing can have finished yet.

    Before the process reads a request, it can wait for as long as the event loop is late. This is part of the
    target.

    Args:
        seconds: the target.
        limit: maximum number in flight in any case.

    Attributes:
        limit: the current limit.
        in_flight: the number of requests in flight.
        finished: the number of requests that have finished.
        refused: the number of requests that were refused.
    """

    def __init__(self, seconds: float, limit: int) -> None:
        self._seconds = seconds
        self._maximum = limit
        self._rate = 0.0
        self._late = 0.0
        self._exceeded = 0.0
        self.limit = limit
        self.in_flight = 0
        self.finished = 0
        self.refused = 0
        self._expected = 0

    @property
    def is_full(self) -> bool:
        """Whether a further request must be refused."""
        return self.in_flight + self._expected >= self.limit

    def refuses(self) -> bool:
        """Return whether a further request must be refused, and count it if so."""
        if self.in_flight < self.limit:
            return False
        self.refused += 1
        return True

    def expect(self) -> None:
        """Count a request whose task has been created, until the event loop has begun all such tasks."""
        if not self._expected:
            asyncio.get_running_loop().call_soon(self._expect_none)
        self._expected += 1

    def _expect_none(self) -> None:
        self._expected = 0

    def adapt(self, finished: int, seconds: float) -> None:
        """Adapt the limit.

        Args:
            finished: the number of requests that have finished in this time.
            seconds: the time since the last call; what exceeds 0.1 s is how late the event loop is.
        """
        self._rate += _WEIGHT * (finished / seconds - self._rate)
        self._late += _WEIGHT * (max(0.0, seconds - _SECONDS) - self._late)
        sustainable = int(self._rate * max(0.0, self._seconds - self._late))
        if self.in_flight > max(_FLOOR, sustainable):
            self._exceeded += seconds
            if self._exceeded > self._seconds:
                self.limit = min(self._maximum, max(_FLOOR, sustainable))
        else:
            self._exceeded = 0.0
            self.limit = min(self._maximum, int(self.limit * _GROWTH) + 1)

    async def keep_adapting(self) -> NoReturn:
        """Adapt the limit until canceled."""
        loop = asyncio.get_running_loop()
        then, finished = loop.time(), self.finished
        while True:
            await asyncio.sleep(_SECONDS)
            now = loop.time()
            self.adapt(self.finished - finished, now - then)
            then, finished = now, self.finished
