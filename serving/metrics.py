"""Prometheus metrics of the requests to a service."""

from __future__ import annotations

import asyncio
from time import perf_counter
from typing import TYPE_CHECKING, Final, NoReturn

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector

from cachesync.metrics import process
from cachesync.metrics.kinds import DeclaredCounter
from serving.prometheus_internals import BufferedHistogram

if TYPE_CHECKING:
    from collections.abc import Mapping

    from falcon.asgi import Response

    from cachesync.service.service import Service
    from serving.overload import Admission
    from serving.request import Request


# Its count is the number of requests, so there is no separate counter.
_requests: Final = BufferedHistogram(
    "http_request_duration_seconds",
    "Duration of requests in seconds, by entity, method, status class and X-Cache",
    ["entity", "method", "status", "cache"],
    buckets=(0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 1, 2.5, 10),
)
requests_shed: Final = DeclaredCounter(
    "http_requests_shed",
    "Requests that were refused with 503 because of overload, by kind: read or write",
    ["kind"],
)
worker_starts: Final = DeclaredCounter(
    "http_worker_starts", "Worker processes that have started, those that replace others included"
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


class Flusher:
    """Adds the counts of this process to those that the processes of the service share.

    Args:
        admissions: the admissions, which count the requests that they refuse, by kind of request.
    """

    def __init__(self, admissions: Mapping[str, Admission]) -> None:
        self._admissions = admissions
        self._shed = dict.fromkeys(admissions, 0)
        process.begin()
        worker_starts.inc()
        for kind in admissions:
            requests_shed.labels(kind)

    def flush(self) -> None:
        """Add what was counted since the last time."""
        for child in set(_children.values()):
            child.share()
        for kind, admission in self._admissions.items():
            requests_shed.labels(kind).inc(admission.refused - self._shed[kind])
            self._shed[kind] = admission.refused

    async def keep_flushing(self) -> NoReturn:
        """Flush once per second until canceled."""
        while True:
            await asyncio.sleep(1)
            self.flush()


class Metrics:
    """`/metrics` on the metrics port: the totals of all processes of the service.

    Args:
        flusher: adds the counts of this process.
        service: the service, which has counts of its own.
    """

    entity = "metrics"

    def __init__(self, flusher: Flusher, service: Service) -> None:
        self._flusher = flusher
        self._service = service

    async def on_get(self, _req: Request, resp: Response) -> None:
        """Render the metrics in Prometheus' text format."""
        self._flusher.flush()
        self._service.share_metrics()
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        resp.content_type = CONTENT_TYPE_LATEST
        resp.data = generate_latest(registry)

    on_head = on_get
