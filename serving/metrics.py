"""What a service measures of its requests, for Prometheus."""

from __future__ import annotations

from time import perf_counter
from typing import TYPE_CHECKING, Final

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

if TYPE_CHECKING:
    from falcon.asgi import Response

    from serving.request import Request

_METHODS: Final = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})

# Its count is the number of requests: a counter beside it would cost each request a third more.
_requests: Final = Histogram(
    "http_request_duration_seconds",
    "Requests, by what was asked for, status class and X-Cache, and the seconds that they took",
    ["entity", "method", "status", "cache"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 2.5, 10),
)
# The children as they were found once: looking labels up costs more than counting.
_children: Final[dict[tuple[str, str, int, str], Histogram]] = {}


def observe(entity: str, request: Request, status: int) -> None:
    """Count a request that has been answered."""
    key = (entity, request.method, status // 100, request.outcome)
    child = _children.get(key)
    if child is None:
        method = request.method if request.method in _METHODS else "other"
        child = _requests.labels(entity, method, f"{status // 100}xx", request.outcome)
        if method != "other":
            _children[key] = child
    child.observe(perf_counter() - request.started)


class Metrics:
    """`/metrics`: the sums over all of the service's processes."""

    entity = "metrics"

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Render them."""
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        resp.content_type = CONTENT_TYPE_LATEST
        resp.data = generate_latest(registry)
