"""A histogram built on prometheus-client's internals, and the versions that it was tested with."""

from __future__ import annotations

from bisect import bisect_left
from typing import Final

from prometheus_client import Histogram

from cachesync.tested_packages import require_tested

TESTED: Final = ">=0.26,<0.27"

require_tested("prometheus-client", TESTED)


class BufferedHistogram(Histogram):
    """A histogram that counts in memory and is added to the shared counts on demand.

    The processes of a service share their counts through one memory-mapped file per process. Writing to it
    added 2.5 microseconds to a cached hit, ten times as much as counting in memory.
    """

    def _metric_init(self) -> None:
        super()._metric_init()
        self._pending = [0] * len(self._upper_bounds)
        self._pending_seconds = 0.0

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:  # noqa: ARG002 - has none
        """Count an observation in memory.

        Args:
            amount: the duration in seconds.
            exemplar: ignored.
        """
        self._pending[bisect_left(self._upper_bounds, amount)] += 1
        self._pending_seconds += amount

    def share(self) -> None:
        """Add the observations since the last call to the shared counts."""
        self._sum.inc(self._pending_seconds)
        for bucket, count in zip(self._buckets, self._pending, strict=True):
            if count:
                bucket.inc(count)
        self._pending = [0] * len(self._upper_bounds)
        self._pending_seconds = 0.0
