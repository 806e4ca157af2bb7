"""The library for a service of the user's own: its caches, and its own transactions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, date, datetime, time
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload
from uuid import UUID

from pydantic import TypeAdapter, ValidationError

from cachesync.change import Change, Operation
from cachesync.entity import Entity, ServiceName, load_entities
from cachesync.errors import InvalidValueError, SettingsError
from cachesync.mistakes import did_you_mean
from cachesync.service.borrowed import borrowed_database
from cachesync.service.connections import Connections
from cachesync.service.database import Database, OwnDatabase
from cachesync.service.following import Following, to_the_end
from cachesync.service.sessions import own_transaction
from cachesync.service.settings import ServiceSettings
from cachesync.service.typed_rows import RowDecoder
from cachesync.slots.clients import check_url

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path
    from types import TracebackType

    from cachesync.change import Row
    from cachesync.postgres.catalog import Column
    from cachesync.postgres.key import Key as TableKey
    from cachesync.service.cache import EntityCache, Read
    from cachesync.service.following import Followed

T = TypeVar("T")
KeyPart = str | int | UUID | Decimal | date | time
Key = KeyPart | tuple[KeyPart, ...]
"""A key, or the value of each of its columns."""
K = TypeVar("K", bound=Key)
OnRead = Callable[[str, str, int], None]
"""Gets the entity, the outcome and the number of rows of a read."""

_NAME: Final = TypeAdapter(ServiceName)
# What a sequence cannot draw.
_MAX_VERSION: Final = 1 << 63
# Of a change of which only the version is known.
_PARTS: Final = 3


def _default(setting: str) -> Any:
    return ServiceSettings.model_fields[setting].default


@dataclass(frozen=True, slots=True)
class _Settings:
    """The settings of the caches: the defaults of `ServiceSettings`, except for those that are given."""

    service: str
    redis_url: str
    redis_timeout_ms: int = _default("redis_timeout_ms")
    schema_check_ms: int = _default("schema_check_ms")
    row_limit: int = _default("row_limit")
    lease_ms: int = _default("lease_ms")
    lease_wait_ms: int = _default("lease_wait_ms")
    page_bytes: int = _default("page_bytes")


class AsyncCache:
    """The cached rows of one entity, as `AsyncCaches` returns it.

    A key is a text in any spelling that names the row, or the value of the key column: an `int`, a `UUID`, a
    `Decimal`, a `date`, a `time` or a `datetime`. If it has several columns, it is a tuple with one of these
    for each, or the text of the whole.
    """

    def __init__(self, cache: EntityCache, on_read: OnRead | None = None) -> None:
        self._cache = cache
        self._decoder = RowDecoder(cache.columns)
        self._on_read = on_read

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
        self._report(read)
        row: dict[str, Any] | T | None = self._decoded(read.row, as_)
        return row

    @overload
    async def get_by(self, /, *, as_: None = None, **values: KeyPart) -> dict[str, Any] | None: ...

    @overload
    async def get_by(self, /, *, as_: type[T], **values: KeyPart) -> T | None: ...

    async def get_by(self, /, *, as_: type[T] | None = None, **values: KeyPart) -> dict[str, Any] | T | None:
        """Return the row that has a value in unique columns; None if no row has it.

        Args:
            as_: as for `get`.
            **values: the value of each column of one of the entity's `unique` lookups.

        Raises:
            InvalidValueError: these are no columns of a lookup, or a value is not valid for its column.
            DatabaseUnavailableError: the row is not cached, and the database did not respond.
            RowTypeError: the row does not have this type.
        """
        read = await self._cache.find(values, tuple(map(key_text, values.values())))
        self._report(read)
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
        self._report(*reads.values())
        rows: dict[K, Any] = {
            key: self._decoded(reads[canonical_key].row, as_) for key, canonical_key in canonical.items()
        }
        return rows

    def hit(self, key: Key, as_: type[T] | None) -> tuple[dict[str, Any] | T | None] | None:
        """Return what `get` returns, in any thread, if the slot has it; None if only `get` can tell."""
        hit = self._cache.hit(key_text(key))
        if hit is None:
            return None
        self._report(hit[0])
        return (self._decoded(hit[0].row, as_, hit[1]),)

    def _report(self, *reads: Read) -> None:
        if self._on_read is not None:
            for outcome, rows in Counter(read.outcome for read in reads).items():
                self._on_read(self._cache.entity.name, outcome.value, rows)

    def _decoded(
        self, row: Row | None, as_: type[T] | None, columns: tuple[Column, ...] | None = None
    ) -> Any:
        if row is None:
            return None
        columns = self._cache.columns if columns is None else columns
        decoder = self._decoder
        if decoder.columns is not columns:
            self._decoder = decoder = RowDecoder(columns)
        return decoder.decode(row) if as_ is None else decoder.decode_as(row, as_)


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
        on_read: called after each read with the entity, the outcome ("HIT", "MISS" or "BYPASS") and how many
            rows were read in this way, for the user's own metrics. What it raises is raised by the read.

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
        on_read: OnRead | None = None,
    ) -> None:
        try:
            self._settings = _Settings(_NAME.validate_python(service), redis)
        except ValidationError as error:
            message = f"the name of the service: {error.errors()[0]['msg']}"
            raise SettingsError(message) from None
        check_url(redis)
        self._database = database if isinstance(database, str | Database) else borrowed_database(database)
        self._entities = dict(entities) if isinstance(entities, Mapping) else load_entities(entities)
        self._kafka = kafka
        self._on_read = on_read
        self._caches: dict[str, AsyncCache] = {}
        self._connections: Connections | None = None
        self._is_open = False

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
        if self._is_open:
            message = "the caches are already open"
            raise SettingsError(message)
        self._is_open = True
        try:
            await self._open()
        except BaseException:
            self._is_open = False
            raise
        return self

    async def _open(self) -> None:
        database: Database = (
            await OwnDatabase.open_dsn(self._database, self._settings.service)
            if isinstance(self._database, str)
            else self._database
        )
        connections = await Connections.open(self._settings, self._entities, database, self._kafka)
        self._caches = {name: AsyncCache(cache, self._on_read) for name, cache in connections.caches.items()}
        self._connections = connections

    async def close(self) -> None:
        """Disconnect from Redis, and from the database if it was given as a DSN."""
        connections, self._connections = self._connections, None
        if connections is not None:
            try:
                await to_the_end(connections.close())
            finally:
                self._is_open = False

    async def __aenter__(self) -> Self:
        return await self.open()

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    def __getitem__(self, entity: str) -> AsyncCache:
        self._require_open()
        require_entity(self._entities, entity)
        return self._caches[entity]

    def following(self, session: object) -> AbstractAsyncContextManager[Followed]:
        """Follow the user's own transaction, whatever its SQL is: it is committed at the end of the block.

        From then on, no read through this service is older, for every row that the transaction changed:
        also for those of cascades and triggers. An error in the block rolls the transaction back.

        On a connection of asyncpg or psycopg, the block begins the transaction. With SQLAlchemy, the session
        or the connection may have begun it before, and may commit within the block.

        If the caller is canceled during the commit, it gets the cancellation after the end of the commit.

        Args:
            session: a connection of asyncpg or psycopg; an `AsyncSession` or `AsyncConnection` of SQLAlchemy.

        Returns:
            The block, which provides what the transaction has changed, known at its end.

        Raises:
            TransactionError: the transaction cannot be followed.
            NotInstalledError: the database side was installed by an earlier version.
            PrivilegeError: the login does not have the role of a service.
        """
        connections = self._require_open()
        transaction = own_transaction(session, None if self._kafka is None else self._settings.service)

        return Following(transaction, partial(connections.settle, publish=True), to_the_end)

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
            InvalidValueError: a change has another form, its key is not valid for its column, or its version
                is none that a row can have.
        """
        connections = self._require_open()
        keys = {name: cache.key for name, cache in connections.caches.items()}
        known = [
            one if isinstance(one, Change) else change_given(one, keys, self._settings.service)
            for one in changes
        ]
        return (await to_the_end(connections.settle(known))).cached

    @property
    def connections(self) -> Connections:
        """What is behind the caches, for `cachesync.sync`."""
        return self._require_open()

    def _require_open(self) -> Connections:
        if self._connections is None:
            message = "the caches are not open; use `async with`, or call `open`"
            raise SettingsError(message)
        return self._connections


def require_entity(entities: Collection[str], entity: object) -> None:
    """Check that an entity is declared.

    Raises:
        SettingsError: it is not.
    """
    if not isinstance(entity, str):
        message = f"the name of an entity is text, not {type(entity).__name__}"
        raise SettingsError(message)
    if entity not in entities:
        message = f"there is no entity {entity!r}{did_you_mean(entity, entities)}"
        raise SettingsError(message)


def change_given(given: object, keys: Mapping[str, TableKey], service: str) -> Change:
    """Return a change of which only the version is known.

    Args:
        given: the entity, the key and the version.
        keys: the keys of all entities.
        service: the name of the service that made it.

    Raises:
        SettingsError: there is no such entity.
        InvalidValueError: it has another form, or no row can have its key or its version.
    """
    if not isinstance(given, tuple) or len(given) != _PARTS:
        message = (
            f"a change is a Change or a tuple of entity, key and row version, not {type(given).__name__}"
        )
        raise InvalidValueError(None, message)
    entity, key, version = given
    require_entity(keys, entity)
    is_integer = isinstance(version, int) and not isinstance(version, bool)
    if not is_integer or not 0 < version < _MAX_VERSION:
        message = "a row version is an integer from 1 to 2^63 - 1"
        raise InvalidValueError(None, message)
    return Change(
        entity=entity,
        key=keys[entity].canonical(key_text(key)),
        version=version,
        operation=Operation.UPSERT,
        value=None,
        source=service,
        changed_at=datetime.now(UTC),
    )


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
