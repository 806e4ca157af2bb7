"""What a service measures of its requests, for Prometheus."""

from __future__ import annotations

import asyncio
from bisect import bisect_left
from time import perf_counter
from typing import TYPE_CHECKING, Final, NoReturn

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

if TYPE_CHECKING:
    from falcon.asgi import Response

    from serving.request import Request


class _Durations(Histogram):
    """A histogram that counts in this process's memory, and shares its counts now and then.

    What several processes count in together is a mapped file per process: writing to it cost a cached
    hit 2.5 microseconds, ten times as much as counting here.
    """

    def _metric_init(self) -> None:
        super()._metric_init()
        self._pending = [0] * len(self._upper_bounds)
        self._pending_seconds = 0.0

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:  # noqa: ARG002 - not used here
        self._pending[bisect_left(self._upper_bounds, amount)] += 1
        self._pending_seconds += amount

    def share(self) -> None:
        """Add what was counted since the last time to what the service's processes count together."""
        self._sum.inc(self._pending_seconds)
        for bucket, count in zip(self._buckets, self._pending, strict=True):
            if count:
                bucket.inc(count)
        self._pending = [0] * len(self._upper_bounds)
        self._pending_seconds = 0.0


# Its count is the number of requests, so that there is no counter of them beside it.
_requests: Final = _Durations(
    "http_request_duration_seconds",
    "Requests, by what was asked for, status class and X-Cache, and the seconds that they took",
    ["entity", "method", "status", "cache"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 2.5, 10),
)
# The children as they were found once: looking labels up costs more than counting.
_children: Final[dict[tuple[str, str, int, str], _Durations]] = {}


def observe(entity: str, request: Request, status: int) -> None:
    """Count a request that has been answered."""
    key = (entity, request.method, status, request.outcome)
    child = _children.get(key)
    if child is None:
        child = _children[key] = _requests.labels(
            entity, request.method, f"{status // 100}xx", request.outcome
        )
    child.observe(perf_counter() - request.started)


def flush() -> None:
    """Share what this process has counted."""
    for child in set(_children.values()):
        child.share()


async def keep_flushing() -> NoReturn:
    """Share it every second."""
    while True:
        await asyncio.sleep(1)
        flush()


class Metrics:
    """`/metrics`: the sums over all of the service's processes."""

    entity = "metrics"

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Render them."""
        flush()
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        resp.content_type = CONTENT_TYPE_LATEST
        resp.data = generate_latest(registry)

    on_head = on_get
