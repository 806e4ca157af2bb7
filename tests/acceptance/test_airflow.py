"""The DAGs on a running Airflow."""

from __future__ import annotations

import time
from contextlib import suppress
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

import httpx
import psutil
import pytest
from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from local.postgres import run_sql
from local.service import credentials
from tests.acceptance.dag_runs import run_dag
from tests.faults.supervisor import metadata
from tests.waiting import wait_until

if TYPE_CHECKING:
    from local.system import System


def test_all_dags_load_without_errors(api: httpx.Client) -> None:
    assert api.get("/api/v2/importErrors").json()["import_errors"] == []
    dags = api.get("/api/v2/dags").json()["dags"]
    assert {dag["dag_id"] for dag in dags} == {
        "cache_sync",
        "dead_letter_retry",
        "live_check",
        "outbox_relay",
        "reconcile",
        "stream_check",
    }
    assert all(dag["is_paused"] is False for dag in dags)


@pytest.mark.timeout(600)
def test_each_consumer_of_each_cache_is_a_deferred_sensor(system: System, api: httpx.Client) -> None:
    wait_until_all_are_deferred(system)
    deadline = time.monotonic() + 60
    states: dict[str, str] = {}
    while set(states.values()) != {"deferred"} or len(states) != 6:
        assert time.monotonic() < deadline, f"{states}"
        time.sleep(0.5)
        runs = api.get("/api/v2/dags/cache_sync/dagRuns", params={"state": "running"}).json()["dag_runs"]
        if runs:
            url = f"/api/v2/dags/cache_sync/dagRuns/{runs[0]['dag_run_id']}/taskInstances"
            instances = api.get(url).json()["task_instances"]
            states = {one["task_id"]: one["state"] for one in instances if one["state"] != "removed"}
    assert set(states) == {f"apply_{service}_{member}" for service in ("sa", "sb") for member in range(3)}


def test_triggerer_exports_all_of_its_work_on_one_port(system: System) -> None:
    def exported() -> set[str]:
        with suppress(httpx.TransportError):
            text = httpx.get(system.airflow.metrics_url).text
            return {line.rpartition(" ")[0] for line in text.splitlines() if line.startswith("cachesync_")}
        return set()

    wanted = {'cachesync_streams{service="sa"}', 'cachesync_streams{service="sb"}', "cachesync_backlog"}
    wait_until(lambda: wanted <= exported(), "both streams and the relay are exported")
    assert not [
        name for name in exported() if name.startswith(("cachesync_hits", "cachesync_published_total"))
    ]


def deferred(system: System) -> dict[str, int]:
    """Return the newest trigger of each deferred task of the streams and the relay."""
    lines = run_sql(
        metadata(system),
        "SELECT task_id, max(trigger_id) FROM task_instance "
        "WHERE state = 'deferred' AND dag_id IN ('cache_sync', 'outbox_relay') GROUP BY task_id",
    )
    return {task: int(trigger) for task, trigger in (line.split("|") for line in lines.splitlines())}


def wait_until_all_are_deferred(system: System) -> None:
    """Wait for longer than Airflow takes to run a task again that was lost between its processes."""
    try:
        wait_until(lambda: len(deferred(system)) == 7, "all tasks are deferred", 240)
    except AssertionError as error:
        error.add_note(
            run_sql(
                metadata(system),
                "SELECT task_id, state, try_number, queued_dttm, start_date, end_date, last_heartbeat_at "
                "FROM task_instance WHERE dag_id IN ('cache_sync', 'outbox_relay') ORDER BY queued_dttm",
            )
        )
        raise


@pytest.mark.timeout(600)
@pytest.mark.parametrize("tasks", ["apply_sb", "apply_sb_1", "relay"])
def test_deleted_tasks_are_replaced_and_the_caches_keep_following(system: System, tasks: str) -> None:
    """`airflow db clean` deletes deferred tasks that are older than its cut-off."""
    wait_until_all_are_deferred(system)
    before = deferred(system)
    run_sql(
        metadata(system),
        "DELETE FROM trigger USING task_instance AS task "
        "WHERE task.trigger_id = trigger.id AND starts_with(task.task_id, :'tasks')",
        tasks=tasks,
    )
    replaced = {task for task in before if task.startswith("apply") == tasks.startswith("apply")}

    def recovered() -> bool:
        now = deferred(system)
        return now.keys() == before.keys() and all(now[task] > before[task] for task in replaced)

    wait_until(recovered, "all tasks of the run are deferred again", 240)
    test_row_changed_with_psql_is_updated_in_a_cache_that_holds_it(system)
    test_three_consumers_of_a_cache_share_its_three_partitions(system)


def test_check_of_the_streams_succeeds(api: httpx.Client) -> None:
    dag = httpx.Client(base_url=f"{api.base_url}/api/v2/dags/stream_check", headers=api.headers, timeout=30)
    with dag:
        assert run_dag(dag, "check")[1] == "success"


def test_no_process_has_a_password_in_its_command_line(system: System) -> None:
    assert system.postgres is not None
    secrets = [system.postgres.password, system.airflow.password, system.airflow.jenkins_password]
    secrets += [unquote(str(urlsplit(system.worker_dsn).password)), credentials("sa").password]
    lines = []
    for member in (member for process in system.processes for member in process.tree()):
        with suppress(psutil.NoSuchProcess):  # Airflow's processes come and go
            lines.append(" ".join(member.cmdline()))
    assert any("gunicorn" in line for line in lines)
    assert not [line for line in lines if any(secret in line for secret in secrets)]


def test_three_consumers_of_a_cache_share_its_three_partitions(system: System) -> None:
    admin = AdminClient({"bootstrap.servers": system.bootstrap_servers})
    deadline = time.monotonic() + 60
    shares: list[int] = []
    while shares != [1, 1, 1]:
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
