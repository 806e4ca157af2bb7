"""Settings and connections of the page, as they are now."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import BaseHook

from cachesync.entity import load_entities
from cachesync.overview.overview import Overview
from cachesync_airflow.connections import brokers, consumer, database, redis
from cachesync_airflow.settings import AirflowSettings

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachesync.entity import Entity

_REDIS_SECONDS: Final = 1.0
_LOOKED_AT_SECONDS: Final = 10.0
_CLOSED_AFTER_SECONDS: Final = 60.0


@dataclass(frozen=True)
class _Configuration:
    dsn: str
    brokers: Mapping[str, Any]
    groups: Mapping[str, str]
    redis: Mapping[str, str]
    entities: Mapping[str, Entity]

    @classmethod
    def load(cls) -> _Configuration:
        settings = AirflowSettings.load()
        return cls(
            database(),
            brokers(),
            {service: consumer(service)["group.id"] for service in settings.caches},
            {service: BaseHook.get_connection(f"redis_{service}").get_uri() for service in settings.caches},
            load_entities(settings.entities),
        )

    def open(self) -> Overview:
        clients = {service: redis(service, _REDIS_SECONDS) for service in self.redis}
        return Overview(self.dsn, self.brokers, clients, self.entities, self.groups)


class ConfiguredOverview:
    """An overview that follows the entities file and Airflow's connections. Belongs to one event loop."""

    def __init__(self) -> None:
        self._configuration: _Configuration | None = None
        self._overview: Overview | None = None
        self._looked_at = 0.0

    def current(self) -> Overview:
        """Return the overview, after looking every few seconds whether its configuration has changed.

        Raises:
            SettingsError: a setting or the entities file is invalid.
            AirflowNotFoundException: a connection is missing.
            CacheUnavailableError: a Redis Cluster does not respond.
        """
        if self._overview is not None and time.monotonic() - self._looked_at < _LOOKED_AT_SECONDS:
            return self._overview
        configuration = _Configuration.load()
        if self._overview is None or configuration != self._configuration:
            opened = configuration.open()
            if self._overview is not None:
                # Those who still wait for its answer have given up by then.
                loop = asyncio.get_running_loop()
                loop.call_later(_CLOSED_AFTER_SECONDS, loop.run_in_executor, None, self._overview.close)
            self._configuration, self._overview = configuration, opened
        self._looked_at = time.monotonic()
        return self._overview
