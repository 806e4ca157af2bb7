"""Prometheus metrics of the requests to a service."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Final, NoReturn

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

from serving.prometheus_internals import BufferedHistogram

if TYPE_CHECKING:
    from falcon.asgi import Response

    from serving.request import Request


# Its count is the number of requests, so there is no separate counter.
_requests: Final = BufferedHistogram(
    "http_request_duration_seconds",
    "Duration of requests in seconds, by entity, method, status class and X-Cache",
    ["entity", "method", "status", "cache"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 2.5, 10),
)
# Looking up a child by its labels costs more than counting.
_children: Final[dict[tuple[str, str, int, str], BufferedHistogram]] = {}


def observe(entity: str, method: str, outcome: str, started: float, status: int) -> None:
    """Count a request.

    Args:
        entity: the entity that was requested, or the name of the service's own resource.
        method: the method of the request.
        outcome: the value of the response's `X-Cache` header.
        started: when the request arrived, from `time.perf_counter`.
        status: the HTTP status of its response.
    """
    key = (entity, method, status, outcome)
    child = _children.get(key)
    if child is None:
        child = _children[key] = _requests.labels(entity, method, f"{status // 100}xx", outcome)
    child.observe(perf_counter() - started)


def flush() -> None:
    """Add this process's counts to the shared counts."""
    for child in set(_children.values()):
        child.share()


async def keep_flushing() -> NoReturn:
    """Flush once per second until canceled."""
    while True:
        await asyncio.sleep(1)
        flush()


class Metrics:
    """`/metrics` on the metrics port: the totals of all processes of the service."""

    entity = "metrics"

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Render the metrics in Prometheus' text format."""
        flush()
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        resp.content_type = CONTENT_TYPE_LATEST
        resp.data = generate_latest(registry)

    on_head = on_get
