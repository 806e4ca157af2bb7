"""The endpoints of the page in Airflow: who may use them, and what they cost."""

from __future__ import annotations

import asyncio
import hashlib
import re
import threading
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from fastapi import FastAPI, Request  # noqa: TC002 - FastAPI reads the annotations

from cachesync.errors import DatabaseUnavailableError
from tests.sample_overview import SampleOverview

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from cachesync_airflow.page.reader import Overview

    from cachesync.overview.models import Status

STATIC = Path(__file__).parents[3] / "plugins" / "cachesync_airflow" / "page" / "static"
PATHS = (
    "/",
    "/page.css",
    "/page.js",
    "/uPlot.css",
    "/uPlot.js",
    "/uPlot.LICENSE",
    "/api/me",
    "/api/status",
    "/api/history?period=day&service=sb&entity=student",
    "/api/lags",
    "/api/key?entity=student&key=17",
)


with warnings.catch_warnings():
    # Airflow's own.
    warnings.simplefilter("ignore")
    from airflow.api_fastapi.auth.managers.simple.simple_auth_manager import SimpleAuthManager
    from airflow.api_fastapi.auth.managers.simple.user import SimpleAuthManagerUser
    from airflow.api_fastapi.core_api.security import get_user, resolve_user_from_token
    from airflow.models.dag import DagModel
    from cachesync_airflow.page.app import make_page


async def user(request: Request) -> Any:
    """Return a user with the role in the header."""
    role = request.headers.get("role")
    if role is None:
        return await resolve_user_from_token(None)
    return SimpleAuthManagerUser(username="ann", role=role or None)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Callable[[Overview], FastAPI]:
    """Makes the page, with Airflow's simple auth manager."""
    # Tokens and teams are in Airflow's database, which tests/acceptance has.
    monkeypatch.setattr("airflow.api_fastapi.app._AuthManagerState.instance", SimpleAuthManager())
    monkeypatch.setattr(DagModel, "get_team_name", lambda _: None)

    def make(overview: Overview) -> FastAPI:
        page = make_page(lambda: overview)
        page.dependency_overrides[get_user] = user
        return page

    return make


@pytest.fixture
def overview() -> SampleOverview:
    return SampleOverview()


@pytest.fixture
async def client(
    make: Callable[[Overview], FastAPI], overview: SampleOverview
) -> AsyncIterator[httpx.AsyncClient]:
    async with client_of(make(overview)) as client:
        yield client


def client_of(page: FastAPI) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        transport=httpx.ASGITransport(page), base_url="http://airflow", headers={"role": "viewer"}
    )


def test_each_endpoint_is_in_the_list_of_those_whose_permissions_are_tested(
    make: Callable[[Overview], FastAPI], overview: SampleOverview
) -> None:
    assert {getattr(route, "path", None) for route in make(overview).routes} == {
        path.partition("?")[0] for path in PATHS
    }


@pytest.mark.parametrize("path", PATHS)
async def test_endpoint_is_for_those_who_may_read_the_dag(client: httpx.AsyncClient, path: str) -> None:
    del client.headers["role"]
    assert (await client.get(path)).status_code == 401
    assert (await client.get(path, headers={"role": ""})).status_code == 403
    allowed = await client.get(path, headers={"role": "viewer"})
    assert allowed.status_code == 200
    assert "default-src 'none'" in allowed.headers["content-security-policy"]


async def test_user_learns_what_they_may_trigger(client: httpx.AsyncClient) -> None:
    assert (await client.get("/api/me")).json() == {"reconcile": False, "letters": False}
    assert (await client.get("/api/me", headers={"role": "user"})).json() == {
        "reconcile": True,
        "letters": True,
    }


async def test_viewers_who_ask_together_cost_as_one(
    client: httpx.AsyncClient, overview: SampleOverview
) -> None:
    answers = await asyncio.gather(*(client.get("/api/status") for _ in range(20)))
    assert {answer.status_code for answer in answers} == {200}
    assert overview.asked == 1
    assert answers[0].json()["caches"][1]["service"] == "sb"


async def test_page_is_answered_before_its_overview_which_is_asked_for_meanwhile(
    client: httpx.AsyncClient, overview: SampleOverview
) -> None:
    assert (await client.get("/")).status_code == 200
    async with asyncio.timeout(60):
        while not overview.asked:
            await asyncio.sleep(0.01)


async def test_status_is_not_sent_again_unless_it_has_changed(
    make: Callable[[Overview], FastAPI], client: httpx.AsyncClient
) -> None:
    tag = (await client.get("/api/status")).headers["etag"]
    # Another process of the API server, and a proxy that compresses.
    async with client_of(make(SampleOverview())) as another:
        unchanged = await another.get("/api/status", headers={"If-None-Match": f"W/{tag}"})
        assert (unchanged.status_code, unchanged.content) == (304, b"")
    async with client_of(make(SampleOverview(healthy=True))) as changed:
        assert (await changed.get("/api/status", headers={"If-None-Match": tag})).status_code == 200


async def test_server_that_does_not_respond_holds_nothing_else_up(
    make: Callable[[Overview], FastAPI],
) -> None:
    released = threading.Event()

    class Hanging(SampleOverview):
        async def status(self, *, day: bool = True) -> Status:
            assert await asyncio.to_thread(released.wait, 60)
            return await super().status(day=day)

        async def show(self, entity: str, key: str) -> Any:
            # Blocks the thread that asks.
            assert released.wait(60)
            return await super().show(entity, key)

    async with client_of(make(Hanging())) as client:
        waiting = [asyncio.create_task(client.get(path)) for path in PATHS[-3:]]
        assert (await client.get("/api/me")).status_code == 200
        released.set()
        assert [(await answer).status_code for answer in waiting] == [200, 200, 200]


async def test_viewer_cannot_open_more_connections_than_a_few_nor_queue_without_end(
    make: Callable[[Overview], FastAPI],
) -> None:
    released = asyncio.Event()

    class Counting(SampleOverview):
        at_once = most = 0

        async def history(self, *arguments: Any, **options: Any) -> Any:
            self.at_once += 1
            self.most = max(self.most, self.at_once)
            while not released.is_set():
                await asyncio.sleep(0.01)
            self.at_once -= 1
            return await super().history(*arguments, **options)

    overview = Counting()
    async with client_of(make(overview)) as client:
        asked = [
            asyncio.create_task(client.get("/api/history", params={"entity": f"none{number}"}))
            for number in range(120)
        ]
        async with asyncio.timeout(30):
            while sum(answer.done() for answer in asked) < 20:
                await asyncio.sleep(0.01)
        released.set()
        codes = [(await answer).status_code for answer in asked]
    assert overview.most == 4
    assert (codes.count(200), codes.count(503)) == (100, 20)


async def test_errors_say_what_to_correct(
    make: Callable[[Overview], FastAPI], client: httpx.AsyncClient
) -> None:
    answer = await client.get("/api/key", params={"entity": "student", "key": "ann"})
    assert (answer.status_code, answer.json()["detail"]) == (422, "a number is required")

    class Without(SampleOverview):
        async def history(self, *_: Any, **__: Any) -> Any:
            raise DatabaseUnavailableError("the database does not respond")  # noqa: EM101, TRY003

    async with client_of(make(Without())) as client_without:
        answer = await client_without.get("/api/history")
        assert (answer.status_code, answer.json()["detail"]) == (503, "the database does not respond")


def test_page_loads_nothing_from_elsewhere_and_has_no_inline_code() -> None:
    page = (STATIC / "index.html").read_text()
    assert set(re.findall(r'(?:src|href)="([^"#]+)"', page)) == {
        "data:,",
        "api/status",
        "page.css",
        "uPlot.css",
        "page.js",
        "uPlot.js",
    }
    assert not re.findall(r"<script(?![^>]*src=)|<style|\sstyle=|\son\w+=", page)


def test_plotting_library_is_as_it_was_published() -> None:
    text = (STATIC / "uPlot.LICENSE").read_text()
    stated = dict(re.findall(r"^(uPlot\.\w+) is its \S+ SHA-256 (\w+)$", text, re.MULTILINE))
    assert stated == {
        name: hashlib.sha256((STATIC / name).read_bytes()).hexdigest() for name in ("uPlot.js", "uPlot.css")
    }
