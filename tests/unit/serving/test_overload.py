"""Admission: requests are refused when those in flight take too long, and not before."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import orjson
import pytest
from falcon.testing import ASGIConductor

from serving.overload import Admission
from tests.unit.serving.stand_in import METRICS_PORT, app_on, http_scope, served

if TYPE_CHECKING:
    from serving.app import App
    from tests.unit.serving.stand_in import MemoryService

SECONDS = 0.4


def after(admission: Admission, in_flight: int, per_second: float, times: int = 20) -> int:
    """Return the limit after some time with this load."""
    admission.in_flight = in_flight
    for _ in range(times):
        admission.adapt(round(per_second / 10), 0.1)
    return admission.limit


def test_everything_is_admitted_while_requests_are_fast() -> None:
    assert after(Admission(SECONDS, 1000), in_flight=300, per_second=1000) == 1000


def test_burst_is_admitted_before_any_request_has_finished() -> None:
    assert Admission(SECONDS, 1000).limit == 1000


def test_burst_is_admitted_for_as_long_as_its_requests_may_take() -> None:
    admission = Admission(SECONDS, 1000)
    assert after(admission, in_flight=500, per_second=0, times=3) == 1000
    assert after(admission, in_flight=500, per_second=0, times=2) == 32


@pytest.mark.parametrize("per_second", [100, 500, 2000])
def test_limit_is_what_can_be_finished_in_the_target_time(per_second: int) -> None:
    limit = after(Admission(SECONDS, 1000), in_flight=1000, per_second=per_second)
    assert limit == pytest.approx(per_second * SECONDS, abs=2)


def test_few_requests_are_admitted_however_slow_they_are() -> None:
    admission = Admission(SECONDS, 1000)
    assert after(admission, in_flight=200, per_second=0) == 32
    assert after(admission, in_flight=32, per_second=0) == 1000


def test_limit_is_lower_if_requests_wait_before_they_are_read() -> None:
    admission = Admission(SECONDS, 1000)
    admission.in_flight = 1000
    for _ in range(20):
        admission.adapt(300, 0.3)  # the event loop is 0.2 s late
    assert admission.limit == pytest.approx(1000 * (SECONDS - 0.2), abs=2)


async def test_requests_count_before_their_tasks_begin() -> None:
    admission = Admission(SECONDS, 2)
    was_full = []
    for _ in range(2):
        admission.expect()
        was_full.append(admission.is_full)
    await asyncio.sleep(0)
    assert [*was_full, admission.is_full] == [False, True, False]


async def request(app: App, method: str, path: str, port: int = 8090) -> list[dict[str, Any]]:
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"{}", "more_body": False}

    async def send(event: Any) -> None:
        sent.append(event)

    scope = http_scope(method, path, [(b"x-request-id", b"find-me")], port)
    await app(scope, cast("Any", receive), send)
    return sent


@pytest.mark.parametrize("method", ["GET", "PUT"])
async def test_refused_request_gets_a_503_that_says_when_to_retry(
    service: MemoryService, method: str
) -> None:
    app = app_on(service)
    async with ASGIConductor(served(app)):
        app.reads.limit = app.writes.limit = 0
        start, body = await request(app, method, "/students/1")
        headers = dict(start["headers"])
        assert start["status"] == 503
        assert (headers[b"retry-after"], headers[b"x-request-id"]) == (b"1", b"find-me")
        problem = orjson.loads(body["body"])
        assert (problem["type"], problem["instance"]) == ("/problems/overloaded", "/students/1")


async def test_overload_does_not_affect_health_checks_and_metrics(service: MemoryService) -> None:
    app = app_on(service)
    async with ASGIConductor(served(app)):
        app.reads.limit = 0
        for path, port in (("/health/live", 8090), ("/health/ready", 8090), ("/health/live", METRICS_PORT)):
            assert (await request(app, "GET", path, port))[0]["status"] == 200


async def test_writes_that_wait_do_not_stop_reads(service: MemoryService) -> None:
    app = app_on(service)
    async with ASGIConductor(served(app)):
        app.writes.limit = 0
        assert (await request(app, "GET", "/students/1"))[0]["status"] == 404


async def test_read_of_a_client_that_left_ends(
    service: MemoryService, monkeypatch: pytest.MonkeyPatch
) -> None:
    began, ended = asyncio.Event(), asyncio.Event()

    async def read(_key: str) -> Any:
        began.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    monkeypatch.setattr(service.student, "read", read)
    app = app_on(service)
    async with ASGIConductor(served(app)):
        task = asyncio.create_task(request(app, "GET", "/students/1"))
        await began.wait()
        assert app.reads.in_flight == 1
        task.cancel()
        assert await task == []
        assert ended.is_set()
        assert (app.reads.in_flight, app.reads.finished) == (0, 1)
