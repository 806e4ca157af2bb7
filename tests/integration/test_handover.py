"""How triggers hand over to those of the next run, without Airflow: its answers are given by the tests."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest

import tests.integration.test_dags  # noqa: F401 - sets Airflow's environment

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cachesync_airflow.triggers.cache_sync import CacheSyncTrigger

TASKS = ["apply_sa_0", "apply_sb_0"]
DEFERRED = dict.fromkeys(TASKS, "deferred")


class FakeStream:
    """A stand-in for the stream, to test who runs and stops it."""

    def __init__(self, error: Exception | None = None) -> None:
        self.stopped = threading.Event()
        self.left = threading.Event()
        self.error = error

    def run(self) -> None:
        if self.error is not None:
            raise self.error
        self.stopped.wait(30)
        self.left.set()

    def stop(self) -> None:
        self.stopped.set()


class FakeAirflow:
    """The state of Airflow's database."""

    def __init__(self) -> None:
        self.states: dict[str, str] | None = dict(DEFERRED)
        self.looks = 0
        self.deferred = 0
        self.run_state = "running"
        self.streams: list[FakeStream] = []

    def get_task_states(self, *, dag_id: str, run_ids: list[str]) -> dict[str, dict[str, str]]:
        self.looks += 1
        if self.states is None:
            raise OSError(dag_id)
        return {run_ids[0]: dict(self.states)} if self.states else {}

    def get_ti_count(self, *, dag_id: str, task_ids: list[str], states: list[str]) -> int:
        assert (dag_id, task_ids, states) == ("cache_sync", ["apply_sb_0"], ["deferred"])
        self.looks += 1
        return self.deferred

    def get_dr_count(self, *, dag_id: str, run_ids: list[str], states: list[str]) -> int:
        assert (dag_id, run_ids) == ("cache_sync", ["one"])
        return int(self.run_state in states)

    async def look(self, times: int = 2) -> None:
        """Wait until the triggers have looked at the state that often."""
        until = self.looks + times
        async with asyncio.timeout(20):
            while self.looks < until:
                await asyncio.sleep(0.01)


@pytest.fixture
def airflow(monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeAirflow]:
    from cachesync_airflow.triggers import thread, work  # noqa: PLC0415 - importing Airflow takes seconds
    from cachesync_airflow.triggers.cache_sync import CacheSyncTrigger  # noqa: PLC0415

    fake = FakeAirflow()

    def opened(_: CacheSyncTrigger) -> FakeStream:
        fake.streams.append(FakeStream())
        return fake.streams[-1]

    monkeypatch.setattr(thread, "RuntimeTaskInstance", fake)
    monkeypatch.setattr(work, "LOOK_SECONDS", 0.05)
    monkeypatch.setattr(CacheSyncTrigger, "open", opened)
    yield fake
    for stream in fake.streams:
        stream.stop()


def trigger(hours: float = 1, run: str = "one") -> CacheSyncTrigger:
    from cachesync_airflow.triggers.cache_sync import CacheSyncTrigger  # noqa: PLC0415

    made = CacheSyncTrigger(
        "sb", 0, until=(datetime.now(UTC) + timedelta(hours=hours)).isoformat(), tasks=TASKS
    )
    path, arguments = made.serialize()
    again: CacheSyncTrigger = type(made)(**arguments)
    assert again.serialize() == (path, arguments)
    task: Any = SimpleNamespace(dag_id="cache_sync", run_id=run, task_id="apply_sb_0")
    again.task_instance = task
    return again


async def payloads(made: CacheSyncTrigger) -> list[Any]:
    return [event.payload async for event in made.run()]


async def started(airflow: FakeAirflow, made: CacheSyncTrigger, streams: int = 1) -> asyncio.Task[list[Any]]:
    running = asyncio.create_task(payloads(made))
    async with asyncio.timeout(20):
        while len(airflow.streams) < streams:
            await asyncio.sleep(0.01)
    return running


async def ended(running: asyncio.Task[list[Any]]) -> str:
    [payload] = await asyncio.wait_for(running, 20)
    reason: str = payload["handover"]
    return reason


def delete_a_sibling(airflow: FakeAirflow) -> None:
    airflow.states = {"apply_sb_0": "deferred"}


def hand_a_sibling_over(airflow: FakeAirflow) -> None:
    airflow.states = DEFERRED | {"apply_sa_0": "success"}


@pytest.mark.parametrize(
    ("happen", "reason"),
    [
        (delete_a_sibling, "deleted from Airflow's database: apply_sa_0"),
        (hand_a_sibling_over, "handed over already: apply_sa_0"),
    ],
)
async def test_next_trigger_takes_over_the_running_stream(
    airflow: FakeAirflow, happen: Callable[[FakeAirflow], None], reason: str
) -> None:
    first = await started(airflow, trigger())
    happen(airflow)
    assert await ended(first) == reason
    airflow.states = dict(DEFERRED)
    second = asyncio.create_task(payloads(trigger(run="two")))
    await airflow.look(3)
    assert len(airflow.streams) == 1
    assert not airflow.streams[0].stopped.is_set()
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert airflow.streams[0].left.is_set()


async def test_trigger_hands_over_when_the_time_of_its_run_is_over(airflow: FakeAirflow) -> None:
    first = await started(airflow, trigger(hours=0.5 / 3600))
    assert await ended(first) == "the run's time is over"
    assert not airflow.streams[0].stopped.is_set()


async def test_trigger_without_a_stream_hands_over_at_once_if_its_run_is_ending(airflow: FakeAirflow) -> None:
    """For example the trigger of a sensor that is retried after its siblings have handed over."""
    hand_a_sibling_over(airflow)
    assert await ended(asyncio.create_task(payloads(trigger()))) == "handed over already: apply_sa_0"
    assert not airflow.streams


async def test_stream_continues_while_airflow_does_not_respond(airflow: FakeAirflow) -> None:
    airflow.states = None
    running = await started(airflow, trigger())
    await airflow.look(3)
    assert not running.done()
    airflow.states = dict(DEFERRED)
    await airflow.look()
    assert not running.done()
    running.cancel()


async def test_removed_and_failing_siblings_do_not_end_a_run(airflow: FakeAirflow) -> None:
    airflow.states = {"apply_sb_0": "deferred", "apply_sa_0": "up_for_retry", "apply_sa_1": "removed"}
    running = await started(airflow, trigger())
    await airflow.look(3)
    assert not running.done()
    running.cancel()


async def test_stream_that_was_handed_over_stops_once_its_successor_runs_elsewhere(
    airflow: FakeAirflow,
) -> None:
    first = await started(airflow, trigger())
    delete_a_sibling(airflow)
    await ended(first)
    await airflow.look(3)
    assert not airflow.streams[0].stopped.is_set(), "there is no successor yet, for example in a paused DAG"
    airflow.deferred = 1
    assert await asyncio.to_thread(airflow.streams[0].left.wait, 20)
    # A later trigger starts its own stream.
    airflow.states = dict(DEFERRED)
    (await started(airflow, trigger(run="two"), streams=2)).cancel()


async def test_stream_that_was_handed_over_stops_if_its_run_is_marked_as_failed(airflow: FakeAirflow) -> None:
    first = await started(airflow, trigger())
    delete_a_sibling(airflow)
    await ended(first)
    airflow.run_state = "failed"
    assert await asyncio.to_thread(airflow.streams[0].left.wait, 20)


async def test_stream_that_was_handed_over_and_fails_is_replaced(airflow: FakeAirflow) -> None:
    first = await started(airflow, trigger())
    delete_a_sibling(airflow)
    await ended(first)
    airflow.streams[0].stop()
    await asyncio.to_thread(airflow.streams[0].left.wait, 20)
    airflow.states = dict(DEFERRED)
    (await started(airflow, trigger(run="two"), streams=2)).cancel()


async def test_stream_continues_when_its_own_task_is_deleted(airflow: FakeAirflow) -> None:
    first = await started(airflow, trigger())
    airflow.states = {"apply_sa_0": "deferred"}
    first.cancel("user-action")
    with pytest.raises(asyncio.CancelledError):
        await first
    assert not airflow.streams[0].stopped.is_set()
    airflow.states = dict(DEFERRED)
    second = asyncio.create_task(payloads(trigger(run="two")))
    await airflow.look(3)
    assert len(airflow.streams) == 1
    assert not airflow.streams[0].stopped.is_set()
    second.cancel()


@pytest.mark.parametrize(
    ("states", "run_state"),
    [(DEFERRED | {"apply_sb_0": "failed"}, "failed"), (dict(DEFERRED), "running"), ({}, "deleted")],
)
async def test_stream_leaves_when_its_task_is_ended_by_a_user(
    airflow: FakeAirflow, states: dict[str, str], run_state: str
) -> None:
    first = await started(airflow, trigger())
    airflow.states, airflow.run_state = states, run_state
    first.cancel("user-action")
    with pytest.raises(asyncio.CancelledError):
        await first
    assert airflow.streams[0].left.is_set()


def test_streams_leave_when_the_triggerer_stops_between_two_runs(airflow: FakeAirflow) -> None:
    async def triggerer() -> None:
        first = await started(airflow, trigger())
        delete_a_sibling(airflow)
        await ended(first)

    asyncio.run(triggerer())
    assert airflow.streams[0].left.is_set()


async def test_trigger_of_an_older_version_works_and_hands_over_within_the_hour(airflow: FakeAirflow) -> None:
    from cachesync_airflow.triggers.cache_sync import CacheSyncTrigger  # noqa: PLC0415

    old = CacheSyncTrigger(service="sb", member=0)
    assert old.serialize()[1] == {"service": "sb", "member": 0}
    assert datetime.now(UTC) < old.ends_at <= datetime.now(UTC) + timedelta(hours=1)
    (await started(airflow, old)).cancel()
