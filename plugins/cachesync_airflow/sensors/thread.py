"""A sensor whose trigger does the work and does not end by itself."""

from __future__ import annotations

from abc import abstractmethod
from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final, NoReturn

from airflow.sdk import BaseSensorOperator

from cachesync.errors import CacheSyncError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from cachesync_airflow.triggers.thread import ThreadTrigger


# Retry indefinitely: a failed sensor must come back while its siblings, which never end, keep the run going.
_RETRY_ARGUMENTS: Final = {
    "retries": 1_000_000,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=1),
}


class ThreadSensor(BaseSensorOperator):
    """Defers immediately to the trigger that does the work, and fails if the trigger cannot continue."""

    template_fields: Sequence[str] = ()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**_RETRY_ARGUMENTS, **kwargs})

    @abstractmethod
    def trigger(self) -> ThreadTrigger:
        """Return the trigger that does the work."""

    def execute(self, context: Context) -> NoReturn:  # noqa: ARG002 - Airflow's signature
        """Defer to the trigger."""
        self.defer(trigger=self.trigger(), method_name="ended")

    def ended(self, context: Context, event: str) -> NoReturn:  # noqa: ARG002 - Airflow's signature
        """Fail with the trigger's error, so that Airflow shows it and retries the task.

        Args:
            context: Airflow's context.
            event: the error's text.

        Raises:
            CacheSyncError: always.
        """
        raise CacheSyncError(event)
