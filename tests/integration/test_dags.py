"""The DAG files, sensors and triggers, without a running Airflow."""

from __future__ import annotations

import asyncio
import os
import re
import threading
from datetime import UTC, datetime, timedelta
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from structlog.testing import capture_logs

from cachesync.errors import CacheSyncError, SettingsError, StreamError

if TYPE_CHECKING:
    from airflow.sdk import DAG

REPOSITORY = Path(__file__).parents[2]

# Airflow reads them on import, in the tests below; by default it would use the user's home directory.
os.environ.setdefault("AIRFLOW_HOME", str(REPOSITORY / ".local" / "test" / "airflow-home"))
os.environ.setdefault("AIRFLOW__CORE__UNIT_TEST_MODE", "False")

DAG_FILES = {
    "cache_sync.py": {"cache_sync"},
    "dead_letter_retry.py": {"dead_letter_retry"},
    "live_check.py": {"live_check"},
    "outbox_relay.py": {"outbox_relay"},
    "reconcile.py": {"reconcile"},
    "stream_check.py": {"stream_check"},
}


@pytest.fixture
def _environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CACHESYNC_CACHES", "sa, sb")
    monkeypatch.setenv("CACHESYNC_ENTITIES", str(REPOSITORY / "entities.toml"))
    monkeypatch.setenv("CACHESYNC_CONSUMERS_PER_CACHE", "2")


@pytest.fixture
def dags(_environment: None) -> dict[str, DAG]:
    from airflow.dag_processing.dagbag import DagBag  # noqa: PLC0415 - importing Airflow takes seconds

    bag = DagBag(dag_folder=str(REPOSITORY / "dags"))
    assert bag.import_errors == {}
    return bag.dags


def test_every_dag_file_is_listed_and_defines_its_dags(dags: dict[str, DAG]) -> None:
    found: dict[str, set[str]] = {path.name: set() for path in (REPOSITORY / "dags").glob("*.py")}
    for dag in dags.values():
        found[Path(dag.fileloc).name].add(dag.dag_id)
    assert found == DAG_FILES


def test_every_dag_is_documented_and_has_no_concurrent_runs(dags: dict[str, DAG]) -> None:
    for dag in dags.values():
        assert dag.doc_md
        assert dag.max_active_runs == 1
        assert dag.catchup is False


def test_each_consumer_of_each_cache_is_a_task_with_its_name(dags: dict[str, DAG]) -> None:
    """The name must not change when services or consumers are added or removed."""
    tasks: Any = dags["cache_sync"].tasks
    assert {task.task_id: (task.service, task.member) for task in tasks} == {
        f"apply_{service}_{member}": (service, member) for service in ("sa", "sb") for member in (0, 1)
    }


def failure(task: Any, context: Any) -> str:
    """Execute a task that fails for good, and return the error."""
    from airflow.sdk.exceptions import AirflowFailException  # noqa: PLC0415 - importing Airflow takes seconds

    with pytest.raises(AirflowFailException) as failed:
        task.execute(context)
    return str(failed.value)


def numbers(dags: dict[str, DAG]) -> list[tuple[str, str, dict[str, Any]]]:
    found = []
    for dag in dags.values():
        for name in dag.params:
            schema = dag.params.get_param(name).schema
            if {"integer", "number"} & set(
                [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
            ):
                found.append((dag.dag_id, name, schema))
    return found


def test_every_number_among_the_parameters_has_a_range(dags: dict[str, DAG]) -> None:
    from airflow.sdk.exceptions import ParamValidationError  # noqa: PLC0415

    assert len(numbers(dags)) == 3
    for dag_id, name, schema in numbers(dags):
        assert {"minimum", "maximum"} <= schema.keys(), (dag_id, name)
        for value in (10**30, -(10**30), 1e308, 0):
            with pytest.raises(ParamValidationError):
                dags[dag_id].params.get_param(name).resolve(value)


@pytest.mark.parametrize(
    ("dag_id", "task_id", "given", "text"),
    [
        ("reconcile", "plan", {"rate": 5}, "'rate' is unknown; the parameters are services, "),
        (
            "reconcile",
            "plan",
            {"xyz": 1, "dryrun": 1},
            "'xyz' is unknown.*'dryrun' is unknown; did.* 'dry_run'",
        ),
        ("reconcile", "plan", {"rate_limit": 10**30}, "rate_limit must be at most 1000000000"),
        ("dead_letter_retry", "letters", {"service": "sb"}, "'service' is unknown; did you mean 'services'"),
        ("dead_letter_retry", "letters", {"action": "discard", "all": True}, "discard requires a reason"),
        (
            "dead_letter_retry",
            "letters",
            {"action": "list", "limit": 2**70},
            "limit must be at most 100000",
        ),
        (
            "dead_letter_retry",
            "letters",
            {"action": "replay", "rate": 1e-300},
            "rate must be at least 0.01",
        ),
    ],
)
def test_run_with_invalid_parameters_fails_at_once_with_one_line(
    dags: dict[str, DAG], dag_id: str, task_id: str, given: dict[str, Any], text: str
) -> None:
    context: Any = {"params": {**dags[dag_id].params.dump(), **given}}
    error = failure(dags[dag_id].get_task(task_id), context)
    assert re.search(text, error)
    assert "\n" not in error


@pytest.mark.parametrize(
    ("variable", "value", "text"),
    [
        ("CACHESYNC_CACHES", "Sa", "CACHESYNC_CACHES must be"),
        ("CACHESYNC_ENTITIES", "/none.toml", "/none.toml"),
        ("AIRFLOW_CONN_POSTGRES_CACHESYNC", None, "postgres_cachesync"),
    ],
)
def test_task_that_cannot_succeed_is_not_retried(
    monkeypatch: pytest.MonkeyPatch, dags: dict[str, DAG], variable: str, value: str | None, text: str
) -> None:
    for name in ("KAFKA_CACHESYNC", "REDIS_SA", "REDIS_SB"):
        monkeypatch.setenv(f"AIRFLOW_CONN_{name}", '{"conn_type": "http", "host": "127.0.0.1", "port": 1}')
    monkeypatch.setenv("AIRFLOW_CONN_POSTGRES_CACHESYNC", "postgresql://127.0.0.1:1/none")
    if value is None:
        monkeypatch.delenv(variable)
    else:
        monkeypatch.setenv(variable, value)
    for dag_id, task_id in (("reconcile", "plan"), ("dead_letter_retry", "letters")):
        dag = dags[dag_id]
        context = {
            "params": dag.params.dump(),
            "dag_run": SimpleNamespace(dag_id=dag_id, run_id="r", run_type="manual"),
        }
        assert text in failure(dag.get_task(task_id), context)


@pytest.mark.usefixtures("_environment")
@pytest.mark.parametrize("dag_id", ["cache_sync", "live_check", "outbox_relay"])
def test_sensor_defers_to_a_trigger_that_survives_serialization(dag_id: str) -> None:
    from airflow.sdk.exceptions import TaskDeferred  # noqa: PLC0415
    from cachesync_airflow.sensors.cache_sync import CacheSyncSensor  # noqa: PLC0415
    from cachesync_airflow.sensors.live_check import LiveCheckSensor  # noqa: PLC0415
    from cachesync_airflow.sensors.outbox_relay import OutboxRelaySensor  # noqa: PLC0415

    sensors = {
        "cache_sync": CacheSyncSensor(task_id="apply", service="sb", member=1),
        "live_check": LiveCheckSensor(task_id="look"),
        "outbox_relay": OutboxRelaySensor(task_id="relay"),
    }
    with pytest.raises(TaskDeferred) as deferred:
        sensors[dag_id].execute({})
    path, arguments = deferred.value.trigger.serialize()
    module, _, name = path.rpartition(".")
    again: Any = getattr(import_module(module), name)(**arguments)
    assert again.serialize() == (path, arguments)
    # Airflow fails a task whose trigger has not handed over, which is retried in the next run.
    assert timedelta(hours=12) < deferred.value.timeout < timedelta(hours=13)


@pytest.mark.usefixtures("_environment")
def test_sensors_hand_over_at_least_daily(monkeypatch: pytest.MonkeyPatch) -> None:
    from airflow.sdk.exceptions import TaskDeferred  # noqa: PLC0415
    from cachesync_airflow.sensors.cache_sync import CacheSyncSensor  # noqa: PLC0415

    sensor = CacheSyncSensor(task_id="apply", service="sb", member=1)
    started = datetime.now(UTC) - timedelta(hours=11)
    context: Any = {"dag_run": SimpleNamespace(start_date=started)}
    with pytest.raises(TaskDeferred) as deferred:
        sensor.execute(context)
    _, arguments = deferred.value.trigger.serialize()
    assert datetime.fromisoformat(arguments["until"]) == started + timedelta(hours=12)
    monkeypatch.setenv("CACHESYNC_HANDOVER_HOURS", "24.1")
    with pytest.raises(SettingsError, match="CACHESYNC_HANDOVER_HOURS must be at most 24"):
        sensor.execute(context)


@pytest.mark.usefixtures("_environment")
def test_sensor_that_is_retried_after_the_end_of_its_run_succeeds() -> None:
    """Its siblings have handed over, and the next run begins only when all tasks of this one have ended."""
    from cachesync_airflow.sensors.cache_sync import CacheSyncSensor  # noqa: PLC0415

    context: Any = {"dag_run": SimpleNamespace(start_date=datetime.now(UTC) - timedelta(hours=13))}
    CacheSyncSensor(task_id="apply", service="sb").execute(context)
    CacheSyncSensor(task_id="apply", service="sb").ended(context, {"handover": "the run's time is over"})


def test_sensor_fails_with_the_error_of_its_trigger() -> None:
    from cachesync_airflow.sensors.cache_sync import CacheSyncSensor  # noqa: PLC0415

    with pytest.raises(CacheSyncError, match="the broker is gone"):
        CacheSyncSensor(task_id="apply", service="sb").ended({}, "the broker is gone")


class FakeStream:
    """A stand-in for the stream, to test how the trigger runs and stops it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.started = threading.Event()
        self.stopped = threading.Event()
        self.left = threading.Event()
        self.error = error

    def run(self) -> None:
        self.started.set()
        if self.error is not None:
            raise self.error
        self.stopped.wait(30)
        self.left.set()

    def stop(self) -> None:
        self.stopped.set()


@pytest.mark.usefixtures("_environment")
async def test_relay_takes_its_connections_and_settings_from_airflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cachesync_airflow.triggers.outbox_relay import OutboxRelayTrigger  # noqa: PLC0415

    monkeypatch.setenv("AIRFLOW_CONN_POSTGRES_CACHESYNC", "postgresql://w:p%40ss@127.0.0.1:1/shop")
    monkeypatch.setenv(
        "AIRFLOW_CONN_KAFKA_CACHESYNC",
        '{"conn_type": "kafka", "extra": {"bootstrap.servers": "127.0.0.1:1"}}',
    )
    monkeypatch.setenv("CACHESYNC_CHANGE_LOG_RETENTION_DAYS", "0")
    with pytest.raises(SettingsError, match="CACHESYNC_CHANGE_LOG_RETENTION_DAYS must be at least 1"):
        OutboxRelayTrigger().open()
    monkeypatch.setenv("CACHESYNC_CHANGE_LOG_RETENTION_DAYS", "3")
    relay = OutboxRelayTrigger().open()
    # Neither server responds; the relay waits for both until it is stopped.
    running = asyncio.create_task(asyncio.to_thread(relay.run))
    await asyncio.sleep(1)
    assert not running.done()
    relay.stop()
    await asyncio.wait_for(running, 10)


@pytest.mark.usefixtures("_environment")
async def test_live_check_takes_its_connections_and_settings_from_airflow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cachesync_airflow.triggers.live_check import LiveCheckTrigger  # noqa: PLC0415

    monkeypatch.setenv("AIRFLOW_CONN_POSTGRES_CACHESYNC", "postgresql://w:p%40ss@127.0.0.1:1/shop")
    for service in ("sa", "sb"):
        monkeypatch.setenv(f"AIRFLOW_CONN_REDIS_{service.upper()}", "redis://127.0.0.1:1/0")
    check = LiveCheckTrigger().open()
    with capture_logs() as logs:
        running = asyncio.create_task(asyncio.to_thread(check.run))
        while not logs:
            await asyncio.sleep(0.01)
        check.stop()
        await asyncio.wait_for(running, 10)
    assert [log["event"] for log in logs] == ["live check paused: PostgreSQL unavailable"]


async def test_trigger_yields_the_error_of_a_stream_that_cannot_continue(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cachesync_airflow.triggers.cache_sync import CacheSyncTrigger  # noqa: PLC0415

    monkeypatch.setattr(CacheSyncTrigger, "open", lambda _: FakeStream(StreamError("cannot continue")))
    events = [event.payload async for event in CacheSyncTrigger("sb", 0).run()]
    assert events == ["StreamError: cannot continue"]


async def test_canceled_trigger_leaves_its_consumer_group_before_it_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from cachesync_airflow.triggers.cache_sync import CacheSyncTrigger  # noqa: PLC0415

    stream = FakeStream()
    monkeypatch.setattr(CacheSyncTrigger, "open", lambda _: stream)

    async def run() -> None:
        async for _ in CacheSyncTrigger("sb", 0).run():
            pytest.fail("a running stream yields nothing")

    running = asyncio.create_task(run())
    assert await asyncio.to_thread(stream.started.wait, 10)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert stream.left.is_set()
