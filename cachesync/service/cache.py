"""An entity's cache in one service: reads load lazily, writes go through."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import wraps
from typing import TYPE_CHECKING, Concatenate, Final, NoReturn, ParamSpec

from cachesync import metrics
from cachesync.change import Change, Operation
from cachesync.errors import (
    CacheUnavailableError,
    DuplicateRowError,
    InvalidValueError,
    RowNotFoundError,
    VersionMismatchError,
)
from cachesync.slots.layout import (
    ABSENT,
    change_of,
    decode_value,
    filled_content,
    new_token,
    slot_name,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine

    from cachesync.change import Row
    from cachesync.entity import Entity
    from cachesync.service.publisher import Publisher
    from cachesync.service.row_input import RowInput
    from cachesync.service.settings import ServiceSettings
    from cachesync.service.table import Table
    from cachesync.slots.single import Slots

# Between two looks at a slot whose lease another process holds.
_POLL_SECONDS: Final = 0.003
# More than this many reads waiting for loads in one process go to the database's own queue instead.
_MOST_WAITERS: Final = 2000
# How often a replace of a missing row tries to insert it while others delete and insert it.
_REPLACE_ATTEMPTS: Final = 5


class Outcome(StrEnum):
    """How a read was answered; the value of the `X-Cache` header."""

    HIT = "HIT"
    MISS = "MISS"
    BYPASS = "BYPASS"


@dataclass(frozen=True, slots=True)
class Read:
    """A read's answer; `row` is None where no such row exists."""

    outcome: Outcome
    row: Row | None


@dataclass(frozen=True, slots=True)
class Written:
    """An acknowledged write.

    Attributes:
        row: the row after it; None after a delete.
        version: the version that it drew.
        created: whether the row did not exist before.
        cached: whether its cache step went through; if not, the stream's lag bounds older reads.
    """

    row: Row | None
    version: int
    created: bool
    cached: bool


@dataclass(slots=True)
class _Lease:
    """A slot that a write changes.

    Attributes:
        name: the slot.
        token: that of the lease which the write holds; empty where it holds none.
        settled: whether the write's change has been brought there.
    """

    name: str
    token: str
    settled: bool = False


_HIT_ABSENT: Final = Read(Outcome.HIT, None)
_MISMATCH: Final = "the row's version is not the expected one"

_P = ParamSpec("_P")


def _to_the_end(
    write: Callable[Concatenate[EntityCache, _P], Coroutine[None, None, Written]],
) -> Callable[Concatenate[EntityCache, _P], Coroutine[None, None, Written]]:
    """Let a write go on when its caller is cancelled: a commit must not miss its cache step."""

    @wraps(write)
    async def wrapped(cache: EntityCache, /, *args: _P.args, **kwargs: _P.kwargs) -> Written:
        task = asyncio.get_running_loop().create_task(write(cache, *args, **kwargs))
        cache.writes.add(task)
        task.add_done_callback(cache.writes.discard)
        return await asyncio.shield(task)

    return wrapped


class EntityCache:
    """Reads and writes one entity's rows through this service's cache.

    A precondition (`expected`) is None: none; an empty set: the row must exist; otherwise it must
    have one of these versions.
    """

    def __init__(
        self, settings: ServiceSettings, entity: Entity, table: Table, slots: Slots, publisher: Publisher
    ) -> None:
        self.entity = entity
        self.columns = table.columns
        self.key_column = table.key_column
        self._service = settings.service
        self._lease_ms = settings.lease_ms
        self._wait_seconds = settings.lease_wait_ms / 1000
        self._table = table
        self._slots = slots
        self._publisher = publisher
        # One load per key and process; the others wait for its end, not for its data: what it read may be
        # older than a write acknowledged since, the slot never is.
        self._loads: dict[str, asyncio.Event] = {}
        self._waiters = 0
        self.writes: set[asyncio.Task[Written]] = set()

    async def read(self, key: str) -> Read:
        """The row with this canonical key.

        Raises:
            DatabaseUnavailableError: it is not cached, and the database cannot be asked.
        """
        name = self._name(key)
        try:
            answer = self._hit(await self._slots.get(name), key)
            if answer is None:
                answer = await self._load(name, key)
        except CacheUnavailableError:
            answer = None
        if answer is None:
            answer = Read(Outcome.BYPASS, await self._from_database(key))
        return answer

    async def page(self, after: str | None, limit: int) -> list[Row]:
        """At most `limit` rows in key order whose keys follow `after`, from the database.

        Raises:
            DatabaseUnavailableError: the database cannot be asked.
        """
        return await self._table.page(after, limit)

    @_to_the_end
    async def insert(self, row: RowInput) -> Written:
        """Insert a row.

        Raises:
            DuplicateRowError, ConstraintViolatedError, InvalidValueError: the row is refused.
            DatabaseUnavailableError: the database cannot be asked.
        """
        # A key that the database is about to make has no slot to lease yet. Should a reader have guessed
        # it and found it absent, the change that follows the commit empties that slot.
        key = self._key_of(row)
        async with self._leased(key) if key is not None else nullcontext(None) as lease:
            inserted = await self._table.insert(row)
            return await self._wrote(lease or _Lease(self._name(inserted.key), ""), inserted, created=True)

    @_to_the_end
    async def replace(self, key: str, row: RowInput, expected: frozenset[int] | None) -> Written:
        """Replace the row, or insert it if it is missing and nothing is expected.

        Columns that are not given get their default. The key may be left out only if the row is not to be
        inserted.

        Raises:
            VersionMismatchError: `expected` is not met.
            and those of `insert`.
        """
        async with self._leased(key) as lease:
            for attempt in range(1, _REPLACE_ATTEMPTS + 1):
                replaced = await self._table.replace(key, row, _versions(expected))
                if replaced is not None:
                    return await self._wrote(lease, replaced, created=False)
                if expected is not None:
                    raise VersionMismatchError(_MISMATCH)
                try:
                    inserted = await self._table.insert(row)
                except DuplicateRowError as error:
                    if error.columns != (self.entity.key,) or attempt == _REPLACE_ATTEMPTS:
                        raise
                else:
                    return await self._wrote(lease, inserted, created=True)
            raise AssertionError

    @_to_the_end
    async def merge(self, key: str, patch: RowInput, expected: frozenset[int] | None) -> Written:
        """Apply a JSON merge patch (RFC 7396) to the row.

        Raises:
            RowNotFoundError: no such row.
            VersionMismatchError: `expected` is not met.
            and those of `insert`.
        """
        async with self._leased(key) as lease:
            row = await self._table.merge(key, patch, _versions(expected))
            if row is None:
                await self._refuse(key, expected)
            return await self._wrote(lease, row, created=False)

    @_to_the_end
    async def delete(self, key: str, expected: frozenset[int] | None) -> Written:
        """Delete the row.

        Raises:
            RowNotFoundError: no such row.
            VersionMismatchError: `expected` is not met.
            ConstraintViolatedError: another table refers to it.
            DatabaseUnavailableError: the database cannot be asked.
        """
        async with self._leased(key) as lease:
            version = await self._table.delete(key, _versions(expected))
            if version is None:
                await self._refuse(key, expected)
            change = self._change(key, version, Operation.DELETE, None)
            cached = await self._settle(lease, change)
            self._publisher.publish(self.entity.topic, change)
            return Written(None, version, created=False, cached=cached)

    async def close(self) -> None:
        """Wait for the writes under way."""
        await asyncio.gather(*self.writes, return_exceptions=True)

    def _name(self, key: str) -> str:
        return slot_name(self._service, self.entity.name, key)

    def _hit(self, slot: bytes | None, key: str) -> Read | None:
        """The answer that a slot gives; None where it has none."""
        if slot is None:
            return None
        if slot == ABSENT:
            return _HIT_ABSENT
        row = decode_value(slot, key, self._table.fingerprint)
        return None if row is None else Read(Outcome.HIT, row)

    async def _load(self, name: str, key: str) -> Read | None:
        """Load a missing row into its slot, or wait until someone has; None where that took too long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait_seconds
        while (loading := self._loads.get(key)) is not None:
            if not await self._wait(loading, deadline - loop.time()):
                return None
            answer = self._hit(await self._slots.get(name), key)
            if answer is not None:
                return answer
        self._loads[key] = loading = asyncio.Event()
        try:
            return await self._lead(name, key, deadline)
        finally:
            del self._loads[key]
            loading.set()

    async def _wait(self, loading: asyncio.Event, seconds: float) -> bool:
        if self._waiters >= _MOST_WAITERS:
            return False
        self._waiters += 1
        metrics.waits.labels(self.entity.name).inc()
        try:
            async with asyncio.timeout(seconds):
                await loading.wait()
        except TimeoutError:
            return False
        finally:
            self._waiters -= 1
        return True

    async def _lead(self, name: str, key: str, deadline: float) -> Read | None:
        """Load under the slot's lease; wait while another process holds it, None where that took too long."""
        loop = asyncio.get_running_loop()
        token = new_token()
        while (
            slot := await self._slots.lease(name, token, self._lease_ms, self._table.fingerprint, "read")
        ) is not None:
            answer = self._hit(slot, key)
            if answer is not None:
                return answer
            if loop.time() >= deadline:
                return None
            await asyncio.sleep(_POLL_SECONDS)
        try:
            row = await self._from_database(key)
        except BaseException:
            with suppress(CacheUnavailableError):
                await self._slots.release(name, token)
            raise
        with suppress(CacheUnavailableError):
            await self._slots.fill(name, token, *filled_content(self.entity, row))
        return Read(Outcome.MISS, row)

    async def _from_database(self, key: str) -> Row | None:
        metrics.loads.labels(self.entity.name).inc()
        return await self._table.read(key)

    @asynccontextmanager
    async def _leased(self, key: str) -> AsyncIterator[_Lease]:
        """The lease of a slot that a write may fill; where Redis does not answer, the write goes on."""
        lease = _Lease(self._name(key), "")
        token = new_token()
        with suppress(CacheUnavailableError):
            slot = await self._slots.lease(
                lease.name, token, self._lease_ms, self._table.fingerprint, "write"
            )
            # Only a lease that was answered is one to fill by: one that Redis carries out late, after the
            # commit, has not seen the changes since then.
            if slot is None:
                lease.token = token
        try:
            yield lease
        finally:
            if lease.token and not lease.settled:
                with suppress(CacheUnavailableError):
                    await self._slots.release(lease.name, lease.token)

    async def _wrote(self, lease: _Lease, row: Row, *, created: bool) -> Written:
        """Bring a committed row to its slot, and publish it."""
        change = self._change(row.key, row.version, Operation.UPSERT, row)
        cached = await self._settle(lease, change)
        self._publisher.publish(self.entity.topic, change)
        return Written(row, row.version, created=created, cached=cached)

    async def _settle(self, lease: _Lease, change: Change) -> bool:
        """Bring a committed change to its slot; return whether Redis carried that out."""
        slot = change_of(self._service, self.entity, change)
        # A trigger of the table may have given the row another key than the one that was leased.
        is_leased = slot.name == lease.name
        try:
            await self._slots.change(slot, lease.token if is_leased else "")
        except CacheUnavailableError:
            return False
        lease.settled = is_leased
        return True

    def _change(self, key: str, version: int, operation: Operation, row: Row | None) -> Change:
        return Change(
            entity=self.entity.name,
            key=key,
            version=version,
            operation=operation,
            fingerprint=None if row is None else row.fingerprint,
            payload=None if row is None else row.payload,
            source=self._service,
            changed_at=datetime.now(UTC),
        )

    def _key_of(self, row: RowInput) -> str | None:
        """Return the canonical key of a row; None if it is not given, or if PostgreSQL will refuse it."""
        text = row.key_text(self.entity.key)
        if text is None:
            return None
        try:
            return self.key_column.canonical_key(text)
        except InvalidValueError:
            return None

    async def _refuse(self, key: str, expected: frozenset[int] | None) -> NoReturn:
        """Say why a write met no row."""
        if expected and await self._table.read(key) is not None:
            raise VersionMismatchError(_MISMATCH)
        message = f"no {self.entity.name} has the key {key!r}"
        raise RowNotFoundError(message)


def _versions(expected: frozenset[int] | None) -> list[int] | None:
    return list(expected) if expected else None
