"""After each part of the system was killed: what had been committed and published is in the caches."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx
import redis as redis_client

from tests.faults.load import KEYS, Load, behind, published, wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    from local.system import System

FAULT_SECONDS = 3.0


def held(system: System) -> int:
    """How many of the load's rows sb has cached."""
    with redis_client.Redis.from_url(system.redis_urls["sb"]) as client:
        return sum((client.get(f"sb:student:{key}") or b"").startswith(b"V") for key in KEYS)


def survive(system: System, load: Load, fault: Callable[[], object], repair: Callable[[], object]) -> None:
    """Put a fault into the load, repair it, and wait until sb's cache holds all that was published."""
    with load.running():
        wait_until(lambda: held(system) > len(KEYS) / 2, "sb has rows cached")
        wait_until(lambda: not behind(system, "sb"), "the stream is in step")
        fault()
        time.sleep(FAULT_SECONDS)
        repair()
        time.sleep(FAULT_SECONDS)
    assert load.acknowledged
    wait_until(lambda: not behind(system, "sb"), "sb's cache holds what was published")
    wait_until(lambda: not behind(system, "sa"), "sa's cache holds what was published")


def all_published(system: System, load: Load) -> bool:
    """Whether the newest acknowledged version of each row is published."""
    return published(system) == {str(key): version for key, version in load.acknowledged.items()}


def test_a_killed_triggerer(system: System, load: Load) -> None:
    triggerer = system.airflow.triggerer
    survive(system, load, triggerer.kill, triggerer.start)
    assert load.refused == 0
    wait_until(lambda: all_published(system, load), "what was acknowledged is published")
    wait_until(lambda: not behind(system, "sb"), "sb's cache holds all of it")


def test_a_killed_broker(system: System, load: Load) -> None:
    assert system.kafka is not None
    survive(system, load, system.kafka.kill, system.kafka.start)
    assert load.refused == 0
    wait_until(lambda: all_published(system, load), "the producer delivers what it held back")
    wait_until(lambda: not behind(system, "sb"), "sb's cache holds that too")


def test_a_killed_redis(system: System, load: Load) -> None:
    server = system.redis["sb"]
    survive(system, load, server.kill, server.start)
    assert load.refused == 0
    with httpx.Client(base_url=system.services["sb"].url) as sb:
        for key, version in load.acknowledged.items():
            assert sb.get(f"/students/{key}").headers["etag"] == f'"{version}"'


def test_a_service_killed_under_load(system: System, load: Load) -> None:
    sa = system.services["sa"]
    survive(system, load, sa.kill, sa.start)


def test_a_service_killed_between_commit_and_publication(system: System) -> None:
    """What it committed is published by the relay, and it serves nothing older itself."""
    assert system.kafka is not None
    sa, sb = system.services["sa"], system.services["sb"]
    path = f"/students/{KEYS[0]}"
    with httpx.Client(base_url=sa.url, timeout=20) as client:
        client.put(path, json={"name": "published", "age": 1})
        httpx.get(f"{sb.url}{path}")
        wait_until(lambda: not behind(system, "sb"), "sb's cache holds what was published")
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
    wait_until(lambda: published(system).get(str(KEYS[0]), 0) >= version, "the relay publishes it")
    wait_until(lambda: not behind(system, "sb"), "sb's cache holds that too")
    read = httpx.get(f"{sb.url}{path}")
    assert (read.headers["x-cache"], read.json()["name"]) == ("HIT", "committed")
