"""The DAG `reconcile` on a running Airflow, triggered through the REST API."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import httpx
import redis

from cachesync.value import encode_value
from local.postgres import run_sql
from tests.acceptance.dag_runs import run_dag
from tests.integration.refusals import refusing

if TYPE_CHECKING:
    from local.system import System


def test_run_repairs_drift_and_reports_it(system: System, dag: httpx.Client, slots: redis.Redis) -> None:
    key = secrets.randbelow(10**9) + 10**9
    name = f"sb:student:{key}"
    run_sql(system.dsn, "INSERT INTO student (id, name) VALUES (:key, 'Ann')", key=str(key))
    ahead = encode_value(10**18, b"abcdef01", b"{}")
    slots.set(name, ahead)
    orphan = f"sb:student:{key + 1}"
    slots.set(orphan, ahead)

    _, state, report = run_dag(dag, "report", services=["sb"], dry_run=True)
    assert (state, report["outcome"]) == ("success", "drift")
    assert slots.get(name) == ahead

    run, state, report = run_dag(
        dag, "report", services=["sb"], entities=["student"], mode="full", rate_limit=100_000
    )
    assert (state, report["outcome"], report["run"]) == ("success", "repaired", run)
    found = report["services"]["sb"]["student"]
    assert (found["ahead"], found["orphan"], found["repaired"]) == (1, 1, 2)
    assert report["samples"] == {"ahead": [name], "orphan": [orphan]}
    assert not slots.exists(name, orphan)
    chunks = dag.get(f"/dagRuns/{run}/taskInstances").json()["task_instances"]
    assert {one["rendered_map_index"] for one in chunks if one["task_id"] == "reconcile_chunk"} == {"sb 1/1"}


def test_run_that_cannot_repair_a_slot_fails_and_still_reports_it(system: System, dag: httpx.Client) -> None:
    name = f"sa:student:{secrets.randbelow(10**9) + 10**9}"
    with redis.Redis.from_url(system.redis_urls["sa"]) as slots:
        slots.set(name, "not a slot")
        with refusing(slots, "no deletes"):
            _, state, report = run_dag(dag, "report", services=["sa"])
        slots.delete(name)
    assert (state, report["outcome"]) == ("failed", "unrepaired")
    assert report["samples"]["failed"] == [name]


def test_run_with_invalid_parameters_is_rejected(dag: httpx.Client) -> None:
    for conf in ({"services": ["nobody"]}, {"mode": "half"}, {"rate_limit": 0}, {"rate_limit": 10**30}):
        answer = dag.post("/dagRuns", json={"logical_date": None, "conf": conf})
        assert answer.status_code == httpx.codes.BAD_REQUEST, answer.text
