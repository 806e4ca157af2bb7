"""The Prometheus metrics of the library."""

from __future__ import annotations

import threading
from bisect import bisect_right
from itertools import accumulate
from typing import TYPE_CHECKING, Final

from prometheus_client import REGISTRY, Counter, Gauge
from prometheus_client.core import HistogramMetricFamily
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


_LONGEST_MS: Final = 1 << 42


class LagHistogram(Collector):
    """A histogram of lags per service, which counts those of a batch at once.

    `Histogram.observe` takes as long for one lag as everything else that a stream does for a change.

    Args:
        name: the name of the metric.
        documentation: what it measures.
        buckets: the upper bounds of the buckets, in seconds.
    """

    def __init__(self, name: str, documentation: str, buckets: tuple[float, ...]) -> None:
        self._name = name
        self._documentation = documentation
        self._bounds = buckets
        self._services: dict[str, ServiceLag] = {}
        REGISTRY.register(self)

    def labels(self, service: str) -> ServiceLag:
        """Return the lags of a service."""
        return self._services.setdefault(service, ServiceLag(self._bounds))

    def collect(self) -> Iterator[HistogramMetricFamily]:
        """Yield the metric, for prometheus-client."""
        family = HistogramMetricFamily(self._name, self._documentation, labels=["service"])
        for service, lag in self._services.copy().items():
            family.add_metric([service], *lag.counted())
        yield family


class ServiceLag:
    """The lags of a service.

    Args:
        bounds: the upper bounds of the buckets, in seconds.
    """

    def __init__(self, bounds: tuple[float, ...]) -> None:
        self._bounds = [*(round(1000 * bound) for bound in bounds), float("inf")]
        self._names = [*(str(float(bound)) for bound in bounds), "+Inf"]
        self._counts = [0] * len(self._bounds)
        self._sum = 0
        self._lock = threading.Lock()

    def observe_milliseconds(self, lags: Iterable[int]) -> None:
        """Count lags in milliseconds; impossible ones, as from differing clocks, as the nearest possible."""
        in_order = sorted(lags)
        if in_order and (in_order[0] < 0 or in_order[-1] > _LONGEST_MS):
            in_order = [min(max(0, lag), _LONGEST_MS) for lag in in_order]
        counts = []
        start = 0
        for bound in self._bounds:
            end = bisect_right(in_order, bound, start)
            counts.append(end - start)
            start = end
        with self._lock:
            self._sum += sum(in_order)
            self._counts = [count + more for count, more in zip(self._counts, counts, strict=True)]

    def counted(self) -> tuple[list[tuple[str, float]], float]:
        """Return the number of lags up to each bound, by its name, and the sum of all lags in seconds."""
        with self._lock:
            counts, total = self._counts, self._sum
        up_to = accumulate(counts)
        return list(zip(self._names, up_to, strict=True)), total / 1000


loads: Final = Counter("cachesync_loads", "Rows loaded from the database to answer a read", ["entity"])
waits: Final = Counter("cachesync_lease_waits", "Reads that waited for another read's load", ["entity"])
cache_failures: Final = Counter(
    "cachesync_cache_failures", "Round trips without a reply from Redis, and commands that Redis rejected"
)
published: Final = Counter(
    "cachesync_published", "Changes that a service published and the broker acknowledged"
)
unpublished: Final = Counter(
    "cachesync_unpublished",
    "Changes that a service could not publish; they stay in the change log for the relay",
    ["reason"],
)
relayed: Final = Counter("cachesync_relayed", "Changes that the relay published")
unrelayable: Final = Counter(
    "cachesync_unrelayable",
    "Attempts of the relay to publish a change that the broker rejected; retried with increasing delays",
    ["entity", "reason"],
)
without_payload: Final = Counter(
    "cachesync_published_without_payload",
    "Changes published without their payload because the message would be too large",
    ["entity"],
)
without_key: Final = Counter(
    "cachesync_published_without_key",
    "Changes published as a truncate, which empties all slots of the entity, because the key is too large",
    ["entity"],
)
superseded: Final = Counter(
    "cachesync_superseded",
    "Changes that Kafka rejects, closed because the relay published a newer change of their key",
)
backlog: Final = Gauge("cachesync_backlog", "Changes waiting for the relay, in up to 100,000 lines")
backlog_age: Final = Gauge("cachesync_backlog_age_seconds", "Age of the oldest change waiting for the relay")
gap: Final = Counter(
    "cachesync_gap",
    "Row versions missing from the change log, such as those of writes that were rolled back",
)
capture_lost: Final = Gauge(
    "cachesync_capture_lost",
    "1 while changes of the entity may not be captured, because the schema is not as it was installed",
    ["entity"],
)
pruned: Final = Counter("cachesync_pruned", "Published lines that the relay removed from the change log")
applied: Final = Counter(
    "cachesync_applied",
    "Changes applied to the slots of a cache, of rows and of unique lookups, by effect on the slot",
    ["service", "effect"],
)
dead_letters: Final = Counter(
    "cachesync_dead_letters", "Messages sent to the dead-letter topic", ["service", "stage"]
)
lag: Final = LagHistogram(
    "cachesync_lag_seconds",
    "Time from the end of the statement that made a change until the change is applied to a cache",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 300),
)
paused: Final = Gauge(
    "cachesync_paused", "1 while the stream is paused because its Redis is unavailable", ["service"]
)
restarts: Final = Counter(
    "cachesync_restarts", "Times that the stream or the relay of this process ended with an error"
)
