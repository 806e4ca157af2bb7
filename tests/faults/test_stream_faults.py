"""After a component has been killed, the caches hold everything that has been committed and published."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx
import redis as redis_client

from tests.faults.load import KEYS, Load, behind, published
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from local.system import System

FAULT_SECONDS = 3.0


def held(system: System) -> int:
    """Return how many of the load's rows sb has cached."""
    with redis_client.Redis.from_url(system.redis_urls["sb"]) as client:
        return sum((client.get(f"sb:student:{key}") or b"").startswith(b"V") for key in KEYS)


def survive(system: System, load: Load, fault: Callable[[], object], repair: Callable[[], object]) -> None:
    """Inject a fault under load, repair it, and wait until the caches hold everything that was published."""
    with load.running():
        wait_until(lambda: held(system) > len(KEYS) / 2, "sb has cached rows")
        wait_until(lambda: not behind(system, "sb"), "sb's cache is in step")
        fault()
        time.sleep(FAULT_SECONDS)
        repair()
        time.sleep(FAULT_SECONDS)
    assert load.acknowledged
    wait_until(lambda: not behind(system, "sb"), "sb's cache is in step after the fault")
    wait_until(lambda: not behind(system, "sa"), "sa's cache is in step after the fault")


def all_published(system: System, load: Load) -> bool:
    """Return whether the newest acknowledged version of each row has been published."""
    return published(system) == {str(key): version for key, version in load.acknowledged.items()}


def test_caches_catch_up_after_the_triggerer_is_killed(system: System, load: Load) -> None:
    triggerer = system.airflow.triggerer
    survive(system, load, triggerer.kill, triggerer.start)
    assert load.refused == 0
    wait_until(lambda: all_published(system, load), "all acknowledged writes are published")
    wait_until(lambda: not behind(system, "sb"), "sb's cache holds all of them")


def test_caches_catch_up_after_the_broker_is_killed(system: System, load: Load) -> None:
    assert system.kafka is not None
    survive(system, load, system.kafka.kill, system.kafka.start)
    assert load.refused == 0
    wait_until(lambda: all_published(system, load), "the producer has delivered its queued messages")
    wait_until(lambda: not behind(system, "sb"), "sb's cache holds all of them")


def test_reads_return_the_newest_version_after_redis_is_killed(system: System, load: Load) -> None:
    server = system.redis["sb"]
    survive(system, load, server.kill, server.start)
    assert load.refused == 0
    with httpx.Client(base_url=system.services["sb"].url) as sb:
        for key, version in load.acknowledged.items():
            assert sb.get(f"/students/{key}").headers["etag"] == f'"{version}"'


def test_caches_catch_up_after_a_service_is_killed_under_load(system: System, load: Load) -> None:
    sa = system.services["sa"]
    survive(system, load, sa.kill, sa.start)


def test_relay_publishes_what_a_killed_service_committed(system: System) -> None:
    assert system.kafka is not None
    sa, sb = system.services["sa"], system.services["sb"]
    path = f"/students/{KEYS[0]}"
    with httpx.Client(base_url=sa.url, timeout=20) as client:
        client.put(path, json={"name": "published", "age": 1})
        httpx.get(f"{sb.url}{path}")
        wait_until(lambda: not behind(system, "sb"), "sb's cache is in step")
        system.kafka.freeze()
        try:
            answer = client.put(path, json={"name": "committed", "age": 2})
            sa.kill()
        finally:
            system.kafka.thaw()
    assert answer.is_success
    sa.start()
    assert httpx.get(f"{sa.url}{path}").json()["name"] == "committed"
    version = int(answer.headers["etag"].strip('"'))
    wait_until(lambda: published(system).get(str(KEYS[0]), 0) >= version, "the relay has published it")
    wait_until(lambda: not behind(system, "sb"), "sb's cache holds it")
    read = httpx.get(f"{sb.url}{path}")
    assert (read.headers["x-cache"], read.json()["name"]) == ("HIT", "committed")
