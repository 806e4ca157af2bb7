"""What is behind the caches of a service, opened and closed together."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol, Self

from cachesync import traces
from cachesync.errors import DatabaseError
from cachesync.service.cache import CacheSettings, EntityCache
from cachesync.service.following import Settled
from cachesync.service.own_changes import looked_up
from cachesync.service.publisher import Publisher
from cachesync.service.reporting import Reporting
from cachesync.service.settling import Settler
from cachesync.service.table import Table
from cachesync.service.watch import Watch
from cachesync.slots.layout import slot_name
from cachesync.slots.single import Slots

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    from cachesync.change import Change
    from cachesync.entity import Entity
    from cachesync.service.database import Database


class ConnectionSettings(CacheSettings, Protocol):
    """The settings of a service, as `ServiceSettings` describes them."""

    @property
    def redis_url(self) -> str:
        """The URL of the service's own Redis or Redis Cluster."""

    @property
    def redis_timeout_ms(self) -> int:
        """Timeout for a reply from that Redis, in milliseconds."""

    @property
    def row_limit(self) -> int:
        """Maximum size of the payload of a row that the service writes, in bytes."""

    @property
    def schema_check_ms(self) -> int:
        """Time between two comparisons of the tables with their installation, in milliseconds."""


class Connections:
    """The connections of a service, and one cache per entity.

    Attributes:
        database: the shared database.
        slots: the slots of the service.
        publisher: publishes the changes; None if the relay publishes them.
        caches: the caches, by entity name.
        watch: follows the schema of the tables.
        reporting: reports what the process counts.
    """

    def __init__(
        self,
        *,
        database: Database,
        slots: Slots,
        open_slots: Callable[[], Awaitable[Slots]],
        publisher: Publisher | None,
        settler: Settler,
        caches: Mapping[str, EntityCache],
        watch: Watch,
        reporting: Reporting,
    ) -> None:
        self.database = database
        self.slots = slots
        self._open_slots = open_slots
        self.publisher = publisher
        self._settler = settler
        self.caches = caches
        self.watch = watch
        self.reporting = reporting
        self._opened = AsyncExitStack()
        # What brings changes to the slots now.
        self._settling: set[asyncio.Task[Any]] = set()
        self._is_closed = False

    @classmethod
    async def open(
        cls,
        settings: ConnectionSettings,
        entities: Mapping[str, Entity],
        database: Database,
        kafka: Mapping[str, Any] | None,
    ) -> Self:
        """Connect, and check that the entities are installed as declared.

        PostgreSQL must be available; Redis and Kafka need not be.

        Args:
            settings: the settings of the service.
            entities: the declared entities, by name.
            database: the database, which is closed with the connections, or if they cannot be opened.
            kafka: librdkafka's settings for connecting to the brokers; None if the relay publishes.

        Raises:
            NotInstalledError: the database side is missing or does not match the entities file.
            PrivilegeError: the login does not have the role of a service.
            DatabaseUnavailableError: PostgreSQL did not respond.
            SettingsError: the URL is not a Redis URL.
            KafkaUnavailableError: librdkafka rejected the settings.
        """
        traces.begin(settings.service)
        async with AsyncExitStack() as opened:
            opened.push_async_callback(database.close)
            tables = await Table.open_all(database, entities.values(), settings.row_limit)
            prefix = slot_name(settings.service, next(iter(entities), ""), "")
            open_slots = partial(Slots.open, settings.redis_url, settings.redis_timeout_ms / 1000, prefix)
            slots = await open_slots()
            opened.push_async_callback(slots.close)
            publisher = None if kafka is None else Publisher(kafka, entities, database.mark_published)
            if publisher is not None:
                opened.push_async_callback(publisher.close)
            settler = Settler(settings.service, entities, slots, publisher)
            await settler.follow_lookups()
            caches = {table.entity.name: EntityCache(settings, table, slots, settler) for table in tables}
            for cache in caches.values():
                opened.push_async_callback(cache.close)
            watch = Watch(database, caches, settings.schema_check_ms / 1000)
            opened.push_async_callback(watch.close)
            await watch.start()
            reporting = Reporting(settings.service, caches, slots, database)
            opened.push_async_callback(reporting.close)
            reporting.start()
            connections = cls(
                database=database,
                slots=slots,
                open_slots=open_slots,
                publisher=publisher,
                settler=settler,
                caches=caches,
                watch=watch,
                reporting=reporting,
            )
            connections._opened = opened.pop_all()
        return connections

    async def settle(
        self, committed: Iterable[Change], uncertain: Iterable[Change] = (), *, publish: bool = False
    ) -> Settled:
        """Bring the changes of a transaction that has ended to the slots.

        Args:
            committed: the committed changes.
            uncertain: changes that may have been committed or not.
            publish: whether to publish the committed ones too.
        """
        if self._is_closed:
            # The block has outlived the caches. The relay publishes what it has changed.
            slots = await self._open_slots()
            try:
                return await self._settle(self._settler.on(slots), committed, uncertain)
            finally:
                await slots.close()
        task = asyncio.current_task()
        assert task is not None  # noqa: S101 - coroutines run in tasks
        self._settling.add(task)
        try:
            settled = await self._settle(self._settler, committed, uncertain)
            if publish:
                self._settler.publish(settled.changes)
            return settled
        finally:
            self._settling.discard(task)

    async def _settle(
        self, settler: Settler, committed: Iterable[Change], uncertain: Iterable[Change]
    ) -> Settled:
        try:
            changes = await looked_up(committed, self.database)
            doubtful = await looked_up(uncertain, self.database)
        except DatabaseError:
            # They can be changes of any row. The relay publishes them.
            return Settled((), await settler.forget_everything())
        applied = await settler.apply(changes)
        forgotten = await settler.forget(doubtful)
        return Settled(tuple(changes), applied and forgotten)

    async def close(self) -> None:
        """Finish the writes in progress, deliver and mark their changes, and disconnect."""
        self._is_closed = True
        if self._settling:
            await asyncio.wait(self._settling)
        await self._opened.aclose()
