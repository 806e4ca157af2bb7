"""A trigger whose work runs in its own thread, and which hands over to the trigger of the next run."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk.execution_time.task_runner import RuntimeTaskInstance
from airflow.triggers.base import BaseTrigger, TriggerEvent

from cachesync.exporter import serve_if_possible
from cachesync.work import RunningWork
from cachesync_airflow.settings import MetricsSettings
from cachesync_airflow.triggers import work as works
from cachesync_airflow.triggers.work import waiting

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from cachesync.work import Work

# Triggers that an older version of this package has stored do not know when to hand over.
_STORED_WITHOUT_TIME: Final = timedelta(hours=1)
_ENDED: Final = frozenset({"success", "failed", "skipped", "upstream_failed"})


class ThreadTrigger(BaseTrigger):
    """Works until the run's time is over, and yields an event when it hands over or cannot continue.

    All triggers of a run hand over together, so that the run ends and Airflow starts the next one: when its
    time is over, when one of them has handed over, and when one has been deleted from Airflow's database. The
    work goes on until the next run's trigger takes it over, in this triggerer or in another.

    Args:
        until: when to hand over, in ISO 8601 format.
        tasks: the tasks of the run.
        arguments: the other arguments from which Airflow can recreate the trigger; they identify the work.
    """

    def __init__(self, *, until: str | None = None, tasks: Sequence[str] = (), **arguments: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._arguments = arguments
        self._until = until
        self._tasks = list(tasks)
        self.ends_at = (
            datetime.now(UTC) + _STORED_WITHOUT_TIME if until is None else datetime.fromisoformat(until)
        )
        self._name = "-".join(map(str, (type(self).__name__, *arguments.values())))
        self._saw_successor = False

    @abstractmethod
    def open(self) -> Work:
        """Create the work. Called in the thread."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments from which Airflow recreates the trigger."""
        run = {} if self._until is None else {"until": self._until, "tasks": self._tasks}
        return f"{type(self).__module__}.{type(self).__qualname__}", {**self._arguments, **run}

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Do the work.

        Yields:
            The text of the error that ended the work, or `{"handover": reason}`.
        """
        try:
            reason = await self._work()
        except Exception as error:
            self.log.exception("%s failed", self._name)
            yield TriggerEvent(f"{type(error).__name__}: {error}")
        else:
            self.log.info("%s hands over: %s", self._name, reason)
            yield TriggerEvent({"handover": reason})

    async def _work(self) -> str:
        """Work until there is a reason to hand over, and return it."""
        reason = await self._reason_to_hand_over()
        if reason is not None:
            return reason
        work = waiting.take_over(self._name)
        self.log.info("%s %s", self._name, "started" if work is None else "taken over from the last run")
        work = work or RunningWork(self._name, self._open)
        try:
            while not await work.has_ended(works.LOOK_SECONDS):
                reason = await self._reason_to_hand_over()
                if reason is not None:
                    waiting.keep(self._name, work, self._has_successor)
                    return reason
            await work.ended
        except BaseException as error:
            # Airflow gives a reason only if the task no longer waits for this trigger, not on shutdown.
            if isinstance(error, asyncio.CancelledError) and error.args and await self._is_deleted():
                waiting.keep(self._name, work, self._has_successor)
            else:
                await work.stop()
            raise
        message = "the work ended without an error"
        raise RuntimeError(message)

    def _open(self) -> Work:
        settings = MetricsSettings.load()
        if settings.metrics_port is not None:
            serve_if_possible(settings.listen_address, settings.metrics_port)
        return self.open()

    async def _reason_to_hand_over(self) -> str | None:
        if datetime.now(UTC) >= self.ends_at:
            return "the run's time is over"
        states = await self._states()
        if states is None:
            return None
        if deleted := [task for task in self._tasks if task not in states]:
            return f"deleted from Airflow's database: {', '.join(deleted)}"
        if ended := [task for task, state in states.items() if state in _ENDED and task != self.task_id]:
            return f"handed over already: {', '.join(ended)}"
        return None

    async def _is_deleted(self) -> bool:
        """Return whether the task was deleted from Airflow's database although its run goes on."""
        states = await self._states()
        deleted = states is not None and self.task_id not in states and await self._run_is("running")
        if deleted:
            self.log.warning("%s was deleted from Airflow's database; its work goes on", self._name)
        return deleted

    async def _states(self) -> dict[str, Any] | None:
        """Return the states of the run's tasks, or None if Airflow does not respond."""
        run = self.task_instance
        if run is None:
            return None
        states = await self._ask("get_task_states", dag_id=run.dag_id, run_ids=[run.run_id])
        return None if states is None else states.get(run.run_id, {})

    async def _has_successor(self) -> bool:
        """Return whether the next run's trigger has had time to start, or the run was failed or deleted."""
        run = self.task_instance
        if run is None or not await self._run_is("queued", "running", "success"):
            return True
        deferred = await self._ask(
            "get_ti_count", dag_id=run.dag_id, task_ids=[run.task_id], states=["deferred"]
        )
        # A task is deferred before its trigger has started: it counts only if it was so at the last look too.
        successor = bool(self._saw_successor and deferred)
        self._saw_successor = bool(deferred)
        return successor

    async def _run_is(self, *states: str) -> bool:
        """Return whether the run has one of these states; True if Airflow does not respond."""
        run = self.task_instance
        if run is None:
            return False
        count = await self._ask("get_dr_count", dag_id=run.dag_id, run_ids=[run.run_id], states=list(states))
        return count is None or count > 0

    async def _ask(self, method: str, **arguments: Any) -> Any:
        """Ask Airflow about tasks and runs; return None if it does not respond."""
        try:
            return await asyncio.to_thread(getattr(RuntimeTaskInstance, method), **arguments)
        except Exception as error:  # noqa: BLE001 - the work must go on, whatever the reason
            self.log.warning("%s cannot look at its run: %s", self._name, error)
            return None
