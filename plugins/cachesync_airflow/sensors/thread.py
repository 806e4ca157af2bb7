"""A sensor whose work is done by a trigger that never ends by itself."""

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


# For ever: one that failed must come back while its siblings, which keep the run alive, never end.
_TRIED_AGAIN: Final = {
    "retries": 1_000_000,
    "retry_delay": timedelta(seconds=5),
    "retry_exponential_backoff": True,
    "max_retry_delay": timedelta(minutes=1),
}


class ThreadSensor(BaseSensorOperator):
    """Defers at once to the trigger that does the work, and fails when that cannot go on."""

    template_fields: Sequence[str] = ()

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**{**_TRIED_AGAIN, **kwargs})

    @abstractmethod
    def trigger(self) -> ThreadTrigger:
        """What does the work."""

    def execute(self, context: Context) -> NoReturn:  # noqa: ARG002 - Airflow's signature
        """Hand over to the triggerer."""
        self.defer(trigger=self.trigger(), method_name="ended")

    def ended(self, context: Context, event: str) -> NoReturn:  # noqa: ARG002 - Airflow's signature
        """Fail with what the trigger met, so that it shows and is tried again."""
        raise CacheSyncError(event)
