"""The DAGs on a running Airflow."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import httpx
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from local.postgres import run_sql

if TYPE_CHECKING:
    from local.system import System


def test_all_dags_load_without_errors(api: httpx.Client) -> None:
    assert api.get("/api/v2/importErrors").json()["import_errors"] == []
    dags = api.get("/api/v2/dags").json()["dags"]
    assert {dag["dag_id"] for dag in dags} == {"cache_sync", "dead_letter_retry", "outbox_relay", "reconcile"}
    assert all(dag["is_paused"] is False for dag in dags)


def test_each_consumer_of_each_cache_is_a_deferred_sensor(api: httpx.Client) -> None:
    deadline = time.monotonic() + 60
    states: dict[str, str] = {}
    while set(states.values()) != {"deferred"} or len(states) != 6:
        assert time.monotonic() < deadline, states
        time.sleep(0.5)
        runs = api.get("/api/v2/dags/cache_sync/dagRuns", params={"state": "running"}).json()["dag_runs"]
        if runs:
            url = f"/api/v2/dags/cache_sync/dagRuns/{runs[0]['dag_run_id']}/taskInstances"
            instances = api.get(url).json()["task_instances"]
            states = {one["task_id"]: one["state"] for one in instances if one["state"] != "removed"}
    assert set(states) == {f"apply_{service}_{member}" for service in ("sa", "sb") for member in range(3)}


def test_three_consumers_of_a_cache_share_its_six_partitions(system: System) -> None:
    admin = AdminClient({"bootstrap.servers": system.bootstrap_servers})
    deadline = time.monotonic() + 60
    shares: list[int] = []
    while shares != [2, 2, 2]:
        assert time.monotonic() < deadline, shares
        time.sleep(0.5)
        try:
            group = admin.describe_consumer_groups(["cachesync-sb"])["cachesync-sb"].result(10)
        except KafkaException:  # for example because the coordinator is still loading
            continue
        assigned = [member.assignment.topic_partitions for member in group.members]
        shares = [sum(one.topic == "cachesync.student" for one in partitions) for partitions in assigned]


def test_row_changed_with_psql_is_updated_in_a_cache_that_holds_it(system: System) -> None:
    run_sql(system.dsn, "INSERT INTO student VALUES (3000, 'Ann', 20) ON CONFLICT (id) DO NOTHING")
    with httpx.Client(base_url=system.services["sb"].url, timeout=20) as sb:
        sb.get("/students/3000")
        run_sql(system.dsn, "UPDATE student SET name = 'Bea' || age, age = (age + 1) % 100 WHERE id = 3000")
        expected = run_sql(system.dsn, "SELECT name FROM student WHERE id = 3000")
        deadline = time.monotonic() + 60
        while (read := sb.get("/students/3000")).json()["name"] != expected:
            assert time.monotonic() < deadline
            assert read.headers["x-cache"] == "HIT"
            time.sleep(0.05)
        assert read.headers["x-cache"] == "HIT"
