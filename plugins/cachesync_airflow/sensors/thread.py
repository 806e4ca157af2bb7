"""A sensor whose trigger does the work, until the run hands over to the next one."""

from __future__ import annotations

from abc import abstractmethod
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import BaseSensorOperator

from cachesync.errors import CacheSyncError
from cachesync_airflow.settings import AirflowSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from cachesync_airflow.triggers.thread import ThreadTrigger


# Retry indefinitely: a failed sensor must come back while its siblings keep the run going.
_RETRY_ARGUMENTS: Final = {
    "retries": 1_000_000,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=1),
}
# In case a trigger has not handed over by itself, so that no task of Airflow is endless.
_GRACE: Final = timedelta(minutes=10)


class ThreadSensor(BaseSensorOperator):
    """Defers immediately to the trigger that does the work.

    It fails if the trigger cannot continue, and succeeds when the run hands over to the next one.
    """

    template_fields: Sequence[str] = ()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**_RETRY_ARGUMENTS, **kwargs})

    @abstractmethod
    def trigger(self, **run: Any) -> ThreadTrigger:
        """Return the trigger that does the work.

        Args:
            run: the trigger's arguments that concern the run.
        """

    def execute(self, context: Context) -> None:
        """Defer to the trigger, unless the run's time is over."""
        now = datetime.now(UTC)
        run = context.get("dag_run")
        started = (run and run.start_date) or now
        until = started + timedelta(hours=AirflowSettings.load().handover_hours)
        if now >= until:
            self.log.info("the run's time is over; the next one continues")
            return
        dag = self.get_dag()
        tasks = [self.task_id] if dag is None else sorted(dag.task_ids)
        self.defer(
            trigger=self.trigger(until=until.isoformat(), tasks=tasks),
            method_name="ended",
            timeout=until - now + _GRACE,
        )

    def ended(self, context: Context, event: str | dict[str, str]) -> None:  # noqa: ARG002 - Airflow's signature
        """Succeed if the trigger has handed over; otherwise fail, so that Airflow retries the task.

        Args:
            context: Airflow's context.
            event: the error's text, or the reason for the handover.

        Raises:
            CacheSyncError: the trigger could not continue.
        """
        if isinstance(event, str):
            raise CacheSyncError(event)
        self.log.info("handed over to the next run: %s", event["handover"])
