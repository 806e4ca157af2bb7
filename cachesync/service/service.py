"""The entry point of a service: its database pool, its Redis, its publisher, and one cache per entity."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, Final, Self

from cachesync.entity import load_entities
from cachesync.service.cache import EntityCache
from cachesync.service.database import OwnDatabase
from cachesync.service.publisher import Publisher
from cachesync.service.settling import Settler
from cachesync.service.table import Table
from cachesync.service.watch import Watch
from cachesync.slots.layout import slot_name
from cachesync.slots.single import Slots

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachesync.service.database import Database
    from cachesync.service.settings import ServiceSettings

_HEALTH_SECONDS: Final = 1.0


class Service:
    """The connections and caches of a service, opened once per process in its event loop.

    Attributes:
        caches: the caches, by entity name.
    """

    def __init__(
        self,
        database: Database,
        slots: Slots,
        publisher: Publisher,
        caches: Mapping[str, EntityCache],
        watch: Watch,
    ) -> None:
        self._watch = watch
        self._database = database
        self._slots = slots
        self._publisher = publisher
        self.caches = caches

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
        async with AsyncExitStack() as opened:
            database = await OwnDatabase.open(settings)
            opened.push_async_callback(database.close)
            tables = await Table.open_all(database, entities.values(), settings.row_limit)
            prefix = slot_name(settings.service, next(iter(entities), ""), "")
            slots = await Slots.open(settings.redis_url, settings.redis_timeout_ms / 1000, prefix)
            opened.push_async_callback(slots.close)
            publisher = Publisher(settings.kafka, database.mark_published)
            opened.pop_all()
        settler = Settler(settings.service, entities, slots, publisher)
        caches = {table.entity.name: EntityCache(settings, table, slots, settler) for table in tables}
        service = cls(
            database, slots, publisher, caches, Watch(database, caches, settings.schema_check_ms / 1000)
        )
        await service._watch.start()
        return service

    async def close(self) -> None:
        """Finish the writes in progress, deliver and mark their changes, and disconnect."""
        await self._watch.close()
        for cache in self.caches.values():
            await cache.close()
        await self._publisher.close()
        await self._slots.close()
        await self._database.close()

    def problems(self) -> dict[str, str]:
        """Return why changes may not be captured, and what to run, by entity; empty if all are captured."""
        return {name: cache.problem for name, cache in self.caches.items() if cache.problem is not None}

    async def health(self) -> dict[str, bool | str]:
        """Return whether `postgresql`, `redis` and `kafka` can be used, as checked within a short timeout.

        If Redis cannot, `redis_reason` is why: it does not respond, or refuses what the cache needs.
        """
        postgresql, redis_reason, kafka = await asyncio.gather(
            self._database.is_available(),
            self._slots.problem(),
            self._publisher.is_available(_HEALTH_SECONDS),
        )
        health: dict[str, bool | str] = {
            "postgresql": postgresql,
            "redis": redis_reason is None,
            "kafka": kafka,
        }
        if redis_reason is not None:
            health["redis_reason"] = redis_reason
        return health
