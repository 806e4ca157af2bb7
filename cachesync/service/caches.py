"""The library for a service of the user's own: its caches, and its own transactions."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from cachesync.change import Change, Operation
from cachesync.entity import Entity, ServiceName, load_entities
from cachesync.errors import DatabaseError, InvalidValueError, SettingsError
from cachesync.mistakes import did_you_mean
from cachesync.service.borrowed import borrowed_database
from cachesync.service.cache import EntityCache
from cachesync.service.database import OwnDatabase
from cachesync.service.own_transactions import looked_up, to_the_end
from cachesync.service.publisher import Publisher
from cachesync.service.sessions import own_transaction
from cachesync.service.settings import ServiceSettings
from cachesync.service.settling import Settler
from cachesync.service.table import Table
from cachesync.service.typed_rows import RowDecoder
from cachesync.service.watch import Watch
from cachesync.slots.clients import check_url
from cachesync.slots.layout import slot_name
from cachesync.slots.single import Slots

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from pathlib import Path
    from types import TracebackType

    from cachesync.change import Row
    from cachesync.service.database import Database
    from cachesync.service.own_transactions import OwnTransaction

T = TypeVar("T")
KeyPart = str | int | UUID | Decimal | date | time
Key = KeyPart | tuple[KeyPart, ...]
"""A key, or the value of each of its columns."""
K = TypeVar("K", bound=Key)

_NAME: Final = TypeAdapter(ServiceName)
# What a sequence cannot draw.
_MAX_VERSION: Final = 1 << 63


def _default(setting: str) -> Any:
    return ServiceSettings.model_fields[setting].default


@dataclass(frozen=True, slots=True)
class _Settings:
    """The settings of the caches: the defaults of `ServiceSettings`, except for the name of the service."""

    service: str
    lease_ms: int = _default("lease_ms")
    lease_wait_ms: int = _default("lease_wait_ms")
    page_bytes: int = _default("page_bytes")


@dataclass(frozen=True, slots=True)
class _Behind:
    """What is behind caches that are open."""

    settler: Settler
    database: Database


@dataclass(slots=True)
class Followed:
    """What a transaction that was followed has changed, known at the end of the block.

    Attributes:
        changes: the committed changes, of the rows of all entities.
        cached: whether this service's slots of all rows that the transaction changed have that, or nothing.
            If not, because Redis did not confirm it or a slot has a newer row, reads can be older than the
            transaction until the stream has applied it.
    """

    changes: tuple[Change, ...] = ()
    cached: bool = False


class AsyncCache:
    """The cached rows of one entity, as `AsyncCaches` returns it.

    A key is a text in any spelling that names the row, or the value of the key column: an `int`, a `UUID`, a
    `Decimal`, a `date`, a `time` or a `datetime`. If it has several columns, it is a tuple with one of these
    for each, or the text of the whole.
    """

    def __init__(self, cache: EntityCache) -> None:
        self._cache = cache
        self._columns = cache.columns
        self._decoder = RowDecoder(cache.columns)

    @overload
    async def get(self, key: Key) -> dict[str, Any] | None: ...

    @overload
    async def get(self, key: Key, *, as_: type[T]) -> T | None: ...

    async def get(self, key: Key, *, as_: type[T] | None = None) -> dict[str, Any] | T | None:
        """Return a row; None if there is no such row.

        Args:
            key: the key.
            as_: a pydantic model, a dataclass or another type that pydantic can validate; None for a dict.

        Raises:
            InvalidValueError: the key is not valid for its column.
            DatabaseUnavailableError: the row is not cached, and the database did not respond.
            RowTypeError: the row does not have this type.
        """
        read = await self._cache.read(key_text(key))
        row: dict[str, Any] | T | None = self._decoded(read.row, as_)
        return row

    @overload
    async def get_many(self, keys: Iterable[K]) -> dict[K, dict[str, Any] | None]: ...

    @overload
    async def get_many(self, keys: Iterable[K], *, as_: type[T]) -> dict[K, T | None]: ...

    async def get_many(
        self, keys: Iterable[K], *, as_: type[T] | None = None
    ) -> dict[K, dict[str, Any] | None] | dict[K, T | None]:
        """Return rows: those that are cached in one round trip, and the others with one query.

        Args:
            keys: the keys.
            as_: as for `get`.

        Returns:
            The row of each key, by the key as it was given; None if there is no such row.

        Raises:
            InvalidValueError: a key is not valid for its column.
            DatabaseUnavailableError: a row is not cached, and the database did not respond.
            RowTypeError: a row does not have this type.
        """
        canonical = {key: self._cache.key.canonical(key_text(key)) for key in keys}
        reads = await self._cache.read_many(canonical.values())
        rows: dict[K, Any] = {
            key: self._decoded(reads[canonical_key].row, as_) for key, canonical_key in canonical.items()
        }
        return rows

    def _decoded(self, row: Row | None, as_: type[T] | None) -> Any:
        if row is None:
            return None
        if self._columns is not self._cache.columns:
            self._columns = self._cache.columns
            self._decoder = RowDecoder(self._columns)
        return self._decoder.decode(row) if as_ is None else self._decoder.decode_as(row, as_)


class AsyncCaches:
    """The caches of a service of the user's own, opened once per process in its event loop.

    Use it as an asynchronous context manager, or call `open` and `close`. `caches["invoice"]` is the cache of
    an entity.

    Args:
        service: the name of the service; its slots are named `{service}:{entity}:{key}`.
        redis: the URL of the service's own Redis or Redis Cluster.
        database: where rows are read that are not cached: the user's own pool or engine, which stays the
            user's, or a DSN, for which a pool is opened. See `borrowed_database`. The login needs the role
            `cachesync_service`.
        entities: the entities file, or its content as `load_entities` returns it.
        kafka: librdkafka's settings for connecting to the brokers, if the service publishes what its own
            transactions change; None if the relay does.

    Raises:
        SettingsError: the name, the URL or the kind of the database is invalid.
        DeclarationError: the entities file is invalid.
    """

    def __init__(
        self,
        service: str,
        *,
        redis: str,
        database: object,
        entities: str | Path | Mapping[str, Entity],
        kafka: Mapping[str, Any] | None = None,
    ) -> None:
        try:
            self._settings = _Settings(_NAME.validate_python(service))
        except ValidationError as error:
            message = f"the name of the service: {error.errors()[0]['msg']}"
            raise SettingsError(message) from None
        check_url(redis)
        self._redis_url = redis
        self._database = database if isinstance(database, str) else borrowed_database(database)
        self._entities = dict(entities) if isinstance(entities, Mapping) else load_entities(entities)
        self._kafka = kafka
        self._caches: dict[str, AsyncCache] = {}
        self._entity_caches: dict[str, EntityCache] = {}
        self._behind: _Behind | None = None
        self._opened = AsyncExitStack()

    async def open(self) -> Self:
        """Check that the entities are installed as declared.

        PostgreSQL must be available; Redis need not be.

        Raises:
            NotInstalledError: the database side is missing or does not match the entities file.
            PrivilegeError: the login does not have the role of a service.
            DatabaseUnavailableError: PostgreSQL did not respond, or rejected the login.
            SettingsError: the DSN is invalid, or leads to a connection pooler.
            KafkaUnavailableError: librdkafka rejected the settings.
        """
        if self._behind is not None:
            message = "the caches are already open"
            raise SettingsError(message)
        async with AsyncExitStack() as opened:
            database: Database = (
                await OwnDatabase.open_dsn(self._database, self._settings.service)
                if isinstance(self._database, str)
                else self._database
            )
            opened.push_async_callback(database.close)
            tables = await Table.open_all(database, self._entities.values(), _default("row_limit"))
            prefix = slot_name(self._settings.service, next(iter(self._entities), ""), "")
            slots = await Slots.open(self._redis_url, _default("redis_timeout_ms") / 1000, prefix)
            opened.push_async_callback(slots.close)
            publisher = None if self._kafka is None else Publisher(self._kafka, database.mark_published)
            if publisher is not None:
                opened.push_async_callback(publisher.close)
            settler = Settler(self._settings.service, self._entities, slots, publisher)
            caches = {
                table.entity.name: EntityCache(self._settings, table, slots, settler) for table in tables
            }
            for cache in caches.values():
                opened.push_async_callback(cache.close)
            watch = Watch(database, caches, _default("schema_check_ms") / 1000)
            await watch.start()
            opened.push_async_callback(watch.close)
            self._opened = opened.pop_all()
        self._behind = _Behind(settler, database)
        self._entity_caches = caches
        self._caches = {name: AsyncCache(cache) for name, cache in caches.items()}
        return self

    async def close(self) -> None:
        """Disconnect from Redis, and from the database if it was given as a DSN."""
        self._caches = {}
        self._behind = None
        await self._opened.aclose()

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __getitem__(self, entity: str) -> AsyncCache:
        self._require_open()
        self._require_entity(entity)
        return self._caches[entity]

    @asynccontextmanager
    async def following(self, session: object) -> AsyncIterator[Followed]:
        """Follow the user's own transaction, whatever its SQL is: it is committed at the end of the block.

        From then on, no read through this service is older, for every row that the transaction changed:
        also for those of cascades and triggers. An error in the block rolls the transaction back.

        On a connection of asyncpg or psycopg, the block begins the transaction. With SQLAlchemy, the session
        or the connection may have begun it before, and may commit within the block.

        If the caller is canceled during the commit, it gets the cancellation after the end of the commit.

        Args:
            session: a connection of asyncpg or psycopg; an `AsyncSession` or `AsyncConnection` of SQLAlchemy.

        Yields:
            What the transaction has changed, known at the end of the block.

        Raises:
            TransactionError: the transaction cannot be followed.
            NotInstalledError: the database side was installed by an earlier version.
            PrivilegeError: the login does not have the role of a service.
        """
        behind = self._require_open()
        transaction = own_transaction(session, None if self._kafka is None else self._settings.service)
        followed = Followed()
        try:
            await transaction.begin()
        except BaseException:
            transaction.close()
            raise
        try:
            yield followed
        except BaseException:
            await to_the_end(_end(transaction.undo, transaction, followed, behind))
            raise
        await to_the_end(_end(transaction.commit, transaction, followed, behind))

    async def changes_in(self, session: object) -> list[Change]:
        """Return what the current transaction has changed, as its last statement, for `committed`.

        What is deferred to the commit runs now.

        Args:
            session: as for `following`.

        Raises:
            TransactionError: there is no transaction, or it is not one of these.
            NotInstalledError: the database side was installed by an earlier version.
            PrivilegeError: the login does not have the role of a service.
        """
        return await own_transaction(session).changes()

    async def committed(self, changes: Iterable[Change | tuple[str, Key, int]]) -> bool:
        """Bring committed changes to the slots of this service.

        From then on, no read through this service is older, provided that they are all rows that the
        transaction has changed: those of cascades and triggers too. It must have been committed.

        Args:
            changes: what `changes_in` returned; or for each row its entity, its key and its row version,
                which the triggers write to the column `row_version`.

        Returns:
            Whether Redis confirmed it, and no slot has a newer row; as `Followed.cached`.

        Raises:
            SettingsError: there is no such entity.
            InvalidValueError: a key is not valid for its column, or a version is none that a row can have.
        """
        behind = self._require_open()
        settled = [one if isinstance(one, Change) else self._change(*one) for one in changes]
        _, cached = await to_the_end(_settle(behind, settled))
        return cached

    def _change(self, entity: str, key: Key, version: int) -> Change:
        """Return a change of which only the version is known."""
        self._require_entity(entity)
        is_integer = isinstance(version, int) and not isinstance(version, bool)
        if not is_integer or not 0 < version < _MAX_VERSION:
            message = f"not a row version: {version!r:.80}"
            raise InvalidValueError(None, message)
        return Change(
            entity=entity,
            key=self._entity_caches[entity].key.canonical(key_text(key)),
            version=version,
            operation=Operation.UPSERT,
            value=None,
            source=self._settings.service,
            changed_at=datetime.now(UTC),
        )

    def _require_open(self) -> _Behind:
        if self._behind is None:
            message = "the caches are not open; use `async with`, or call `open`"
            raise SettingsError(message)
        return self._behind

    def _require_entity(self, entity: str) -> None:
        if entity not in self._entities:
            message = f"there is no entity {entity!r}{did_you_mean(entity, self._entities)}"
            raise SettingsError(message)


async def _end(
    end: Callable[[], Awaitable[None]], transaction: OwnTransaction, followed: Followed, behind: _Behind
) -> None:
    """End a transaction, bring what it has changed to the slots, and publish it."""
    try:
        await end()
    finally:
        transaction.close()
        followed.changes, followed.cached = await _settle(
            behind, transaction.committed, transaction.uncertain
        )
        behind.settler.publish(followed.changes)


async def _settle(
    behind: _Behind, committed: Iterable[Change], uncertain: Iterable[Change] = ()
) -> tuple[tuple[Change, ...], bool]:
    """Bring the changes of a transaction that has ended to the slots.

    Args:
        behind: the slots.
        committed: the committed changes.
        uncertain: changes that may have been committed or not.

    Returns:
        The committed changes, and whether the slots have all of them.
    """
    changes: list[Change] = []
    doubtful: list[Change] = []
    known = True
    try:
        changes = await looked_up(committed, behind.database)
        doubtful = await looked_up(uncertain, behind.database)
    except DatabaseError:
        # The relay publishes them.
        known = False
    applied = await behind.settler.apply(changes)
    forgotten = await behind.settler.forget(doubtful)
    return tuple(changes), known and applied and forgotten


def key_text(key: object) -> Any:
    """Return a key as the text, or the texts, that the library makes canonical.

    What is none of these types stays as it is, and is rejected there.
    """
    match key:
        case bool():
            return str(key).lower()
        case int():
            # Python refuses to write very long integers.
            return str(Decimal(key))
        case UUID() | Decimal():
            return str(key)
        case date() | time():
            return key.isoformat()
        case tuple():
            return tuple(map(key_text, key))
    return key
