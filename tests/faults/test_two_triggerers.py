"""Two triggerers share the caches' consumers; when one is killed, the other takes over all of them."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import httpx
import pytest
import redis as redis_client

from local.postgres import run_sql
from tests.faults.supervisor import metadata
from tests.waiting import wait_until

if TYPE_CHECKING:
    from local.system import System

KEYS = range(4000, 4200)
# Three consumers of each cache, the relay and the live check.
TRIGGERS = 8
# Low enough that the second triggerer leaves some triggers to the first, and both have consumers.
CAPACITY = 4


def newest(system: System) -> str:
    """Return the ID of the triggerer that was started last."""
    return run_sql(metadata(system), "SELECT max(id) FROM job WHERE job_type = 'TriggererJob'")


def shares(system: System) -> Counter[str]:
    """Return the number of triggers of each triggerer."""
    return Counter(run_sql(metadata(system), "SELECT triggerer_id FROM trigger").splitlines())


def change_all_rows(system: System) -> None:
    """Change the rows in SQL, so that each cache depends on its consumers, and these on the relay."""
    first, last = KEYS[0], KEYS[-1]
    run_sql(system.dsn, f"UPDATE student SET age = (age + 1) % 100 WHERE id BETWEEN {first} AND {last}")


def in_step(system: System) -> bool:
    """Return whether every cache holds the current version of every row."""
    statement = f"SELECT row_version FROM student WHERE id BETWEEN {KEYS[0]} AND {KEYS[-1]} ORDER BY id"
    expected = [b"V%019d" % int(version) for version in run_sql(system.dsn, statement).splitlines()]
    return all(slots(system, service) == expected for service in system.services)


def slots(system: System, service: str) -> list[bytes]:
    """Return the kind and the version of each row's slot."""
    with redis_client.Redis.from_url(system.redis_urls[service]) as client:
        return [(client.get(f"{service}:student:{key}") or b"")[:20] for key in KEYS]


@pytest.fixture
def cached_rows(system: System) -> None:
    """Rows that all caches hold."""
    run_sql(
        system.dsn,
        f"INSERT INTO student SELECT id, 'Ann', 20 FROM generate_series({KEYS[0]}, {KEYS[-1]}) AS id "
        "ON CONFLICT (id) DO NOTHING",
    )
    for service in system.services.values():
        with httpx.Client(base_url=service.url, timeout=20) as client:
            for key in KEYS:
                client.get(f"/students/{key}")


@pytest.mark.usefixtures("cached_rows")
def test_triggerer_takes_over_the_consumers_of_a_killed_one(system: System) -> None:
    first = system.airflow.triggerer
    wait_until(lambda: shares(system) == {newest(system): TRIGGERS}, "the first triggerer has all triggers")
    with system.airflow.another_triggerer(CAPACITY) as second:
        killed = newest(system)
        try:
            # Running triggers do not move: the second triggerer gets some only when the first ends.
            first.stop()
            wait_until(lambda: shares(system)[killed] == CAPACITY, "the second has as many as it can run")
        finally:
            first.start()
        left = newest(system)
        both = {killed: CAPACITY, left: TRIGGERS - CAPACITY}
        wait_until(lambda: shares(system) == both, "the first has the rest")
        change_all_rows(system)
        wait_until(lambda: in_step(system), "the changes are in every cache", seconds=120)
        change_all_rows(system)
        second.kill()
        change_all_rows(system)
        wait_until(lambda: shares(system) == {left: TRIGGERS}, "the first has taken over")
        wait_until(
            lambda: in_step(system), "changes made before the takeover are in every cache", seconds=120
        )
