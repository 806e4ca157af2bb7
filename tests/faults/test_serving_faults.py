"""The services while a component is unavailable: only PostgreSQL is required, and not even that for hits."""

from __future__ import annotations

from typing import TYPE_CHECKING

import httpx
import pytest

from local.service import Service
from tests.faults.proxy import Proxy
from tests.faults.supervisor import bring_airflow_back
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from local.system import System

PATH = "/students/2000"
OTHER = "/students/2001"


@pytest.fixture
def sb(system: System) -> Iterator[httpx.Client]:
    """A client of sb, with one row in sb's cache."""
    with httpx.Client(base_url=system.services["sb"].url, timeout=30) as client:
        wait_until(lambda: client.put(PATH, json={"name": "Ann", "age": 1}).is_success, "sb accepts a write")
        wait_until(lambda: client.get(PATH).headers.get("x-cache") == "HIT", "sb has cached the row")
        yield client


def assert_reads_and_writes_continue(client: httpx.Client, outcome: str) -> None:
    for number in range(20):
        written = client.put(PATH, json={"name": "Bea", "age": number})
        read = client.get(PATH)
        assert (written.status_code, read.status_code) == (200, 200)
        assert read.headers["etag"] == written.headers["etag"]
        assert (read.headers["x-cache"], written.headers.get("x-cache", "HIT")) == (outcome, outcome)


def test_reads_and_writes_continue_while_redis_is_stopped(system: System, sb: httpx.Client) -> None:
    system.redis["sb"].stop()
    try:
        assert_reads_and_writes_continue(sb, "BYPASS")
        health = sb.get("/health/ready")
        assert (health.status_code, health.json()["redis"]) == (200, False)
    finally:
        system.redis["sb"].start()
    wait_until(lambda: sb.get(PATH).headers["x-cache"] == "HIT", "sb uses its cache again")


def test_reads_and_writes_continue_while_redis_is_frozen(system: System, sb: httpx.Client) -> None:
    system.redis["sb"].freeze()
    try:
        assert_reads_and_writes_continue(sb, "BYPASS")
    finally:
        system.redis["sb"].thaw()
    wait_until(lambda: sb.get(PATH).headers["x-cache"] == "HIT", "sb uses its cache again")
    newest = sb.put(PATH, json={"name": "Zoe", "age": 99})
    assert sb.get(PATH).headers["etag"] == newest.headers["etag"]


@pytest.fixture
def redis_proxy(system: System) -> Iterator[Proxy]:
    with Proxy(system.redis["sb"].port) as proxy:
        yield proxy


@pytest.fixture
def client(system: System, redis_proxy: Proxy, tmp_path: Path) -> Iterator[httpx.Client]:
    """A client of another sb, which reaches its Redis through `redis_proxy` and has one row in its cache."""
    service = Service(
        tmp_path,
        "sb",
        dsn=system.dsn,
        redis_url=f"redis://127.0.0.1:{redis_proxy.port}/0",
        bootstrap_servers=system.bootstrap_servers,
    )
    with service, httpx.Client(base_url=service.url, timeout=30) as client:
        wait_until(lambda: client.put(PATH, json={"name": "Ann", "age": 1}).is_success, "sb accepts a write")
        wait_until(lambda: client.get(PATH).headers["x-cache"] == "HIT", "sb has cached the row")
        yield client


def test_slow_redis_is_bypassed_only_if_slower_than_the_timeout(
    redis_proxy: Proxy, client: httpx.Client
) -> None:
    redis_proxy.delay = 0.01
    assert_reads_and_writes_continue(client, "HIT")
    redis_proxy.delay = 0.5
    client.get(PATH)  # its response can already be on its way
    assert_reads_and_writes_continue(client, "BYPASS")
    redis_proxy.delay = 0.0
    wait_until(lambda: client.get(PATH).headers["x-cache"] == "HIT", "sb uses its cache again")


@pytest.mark.parametrize("path", [PATH, "/health/ready"])
def test_request_succeeds_although_all_redis_connections_were_reset(
    redis_proxy: Proxy, client: httpx.Client, path: str
) -> None:
    redis_proxy.cut()
    wait_until(lambda: not redis_proxy.ends, "all connections are closed")
    redis_proxy.mend()
    assert client.get(path).status_code == 200
    wait_until(lambda: client.get(PATH).headers["x-cache"] == "HIT", "sb uses its cache again")


def test_reads_and_writes_continue_while_kafka_is_stopped(system: System, sb: httpx.Client) -> None:
    assert system.kafka is not None
    system.kafka.stop()
    try:
        assert_reads_and_writes_continue(sb, "HIT")
        health = sb.get("/health/ready")
        assert (health.status_code, health.json()["kafka"]) == (200, False)
    finally:
        system.kafka.start()


@pytest.mark.parametrize("fault", ["stop", "freeze"])
def test_only_hits_are_served_while_postgresql_is_unavailable(
    system: System, sb: httpx.Client, fault: str
) -> None:
    postgres = system.postgres
    assert postgres is not None
    sb.delete(OTHER)
    getattr(postgres, fault)()
    try:
        hit = sb.get(PATH)
        assert (hit.status_code, hit.headers["x-cache"]) == (200, "HIT")
        for answer in (
            sb.get(OTHER),
            sb.put(PATH, json={"name": "Bea", "age": 2}),
            sb.delete(PATH),
            sb.get("/students"),
        ):
            assert answer.status_code == 503
            assert int(answer.headers["retry-after"]) > 0
            assert answer.headers["content-type"] == "application/problem+json"
        assert sb.get("/health/ready").status_code == 503
        assert sb.get("/health/live").status_code == 200
    finally:
        if fault == "freeze":
            postgres.thaw()
        else:
            postgres.start()
        bring_airflow_back(system)
    wait_until(lambda: sb.put(PATH, json={"name": "Bea", "age": 3}).is_success, "sb accepts writes again")
    wait_until(lambda: sb.get("/health/ready").status_code == 200, "sb is ready again")
