"""Two triggerers share the consumers of the caches; when one is killed, the other does all of it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

import httpx
import pytest
import redis as redis_client

from local.postgres import run_sql
from tests.faults.load import wait_until

if TYPE_CHECKING:
    from local.system import System

KEYS = range(4000, 4200)
# Three consumers of each cache, and the relay.
TRIGGERS = 7
# The second triggerer leaves some to the first, and each of them has consumers.
CAPACITY = 4


def metadata(system: System, statement: str) -> list[str]:
    return run_sql(system.dsn.rpartition("/")[0] + "/airflow", statement).splitlines()


def newest(system: System) -> str:
    """The triggerer that was started last."""
    return metadata(system, "SELECT max(id) FROM job WHERE job_type = 'TriggererJob'")[0]


def shares(system: System) -> Counter[str]:
    """How many triggers each triggerer has taken."""
    return Counter(metadata(system, "SELECT triggerer_id FROM trigger"))


def change_all_rows(system: System) -> None:
    """Change them past the services, so that each cache depends on its consumers, and they on the relay."""
    first, last = KEYS[0], KEYS[-1]
    run_sql(system.dsn, f"UPDATE student SET age = (age + 1) % 100 WHERE id BETWEEN {first} AND {last}")


def in_step(system: System) -> bool:
    """Whether each cache holds each row as it is in the database."""
    statement = f"SELECT row_version FROM student WHERE id BETWEEN {KEYS[0]} AND {KEYS[-1]} ORDER BY id"
    expected = [b"V%019d" % int(version) for version in run_sql(system.dsn, statement).splitlines()]
    return all(slots(system, service) == expected for service in system.services)


def slots(system: System, service: str) -> list[bytes]:
    """Of each row's slot, the kind and the version."""
    with redis_client.Redis.from_url(system.redis_urls[service]) as client:
        return [(client.get(f"{service}:student:{key}") or b"")[:20] for key in KEYS]


@pytest.fixture
def cached_rows(system: System) -> None:
    """Rows that every cache holds."""
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
def test_a_triggerer_takes_over_the_consumers_of_a_killed_one(system: System) -> None:
    first = system.airflow.triggerer
    wait_until(lambda: shares(system) == {newest(system): TRIGGERS}, "the first triggerer has everything")
    with system.airflow.another_triggerer(CAPACITY) as second:
        killed = newest(system)
        try:
            # What runs stays where it is: there is something to share only when a triggerer ends.
            first.stop()
            wait_until(lambda: shares(system)[killed] == CAPACITY, "the second takes what it has room for")
        finally:
            first.start()
        left = newest(system)
        both = {killed: CAPACITY, left: TRIGGERS - CAPACITY}
        wait_until(lambda: shares(system) == both, "the first takes the rest")
        change_all_rows(system)
        wait_until(lambda: in_step(system), "changes reach every cache")
        change_all_rows(system)
        second.kill()
        change_all_rows(system)
        wait_until(lambda: shares(system) == {left: TRIGGERS}, "the first takes over")
        wait_until(lambda: in_step(system), "what was changed meanwhile is in every cache")
