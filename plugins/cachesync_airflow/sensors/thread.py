"""A sensor whose work is done by a trigger that never ends by itself."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, NoReturn

from airflow.sdk import BaseSensorOperator

from cachesync.errors import CacheSyncError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from cachesync_airflow.triggers.thread import ThreadTrigger


class ThreadSensor(BaseSensorOperator):
    """Defers at once to the trigger that does the work, and fails when that cannot go on."""

    template_fields: Sequence[str] = ()

    @abstractmethod
    def trigger(self) -> ThreadTrigger:
        """What does the work."""

    def execute(self, context: Context) -> NoReturn:  # noqa: ARG002 - Airflow's signature
        """Hand over to the triggerer."""
        self.defer(trigger=self.trigger(), method_name="ended")

    def ended(self, context: Context, event: str) -> NoReturn:  # noqa: ARG002 - Airflow's signature
        """Fail with what the trigger met, so that it shows and is tried again."""
        raise CacheSyncError(event)
