"""The sensor that keeps one service's cache in step."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NoReturn

from airflow.sdk import BaseSensorOperator

from cachesync.stream import StreamError
from cachesync_airflow.triggers.cache_sync import CacheSyncTrigger

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from cachesync_airflow.settings import AirflowSettings


class CacheSyncSensor(BaseSensorOperator):
    """Defers at once to the trigger that does the work, and fails when that cannot go on.

    Args:
        service: the service whose cache follows.
        member: which of the cache's consumers this is, from 0.
    """

    template_fields: Sequence[str] = ()

    def __init__(self, *, service: str, member: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.service = service
        self.member = member

    def execute(self, context: Context) -> NoReturn:  # noqa: ARG002 - Airflow's signature
        """Hand over to the triggerer."""
        self.defer(trigger=CacheSyncTrigger(self.service, self.member), method_name="ended")

    def ended(self, context: Context, event: str) -> NoReturn:  # noqa: ARG002 - Airflow's signature
        """Fail with what the trigger met, so that it shows and is tried again."""
        raise StreamError(event)


def members(settings: AirflowSettings) -> list[dict[str, Any]]:
    """The arguments of each mapped sensor."""
    return [
        {"service": service, "member": member}
        for service in settings.caches
        for member in range(settings.consumers_per_cache)
    ]
