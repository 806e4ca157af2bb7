"""The trigger that measures whether every cache has a committed change in time."""

from __future__ import annotations

from functools import partial

from cachesync.live_check.cache import REDIS_SECONDS
from cachesync.live_check.live_check import LiveCheck
from cachesync.reloading import ReloadingWork
from cachesync_airflow.connections import database, redis
from cachesync_airflow.settings import AirflowSettings
from cachesync_airflow.triggers.thread import ThreadTrigger


class LiveCheckTrigger(ThreadTrigger):
    """Runs the live check of all caches."""

    def open(self) -> ReloadingWork:
        """Create the live check, which connects by itself and reconnects after each outage.

        Raises:
            SettingsError: a setting is missing or invalid.
            DeclarationError: the entities file is missing or invalid.
        """
        settings = AirflowSettings.load()
        caches = {service: partial(redis, service, REDIS_SECONDS) for service in settings.caches}
        return ReloadingWork(settings.entities, lambda entities: LiveCheck(database(), caches, entities))
