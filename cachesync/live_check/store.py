"""The live check's access to the database."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

import asyncpg

from cachesync.entity import with_canary
from cachesync.errors import DatabaseError, DatabaseUnavailableError, NotInstalledError
from cachesync.live_check.judge import HORIZONS, LAG_BOUNDS, Change, array
from cachesync.postgres.connect import connect, translate_postgres_errors
from cachesync.postgres.rows import Rows
from cachesync.postgres.statements import statement

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from cachesync.change import Row
    from cachesync.entity import Entity
    from cachesync.live_check.cache import Cache, Size
    from cachesync.live_check.judge import Counts, Followed

SESSION_NAME: Final = "cachesync-live-check"
"""The `application_name` of the session of the live check."""

_STATEMENT_SECONDS: Final = 10.0
_CLOSE_SECONDS: Final = 2.0


def _sums(column: str, length: int) -> str:
    sums = ", ".join(f"sum(m.{column}[{place}])" for place in range(1, length + 1))
    return f"ARRAY[{sums}]::bigint []"


_SUMS: Final = {
    "judged": _sums("judged", len(HORIZONS)),
    "seen": _sums("seen", len(HORIZONS)),
    "lags": _sums("lags", len(LAG_BOUNDS)),
}
_SESSION: Final = {
    "synchronous_commit": "off",
    "default_transaction_isolation": "read committed",
    # Somebody's long `ALTER TABLE` must not keep it from looking.
    "lock_timeout": "500ms",
    # Another process takes over from one that is frozen.
    "idle_session_timeout": "20s",
    # Each query has one good plan, which outdated statistics must not change.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "plan_cache_mode": "force_generic_plan",
    "jit": "off",
}


class Unseen(NamedTuple):
    """A change that an earlier live check has not seen in a cache.

    Attributes:
        service: the service that owns the cache.
        entity, key, version: the change.
        kind: the kind of its violation.
        id: the number of its violation; None if there is none.
        age: the time since its commit, in seconds.
    """

    service: str
    entity: str
    key: str
    version: int
    kind: str
    id: int | None
    age: float


class Capture(NamedTuple):
    """What the database says of an entity.

    Attributes:
        problem: what is wrong with its triggers; None if nothing is.
        fingerprint: the schema fingerprint of its payloads; None if it is not installed.
    """

    problem: str | None
    fingerprint: bytes | None


class Store:
    """The rows, the change log and the tables of the live check.

    Args:
        connection: a connection with the role `cachesync_worker`.
        entities: the declared entities by name, and that of the live check.

    Attributes:
        canary: the rows of the hidden entity.
    """

    def __init__(self, connection: asyncpg.Connection, entities: Mapping[str, Entity]) -> None:
        self.canary: Sequence[int] = ()
        self._connection = connection
        self._entities = entities
        self._rows: dict[str, Rows] = {}
        self._fingerprints: dict[str, str] = {}
        # A session does one thing at a time.
        self._lock = asyncio.Lock()

    @classmethod
    async def open(cls, dsn: str | None, entities: Mapping[str, Entity]) -> Self:
        """Connect.

        Args:
            dsn: the database; None to use the variables PGHOST, PGUSER and so on.
            entities: the declared entities by name.

        Raises:
            DatabaseUnavailableError: the database did not respond or rejected the login.
            NotInstalledError: the hidden entity has no rows.
        """
        connection = await connect(dsn, SESSION_NAME, settings=_SESSION, command_timeout=_STATEMENT_SECONDS)
        store = cls(connection, with_canary(entities))
        try:
            await store.find_canary()
        except BaseException:
            connection.terminate()
            raise
        return store

    async def close(self) -> None:
        """Disconnect, which lets another process take over."""
        try:
            await self._connection.close(timeout=_CLOSE_SECONDS)
        except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
            self._connection.terminate()

    async def take_over(self) -> bool:
        """Return whether this process now does the live check; otherwise another one does."""
        return bool(await self._value("live_check/lock"))

    async def newest(self) -> int:
        """Return the version of the newest change."""
        return int(await self._value("live_check/newest"))

    async def tick(self, row: int, after: int, most: int) -> tuple[int | None, list[Change]]:
        """Change a row of the hidden entity, and find the newest other changes.

        Args:
            row: the row.
            after: the version after which changes are looked for.
            most: the maximum number of changes.

        Returns:
            The version of the row, or None if there is no such row; and the newest change of each key.
        """
        version = None
        changes: dict[tuple[str, str], Change] = {}
        for record in await self._fetch("live_check/tick", row, after, most):
            if record["entity"] is None:
                version = record["version"]
            elif record["entity"] in self._entities:
                change = Change(
                    record["entity"], record["key"], record["version"], record["operation"] == "delete"
                )
                changes.setdefault(change.slot, change)
        return version, list(changes.values())

    async def rows(self, entity: str, keys: Collection[str]) -> dict[str, Row] | None:
        """Return the rows that exist, by key; None if they cannot be read, because the schema changes."""
        if not keys:
            return {}
        try:
            async with self._lock:
                with translate_postgres_errors():
                    if entity not in self._rows:
                        self._rows[entity] = await Rows.open(self._connection, self._entities[entity])
                    return await self._rows[entity].read(keys)
        except DatabaseUnavailableError as error:
            if not isinstance(error.__cause__, asyncpg.LockNotAvailableError):
                raise
            return None
        except (DatabaseError, NotInstalledError):
            self._rows.pop(entity, None)
            return None

    async def rows_of(self, slots: Collection[tuple[str, str]]) -> dict[tuple[str, str], Row | None]:
        """Return the rows of slots, given by entity and key, without those that cannot be read.

        A row that does not exist is None.
        """
        found: dict[tuple[str, str], Row | None] = {}
        for entity in {entity for entity, _ in slots}:
            keys = {key for name, key in slots if name == entity}
            rows = await self.rows(entity, keys)
            if rows is not None:
                found |= {(entity, key): rows.get(key) for key in keys}
        return found

    async def save(
        self,
        caches: Sequence[Cache],
        oldest: Sequence[Followed | None],
        sizes: Sequence[Size | None],
        now: float,
    ) -> None:
        """Write the state of each cache, and of the oldest change that it does not have."""
        await self._fetch(
            "live_check/save",
            [cache.service for cache in caches],
            [cache.state for cache in caches],
            [cache.problem for cache in caches],
            [None if one is None else now - one.since for one in oldest],
            [None if one is None else one.change.entity for one in oldest],
            [None if one is None else one.change.key for one in oldest],
            [None if one is None else one.change.version for one in oldest],
            [None if size is None else size.keys for size in sizes],
            [None if size is None else size.memory for size in sizes],
        )

    async def count(self, counts: Iterable[tuple[str, str, Counts]]) -> None:
        """Add the figures of services and entities."""
        lines = [
            (
                service,
                entity,
                *map(array, (one.judged, one.seen, one.lags)),
                one.hits,
                one.misses,
                one.bypasses,
            )
            for service, entity, one in counts
        ]
        columns = zip(*lines, strict=True)
        if lines:
            await self._fetch("live_check/count", *columns, add=statement("live_check/add"))

    async def capture(self) -> dict[str, Capture]:
        """Look at the triggers of each entity."""
        records = await self._fetch("live_check/capture", list(self._entities))
        fingerprints = {record["entity"]: record["fingerprint"] for record in records}
        for entity in fingerprints.keys() & self._rows.keys():
            if fingerprints[entity] != self._fingerprints.get(entity):
                # The key can have another type.
                del self._rows[entity]
        self._fingerprints = fingerprints
        return {
            record["entity"]: Capture(
                record["problem"], record["fingerprint"].encode() if record["fingerprint"] else None
            )
            for record in records
        }

    async def unseen(self) -> list[Unseen]:
        """Return what an earlier live check has not seen."""
        return [Unseen(*record) for record in await self._fetch("live_check/unseen")]

    async def violate(
        self, service: str, change: Change, age: float, kind: str, found: dict[str, Any]
    ) -> int:
        """Record a slot that is not right, and return the number of the violation."""
        arguments = (service, *change[:3], age, kind, json.dumps(found))
        return int(await self._value("live_check/violate", *arguments))

    async def close_violations(self, numbers: Sequence[int]) -> None:
        """Record that slots are right again."""
        if numbers:
            await self._fetch("live_check/close", numbers)

    async def forget_others(self, services: Sequence[str]) -> None:
        """Remove what was known of services and entities that are no longer declared."""
        await self._fetch("live_check/forget", services, list(self._entities))

    async def prune(self) -> None:
        """Remove what has been kept long enough, and combine the figures of the minutes of an old hour."""
        await self._fetch("live_check/prune")
        await self._fetch("live_check/combine", add=statement("live_check/add"), **_SUMS)

    async def find_canary(self) -> None:
        """Find out which rows the hidden entity has.

        Raises:
            NotInstalledError: it has none.
        """
        self.canary = [record["id"] for record in await self._fetch("live_check/canary")]
        if not self.canary:
            message = "the table cachesync.canary is empty; run `cachesync install`"
            raise NotInstalledError(message)

    async def _fetch(self, name: str, *arguments: Any, **fragments: str) -> list[asyncpg.Record]:
        async with self._lock:
            with translate_postgres_errors():
                query = statement(name, **fragments)
                found: list[asyncpg.Record] = await self._connection.fetch(query, *arguments)
                return found

    async def _value(self, name: str, *arguments: Any) -> Any:
        (record,) = await self._fetch(name, *arguments)
        return record[0]
