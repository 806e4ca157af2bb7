"""The sensor that keeps one service's cache in sync."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cachesync_airflow.sensors.thread import ThreadSensor
from cachesync_airflow.triggers.cache_sync import CacheSyncTrigger

if TYPE_CHECKING:
    from cachesync_airflow.settings import AirflowSettings


class CacheSyncSensor(ThreadSensor):
    """Runs one of a cache's consumers.

    Args:
        service: the service that owns the cache.
        member: the number of the consumer, from 0.
    """

    def __init__(self, *, service: str, member: int = 0, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.service = service
        self.member = member

    def trigger(self, **run: Any) -> CacheSyncTrigger:
        """Return the trigger that runs the stream."""
        return CacheSyncTrigger(self.service, self.member, **run)


def consumers(settings: AirflowSettings) -> list[dict[str, Any]]:
    """Return the arguments of the `CacheSyncSensor` of each consumer of each cache."""
    return [
        {"task_id": f"apply_{service}_{member}", "service": service, "member": member}
        for service in settings.caches
        for member in range(settings.consumers_per_cache)
    ]
