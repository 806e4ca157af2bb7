"""The entry point of a service: its database pool, its Redis, its publisher, and one cache per entity."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Self

from cachesync.entity import load_entities
from cachesync.service.connections import Connections
from cachesync.service.database import OwnDatabase

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachesync.service.cache import EntityCache
    from cachesync.service.settings import ServiceSettings

_HEALTH_SECONDS: Final = 1.0


class Service:
    """The connections and caches of a service, opened once per process in its event loop.

    Attributes:
        caches: the caches, by entity name.
    """

    def __init__(self, connections: Connections) -> None:
        self._connections = connections
        self.caches: Mapping[str, EntityCache] = connections.caches

    @classmethod
    async def open(cls, settings: ServiceSettings) -> Self:
        """Connect, and check that the entities are installed as declared.

        PostgreSQL must be available; Redis and Kafka need not be.

        Args:
            settings: the settings of the service.

        Raises:
            DeclarationError: the entities file is invalid.
            NotInstalledError: the database side is missing or does not match the entities file.
            DatabaseUnavailableError: PostgreSQL did not respond, or rejected the login.
            SettingsError: `REDIS_URL` is not a Redis URL.
            KafkaUnavailableError: librdkafka rejected the settings.
        """
        entities = load_entities(settings.cachesync_entities)
        database = await OwnDatabase.open(settings)
        return cls(await Connections.open(settings, entities, database, settings.kafka))

    async def close(self) -> None:
        """Finish the writes in progress, deliver and mark their changes, and disconnect."""
        await self._connections.close()

    def share_metrics(self) -> None:
        """Bring the metrics of this process up to date, which otherwise happens once per second."""
        self._connections.reporting.share()

    def problems(self) -> dict[str, str]:
        """Return why changes may not be captured, and what to run, by entity; empty if all are captured."""
        return {name: cache.problem for name, cache in self.caches.items() if cache.problem is not None}

    async def health(self) -> dict[str, bool | str]:
        """Return whether `postgresql`, `redis` and `kafka` can be used, as checked within a short timeout.

        If Redis cannot, `redis_reason` is why: it does not respond, or refuses what the cache needs.
        """
        behind = self._connections
        if behind.publisher is None:
            raise AssertionError
        postgresql, redis_reason, kafka = await asyncio.gather(
            behind.database.is_available(),
            behind.slots.problem(),
            behind.publisher.is_available(_HEALTH_SECONDS),
        )
        health: dict[str, bool | str] = {
            "postgresql": postgresql,
            "redis": redis_reason is None,
            "kafka": kafka,
        }
        if redis_reason is not None:
            health["redis_reason"] = redis_reason
        return health
