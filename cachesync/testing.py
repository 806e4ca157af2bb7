"""Caches in memory for the unit tests of a service: without Redis and PostgreSQL, with the same rules.

The rows are given as data. What the SQL of a transaction would change, the test says with `put` and `remove`:
within a block of `following`, it counts from the end of the block on, and not at all if an error leaves it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from datetime import UTC, date, datetime, time
from decimal import Decimal
from json import dumps
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, cast
from uuid import UUID

from cachesync.change import Change, Operation, Row
from cachesync.entity import Entity, load_entities
from cachesync.errors import InvalidValueError, SettingsError
from cachesync.lookup import values_in
from cachesync.postgres.catalog import Column
from cachesync.postgres.key import Key
from cachesync.service.cache import Outcome, Read, no_lookup
from cachesync.service.caches import AsyncCache, AsyncCaches, change_given, key_text, require_entity
from cachesync.service.calls import done_at_once
from cachesync.service.following import Followed
from cachesync.service.own_transactions import not_the_outermost
from cachesync.slots.layout import row_of, value_of

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator
    from pathlib import Path
    from types import TracebackType

    from cachesync.service.cache import EntityCache, GivenKey
    from cachesync.service.caches import KeyPart

__all__ = ["FakeAsyncCaches", "FakeCaches"]

T = TypeVar("T")

_SERVICE: Final = "fake"
_FINGERPRINT: Final = b"00000000"
# The first one that a value is an instance of: a bool is an int, and a datetime is a date.
_TYPES: Final = (
    (bool, "bool"),
    (int, "int8"),
    (float, "float8"),
    (Decimal, "numeric"),
    (UUID, "uuid"),
    (time, "time"),
    (dict, "jsonb"),
    (list, "jsonb"),
)


class _Rows:
    """The rows of one entity, with those parts of an `EntityCache` that reads need."""

    def __init__(self, entity: Entity) -> None:
        self.entity = entity
        self.columns = tuple(_column(name, "") for name in entity.key)
        self.rows: dict[str, Row] = {}

    @property
    def key(self) -> Key:
        return Key.of(self.entity, self.columns)

    async def read(self, key: GivenKey) -> Read:
        return Read(Outcome.HIT, self.rows.get(self.key.canonical(key)))

    async def read_many(self, keys: Iterable[GivenKey]) -> dict[str, Read]:
        return {self.key.canonical(key): await self.read(key) for key in keys}

    async def find(self, columns: Iterable[str], given: tuple[str, ...]) -> Read:
        wanted = dict(zip(columns, given, strict=True))
        for name, lookup in self.entity.lookups.items():
            if set(lookup) == wanted.keys():
                key = Key(tuple(column for one in lookup for column in self.columns if column.name == one))
                value = key.canonical(tuple(wanted[column] for column in lookup))
                found = (row for row in self.rows.values() if _has(row, self.entity, name, value))
                return Read(Outcome.HIT, next(found, None))
        raise no_lookup(self.entity, tuple(wanted))

    def row_of(self, values: Mapping[str, Any], version: int) -> Row:
        """Return a row with these values, and learn the types of the columns from them."""
        if self.entity.columns is not None:
            values = {name: value for name, value in values.items() if name in self.entity.columns}
        missing = [name for name in self.entity.key if values.get(name) is None]
        if missing:
            message = f"the row has no value of the key column {missing[0]!r}"
            raise InvalidValueError(missing[0], message)
        if not self.rows:
            self.columns = tuple(_column(name, value) for name, value in values.items())
        else:
            known = {column.name for column in self.columns}
            self.columns += tuple(_column(name, value) for name, value in values.items() if name not in known)
        key = self.key.canonical(tuple(key_text(values[name]) for name in self.entity.key))
        payload = ",".join(f"{dumps(name)}:{_json(value)}" for name, value in values.items())
        return Row(key, version, _FINGERPRINT, f"{{{payload}}}".encode())


class _Memory:
    """The rows of all entities, and the transactions that change them."""

    def __init__(
        self, rows: Mapping[str, Iterable[Mapping[str, Any]]], entities: str | Path | Mapping[str, Entity]
    ) -> None:
        self._entities = dict(entities) if isinstance(entities, Mapping) else load_entities(entities)
        self.of_entity = {name: _Rows(entity) for name, entity in self._entities.items()}
        self._version = 0
        self._block: ContextVar[list[Change] | None] = ContextVar("block", default=None)
        self.is_open = False
        self.not_open = "the caches are not open; use `async with`, or call `open`"
        for entity, given in rows.items():
            for values in given:
                self.put(entity, values)

    def open(self) -> None:
        if self.is_open:
            message = "the caches are already open"
            raise SettingsError(message)
        self.is_open = True

    def require_open(self) -> None:
        if not self.is_open:
            message = self.not_open
            raise SettingsError(message)

    def rows(self, entity: str) -> _Rows:
        self.require_open()
        require_entity(self._entities, entity)
        return self.of_entity[entity]

    def put(self, entity: str, values: Mapping[str, Any]) -> int:
        require_entity(self._entities, entity)
        row = self.of_entity[entity].row_of(values, self._version + 1)
        return self._change(entity, row.key, row)

    def remove(self, entity: str, key: Any) -> int:
        require_entity(self._entities, entity)
        return self._change(entity, self.of_entity[entity].key.canonical(key_text(key)), None)

    def _change(self, entity: str, key: str, row: Row | None) -> int:
        self._version += 1
        change = Change(
            entity=entity,
            key=key,
            version=self._version,
            operation=Operation.DELETE if row is None else Operation.UPSERT,
            value=None if row is None else value_of(row),
            source=_SERVICE,
            changed_at=datetime.now(UTC),
        )
        block = self._block.get()
        if block is None:
            self._apply(change)
        else:
            block.append(change)
        return change.version

    def _apply(self, change: Change) -> None:
        rows = self.of_entity[change.entity].rows
        # A change of all rows is never made here.
        key = change.key or ""
        if change.value is None:
            rows.pop(key, None)
        else:
            rows[key] = row_of(key, change.value)

    @contextmanager
    def following(self) -> Iterator[Followed]:
        self.require_open()
        if self._block.get() is not None:
            raise not_the_outermost()
        followed = Followed()
        changes: list[Change] = []
        token = self._block.set(changes)
        try:
            yield followed
        finally:
            self._block.reset(token)
        for change in changes:
            self._apply(change)
        followed.changes, followed.cached = tuple(changes), True

    def changes_in(self) -> list[Change]:
        self.require_open()
        return list(self._block.get() or ())

    def committed(self, changes: Iterable[Change | tuple[str, Any, int]]) -> bool:
        self.require_open()
        keys = {name: rows.key for name, rows in self.of_entity.items()}
        for change in changes:
            if not isinstance(change, Change):
                change_given(change, keys, _SERVICE)
        return True


class _Fake:
    """What both kinds of caches have beside those that they stand for."""

    def __init__(
        self,
        rows: Mapping[str, Iterable[Mapping[str, Any]]],
        *,
        entities: str | Path | Mapping[str, Entity],
    ) -> None:
        self._memory = _Memory(rows, entities)

    def put(self, entity: str, row: Mapping[str, Any]) -> int:
        """Insert or replace a row, as SQL would; return its row version.

        Args:
            entity: the entity.
            row: the values of the columns, as Python has them.

        Raises:
            SettingsError: there is no such entity.
            InvalidValueError: the key is missing or has another type than those of the other rows.
        """
        return self._memory.put(entity, row)

    def remove(self, entity: str, key: Any) -> int:
        """Delete a row, as SQL would; return the row version of the delete.

        Args:
            entity: the entity.
            key: the key.

        Raises:
            SettingsError: there is no such entity.
            InvalidValueError: the key is not valid for its column.
        """
        return self._memory.remove(entity, key)


class FakeAsyncCaches(_Fake, AsyncCaches):
    """Stands for `AsyncCaches` in unit tests.

    Args:
        rows: the rows of each entity, with the values of their columns as Python has them. The types of the
            columns are those of the first row; without one, a key is text.
        entities: the entities file, or its content as `load_entities` returns it.

    Raises:
        DeclarationError: the entities file is invalid.
        SettingsError: there is no such entity.
        InvalidValueError: the key of a row is missing or invalid.
    """

    async def open(self) -> Self:
        """Allow reads."""
        self._memory.open()
        return self

    async def close(self) -> None:
        """Allow no reads."""
        self._memory.is_open = False

    def __getitem__(self, entity: str) -> AsyncCache:
        return AsyncCache(cast("EntityCache", self._memory.rows(entity)))

    @asynccontextmanager
    async def following(self, session: object) -> AsyncIterator[Followed]:  # noqa: ARG002 - as in `AsyncCaches`
        """Let what is put and removed in the block count from its end on.

        Args:
            session: any object; nothing is done with it.

        Yields:
            What was put and removed, known at the end of the block.

        Raises:
            TransactionError: the block is in another one.
        """
        with self._memory.following() as followed:
            yield followed

    async def changes_in(self, session: object) -> list[Change]:  # noqa: ARG002 - as in `AsyncCaches`
        """Return what was put and removed in the block so far."""
        return self._memory.changes_in()

    async def committed(self, changes: Iterable[Change | tuple[str, Any, int]]) -> bool:
        """Check the changes, as `AsyncCaches.committed` does, and return True."""
        return self._memory.committed(changes)


class FakeCache:
    """The rows of one entity, as `FakeCaches` returns it."""

    def __init__(self, memory: _Memory, entity: str) -> None:
        self._memory = memory
        self._entity = entity

    def get(self, key: Any, *, as_: Any = None) -> Any:
        """Return a row, as `AsyncCache.get` does."""
        return done_at_once(lambda: self._cache().get(key, as_=as_))

    def get_many(self, keys: Iterable[Any], *, as_: Any = None) -> dict[Any, Any]:
        """Return rows, as `AsyncCache.get_many` does."""
        return done_at_once(lambda: self._cache().get_many(keys, as_=as_))

    def get_by(self, /, *, as_: Any = None, **values: KeyPart) -> Any:
        """Return the row that has a value in unique columns, as `AsyncCache.get_by` does."""
        return done_at_once(lambda: self._cache().get_by(as_=as_, **values))

    def _cache(self) -> AsyncCache:
        return AsyncCache(cast("EntityCache", self._memory.rows(self._entity)))


class FakeCaches(_Fake):
    """Stands for `cachesync.sync.Caches` in unit tests; open until it is closed.

    Args:
        rows: as for `FakeAsyncCaches`.
        entities: as for `FakeAsyncCaches`.
    """

    def __init__(
        self,
        rows: Mapping[str, Iterable[Mapping[str, Any]]],
        *,
        entities: str | Path | Mapping[str, Entity],
    ) -> None:
        super().__init__(rows, entities=entities)
        self._memory.not_open = "the caches are closed; call `open`"
        self._memory.is_open = True

    def open(self) -> Self:
        """Allow reads again."""
        self._memory.is_open = True
        return self

    def close(self) -> None:
        """Allow no reads."""
        self._memory.is_open = False

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, entity: str) -> FakeCache:
        require_entity(self._memory.of_entity, entity)
        return FakeCache(self._memory, entity)

    @contextmanager
    def following(self, session: object) -> Iterator[Followed]:  # noqa: ARG002 - as in `FakeAsyncCaches`
        """Let what is put and removed in the block count from its end on; see `FakeAsyncCaches.following`."""
        with self._memory.following() as followed:
            yield followed

    def changes_in(self, session: object) -> list[Change]:  # noqa: ARG002 - as above
        """Return what was put and removed in the block so far."""
        return self._memory.changes_in()

    def committed(self, changes: Iterable[Change | tuple[str, Any, int]]) -> bool:
        """Check the changes, as `AsyncCaches.committed` does, and return True."""
        return self._memory.committed(changes)


def _has(row: Row, entity: Entity, lookup: str, value: str) -> bool:
    values = values_in(entity.lookups, row.payload)
    return values is not None and values[lookup] == value


def _column(name: str, value: object) -> Column:
    """Return the column that has values like this one."""
    match value:
        case datetime():
            type_ = "timestamp" if value.tzinfo is None else "timestamptz"
        case date():
            type_ = "date"
        case _:
            type_ = next((type_ for kind, type_ in _TYPES if isinstance(value, kind)), "text")
    return Column(
        name=name,
        declared_type=type_,
        base_type=type_,
        type_schema="pg_catalog",
        category="",
        nullable=True,
        has_default=False,
        generated=False,
        max_length=None,
        precision=None,
        scale=None,
        labels=None,
        deterministic=True,
        session_text=False,
        own_cast=None,
        cast_enum=False,
    )


def _json(value: object) -> str:
    """Return a value as PostgreSQL writes it in JSON."""
    match value:
        case Decimal() if value.is_finite():
            return f"{value:f}"
        case float() if value - value != 0:
            return dumps(str(value))
        case datetime() | time():
            moment = value.astimezone(UTC) if isinstance(value, datetime) and value.tzinfo else value
            text = moment.isoformat()
            if moment.microsecond:
                whole, _, fraction = text.partition(".")
                text = f"{whole}.{fraction[:6].rstrip('0')}{fraction[6:]}"
            return dumps(text)
        case bytes():
            return dumps(f"\\x{value.hex()}")
        case UUID() | date() | Decimal():
            return dumps(str(value))
    try:
        return dumps(value)
    except (TypeError, ValueError):
        message = f"a value of the type {type(value).__name__} cannot be in a row"
        raise InvalidValueError(None, message) from None
