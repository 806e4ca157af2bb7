"""Dead letters on the whole system: the DAG `dead_letter_retry` retries, parks, replays and discards them."""

from __future__ import annotations

import json
import secrets
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from confluent_kafka import Producer

from cachesync.value import encode_value
from local.postgres import run_sql
from tests.acceptance.dag_runs import run_dag
from tests.integration.refusals import denying
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable

    import redis

    from local.system import System


@pytest.fixture(scope="module")
def dag(system: System, log_in: Callable[[str, str], httpx.Client]) -> httpx.Client:
    """The REST API of the DAG, as the administrator."""
    client = log_in(system.airflow.username, system.airflow.password)
    client.base_url = client.base_url.join("/api/v2/dags/dead_letter_retry")
    return client


@pytest.fixture
def key() -> str:
    return str(secrets.randbelow(10**9) + 10**9)


def letters(dag: httpx.Client, key: str) -> list[dict[str, Any]]:
    """Return the open letters about a row, as the DAG lists them."""
    _, state, answer = run_dag(dag, "letters", action="list", keys=[key])
    assert state == "success"
    found: list[dict[str, Any]] = answer["letters"]
    return found


def audit(system: System, key: str) -> list[tuple[str | None, ...]]:
    """Return the actions on a row's letters: action, attempt, actor and reason."""
    lines = run_sql(
        system.dsn,
        "SELECT json_build_array(action, attempt::text, actor, reason) FROM cachesync.dead_letter_action"
        " WHERE key = :'key' ORDER BY id",
        key=key,
    )
    return [tuple(json.loads(line)) for line in lines.splitlines()]


def test_change_that_a_cache_rejects_is_retried_parked_and_replayed_once_the_cause_is_fixed(
    system: System, dag: httpx.Client, slots: redis.Redis, key: str
) -> None:
    name = f"sb:student:{key}"

    def parked() -> bool:
        run_dag(dag, "letters")
        return any(action == "parked" for action, *_ in audit(system, key))

    with denying(slots, key[-1]):
        run_sql(system.dsn, "INSERT INTO student (id, name) VALUES (:key, 'Ann')", key=key)
        wait_until(parked, "the letter is parked")
    # Either run can have done this: this test's, or the one scheduled every minute.
    assert [done[:2] for done in audit(system, key)] == [("retried", "2"), ("parked", "3")]
    (letter,) = letters(dag, key)
    assert letter["letter"].startswith("parking-lot:")
    assert (letter["service"], letter["attempt"], letter["maximum"]) == ("sb", 3, 3)
    assert "to access" in letter["error"]

    slots.set(name, encode_value(1, b"01234567", b"{}"))
    run, state, answer = run_dag(dag, "letters", action="replay", letters=[letter["letter"]])
    assert (state, answer["letters"]) == ("success", {"resolved": 1})
    slot = slots.get(name)
    assert isinstance(slot, bytes)
    assert b'"Ann"' in slot
    assert audit(system, key)[-1] == ("resolved", "3", f"airflow {run}", None)
    assert letters(dag, key) == []


def test_undecodable_message_is_parked_immediately_and_discarded_with_a_reason(
    system: System, dag: httpx.Client, key: str
) -> None:
    producer = Producer({"bootstrap.servers": system.bootstrap_servers})
    producer.produce("cachesync.student", key=key.encode(), value=b"poison")
    assert producer.flush(30) == 0

    def parked() -> bool:
        run_dag(dag, "letters")
        return len(audit(system, key)) == 2

    wait_until(parked, "the letters of both caches are parked")
    assert [done[:2] for done in audit(system, key)] == [("parked", "1"), ("parked", "1")]
    found = letters(dag, key)
    assert {letter["service"] for letter in found} == {"sa", "sb"}
    assert {letter["stage"] for letter in found} == {"decode"}

    _, state, _ = run_dag(dag, "letters", action="discard", keys=[key])
    assert state == "failed"
    run, state, answer = run_dag(dag, "letters", action="discard", keys=[key], reason="test message")
    assert (state, answer["letters"]) == ("success", {"discarded": 2})
    assert audit(system, key)[-1] == ("discarded", "1", f"airflow {run}", "test message")
    assert letters(dag, key) == []


def test_run_with_invalid_parameters_is_rejected(dag: httpx.Client) -> None:
    for conf in ({"action": "burn"}, {"letters": ["17"]}, {"services": ["nobody"]}, {"rate": 0}):
        answer = dag.post("/dagRuns", json={"logical_date": None, "conf": conf})
        assert answer.status_code == httpx.codes.BAD_REQUEST, answer.text
