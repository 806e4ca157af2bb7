"""The DAG files, sensors and triggers, without a running Airflow."""

from __future__ import annotations

import asyncio
import os
import threading
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from pydantic import ValidationError

from cachesync.errors import CacheSyncError, StreamError

if TYPE_CHECKING:
    from airflow.sdk import DAG

REPOSITORY = Path(__file__).parents[2]

# Airflow reads them on import, in the tests below; by default it would use the user's home directory.
os.environ.setdefault("AIRFLOW_HOME", str(REPOSITORY / ".local" / "test" / "airflow-home"))
os.environ.setdefault("AIRFLOW__CORE__UNIT_TEST_MODE", "False")

DAG_FILES = {
    "cache_sync.py": {"cache_sync"},
    "dead_letter_retry.py": {"dead_letter_retry"},
    "outbox_relay.py": {"outbox_relay"},
    "reconcile.py": {"reconcile"},
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


@pytest.mark.parametrize("dag_id", ["cache_sync", "outbox_relay"])
def test_sensor_defers_to_a_trigger_that_survives_serialization(dag_id: str) -> None:
    from airflow.sdk.exceptions import TaskDeferred  # noqa: PLC0415
    from cachesync_airflow.sensors.cache_sync import CacheSyncSensor  # noqa: PLC0415
    from cachesync_airflow.sensors.outbox_relay import OutboxRelaySensor  # noqa: PLC0415

    sensors = {
        "cache_sync": CacheSyncSensor(task_id="apply", service="sb", member=1),
        "outbox_relay": OutboxRelaySensor(task_id="relay"),
    }
    with pytest.raises(TaskDeferred) as deferred:
        sensors[dag_id].execute({})
    path, arguments = deferred.value.trigger.serialize()
    module, _, name = path.rpartition(".")
    again: Any = getattr(import_module(module), name)(**arguments)
    assert again.serialize() == (path, arguments)
    assert deferred.value.timeout is None


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
    with pytest.raises(ValidationError, match="change_log_retention_days"):
        OutboxRelayTrigger().open()
    monkeypatch.setenv("CACHESYNC_CHANGE_LOG_RETENTION_DAYS", "3")
    relay = OutboxRelayTrigger().open()
    # Neither server responds; the relay waits for both until it is stopped.
    running = asyncio.create_task(asyncio.to_thread(relay.run))
    await asyncio.sleep(1)
    assert not running.done()
    relay.stop()
    await asyncio.wait_for(running, 10)


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
