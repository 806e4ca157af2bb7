"""One service's share of the system: its pool, its cache, its publisher, and a cache per entity."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final, Self

from cachesync.entity import load_entities
from cachesync.service.cache import EntityCache
from cachesync.service.database import Database
from cachesync.service.publisher import Publisher
from cachesync.service.table import Table
from cachesync.slots.single import Slots

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachesync.service.settings import ServiceSettings

_HEALTH_SECONDS: Final = 1.0


class Service:
    """Opened once per process, in its event loop.

    Attributes:
        caches: the caches by entity name.
    """

    def __init__(
        self, database: Database, slots: Slots, publisher: Publisher, caches: Mapping[str, EntityCache]
    ) -> None:
        self._database = database
        self._slots = slots
        self._publisher = publisher
        self.caches = caches

    @classmethod
    async def open(cls, settings: ServiceSettings) -> Self:
        """Connect, and compare the entities file with what is installed.

        Redis and Kafka may be away; PostgreSQL is needed.

        Raises:
            DeclarationError: the entities file is wrong.
            NotInstalledError: the database side is missing or does not fit the file.
            DatabaseUnavailableError: PostgreSQL did not respond.
            SettingsError: `REDIS_URL` is not a Redis URL.
            KafkaUnavailableError: the Kafka client refused its settings.
        """
        entities = load_entities(settings.cachesync_entities)
        async with AsyncExitStack() as opened:
            database = await Database.open(settings)
            opened.push_async_callback(database.close)
            tables = [(entity, await Table.open(database, entity)) for entity in entities.values()]
            slots = await Slots.open(settings.redis_url, settings.redis_timeout_ms / 1000)
            opened.push_async_callback(slots.close)
            publisher = Publisher(settings.kafka, database.mark_published)
            opened.pop_all()
        caches = {
            entity.name: EntityCache(settings, entity, table, slots, publisher) for entity, table in tables
        }
        return cls(database, slots, publisher, caches)

    async def close(self) -> None:
        """Deliver what was published, mark it, give leases back, and disconnect."""
        for cache in self.caches.values():
            await cache.close()
        await self._publisher.close()
        await self._slots.close()
        await self._database.close()

    async def health(self) -> dict[str, bool]:
        """Whether `postgresql`, `redis` and `kafka` answer; each is asked with a short timeout."""
        postgresql, redis, kafka = await asyncio.gather(
            self._database.answers(), self._slots.answers(), self._publisher.answers(_HEALTH_SECONDS)
        )
        return {"postgresql": postgresql, "redis": redis, "kafka": kafka}
