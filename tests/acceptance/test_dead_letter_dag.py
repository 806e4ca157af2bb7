"""Dead letters in the whole system: parked and brought back by the DAG `dead_letter_retry`."""

from __future__ import annotations

import json
import secrets
import time
from typing import TYPE_CHECKING, Any

import httpx
import pytest
import redis
from confluent_kafka import Producer

from cachesync.slots.layout import encode_value
from local.postgres import run_sql
from tests.acceptance.dag_runs import run_dag

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from local.system import System


@pytest.fixture(scope="module")
def dag(system: System, log_in: Callable[[str, str], httpx.Client]) -> httpx.Client:
    """Airflow's REST API at the DAG."""
    client = log_in(system.airflow.username, system.airflow.password)
    client.base_url = client.base_url.join("/api/v2/dags/dead_letter_retry")
    return client


@pytest.fixture
def slots(system: System) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(system.redis_urls["sb"]) as client:
        yield client


@pytest.fixture
def key() -> str:
    return str(secrets.randbelow(10**9) + 10**9)


def letters(dag: httpx.Client, key: str) -> list[dict[str, Any]]:
    """The open letters about a row, as the DAG lists them."""
    _, state, answer = run_dag(dag, "letters", action="list", keys=[key])
    assert state == "success"
    found: list[dict[str, Any]] = answer["letters"]
    return found


def audit(system: System, key: str) -> list[tuple[str | None, ...]]:
    """What was done about a row: action, attempt, actor and reason."""
    lines = run_sql(
        system.dsn,
        "SELECT json_build_array(action, attempt::text, actor, reason) FROM cachesync.dead_letter_action"
        " WHERE key = :'key' ORDER BY id",
        key=key,
    )
    return [tuple(json.loads(line)) for line in lines.splitlines()]


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline, what
        time.sleep(0.5)


def test_what_a_cache_refuses_is_retried_parked_and_replayed_when_its_cause_is_gone(
    system: System, dag: httpx.Client, slots: redis.Redis, key: str
) -> None:
    name = f"sb:student:{key}"
    slots.rpush(name, "no slot")
    run_sql(system.dsn, "INSERT INTO student (id, name) VALUES (:key, 'Ann')", key=key)

    def parked() -> bool:
        run_dag(dag, "letters")
        return any(action == "parked" for action, *_ in audit(system, key))

    wait_until(parked, "the letter is not parked")
    # The run of the minute may have done either.
    assert [done[:2] for done in audit(system, key)] == [("retried", "2"), ("parked", "3")]
    (letter,) = letters(dag, key)
    assert letter["letter"].startswith("parking-lot:")
    assert (letter["service"], letter["attempt"], letter["maximum"]) == ("sb", 3, 3)
    assert "WRONGTYPE" in letter["error"]

    slots.delete(name)
    slots.set(name, encode_value(1, b"01234567", b"{}"))
    run, state, answer = run_dag(dag, "letters", action="replay", letters=[letter["letter"]])
    assert (state, answer["letters"]) == ("success", {"resolved": 1})
    slot = slots.get(name)
    assert isinstance(slot, bytes)
    assert b'"Ann"' in slot
    assert audit(system, key)[-1] == ("resolved", "3", f"airflow {run}", None)
    assert letters(dag, key) == []


def test_the_undecodable_is_parked_at_once_and_discarded_with_a_reason(
    system: System, dag: httpx.Client, key: str
) -> None:
    producer = Producer({"bootstrap.servers": system.bootstrap_servers})
    producer.produce("cachesync.student", key=key.encode(), value=b"poison")
    assert producer.flush(30) == 0

    def parked() -> bool:
        run_dag(dag, "letters")
        return len(audit(system, key)) == 2

    wait_until(parked, "the letters are not parked")
    assert [done[:2] for done in audit(system, key)] == [("parked", "1"), ("parked", "1")]
    found = letters(dag, key)
    assert {letter["service"] for letter in found} == {"sa", "sb"}
    assert {letter["stage"] for letter in found} == {"decode"}

    _, state, _ = run_dag(dag, "letters", action="discard", keys=[key])
    assert state == "failed"
    run, state, answer = run_dag(dag, "letters", action="discard", keys=[key], reason="a test's")
    assert (state, answer["letters"]) == ("success", {"discarded": 2})
    assert audit(system, key)[-1] == ("discarded", "1", f"airflow {run}", "a test's")
    assert letters(dag, key) == []


def test_a_run_is_refused_where_it_asks_for_what_is_not_there(dag: httpx.Client) -> None:
    for conf in ({"action": "burn"}, {"letters": ["17"]}, {"services": ["nobody"]}, {"rate": 0}):
        answer = dag.post("/dagRuns", json={"logical_date": None, "conf": conf})
        assert answer.status_code == httpx.codes.BAD_REQUEST, answer.text
