"""The cache of an entity in one service: lazy loads and write-through."""

from __future__ import annotations

import asyncio
from collections.abc import Set as AbstractSet
from contextlib import asynccontextmanager, nullcontext, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum
from functools import wraps
from typing import (
    TYPE_CHECKING,
    Concatenate,
    Final,
    Generic,
    NoReturn,
    ParamSpec,
    Protocol,
    TypeAlias,
    TypeVar,
)

from cachesync.change import Change, Operation, Row
from cachesync.errors import (
    CacheSyncError,
    CacheUnavailableError,
    CaptureLostError,
    ConstraintViolatedError,
    DatabaseError,
    DuplicateRowError,
    InvalidValueError,
    NotInstalledError,
    RowNotFoundError,
    SettingsError,
    VersionMismatchError,
)
from cachesync.lookup import columns_name, lookup_name, values_in
from cachesync.metrics import service as metrics
from cachesync.mistakes import did_you_mean
from cachesync.postgres.connect import SchemaSuspicion, schema_suspicion
from cachesync.service.counts import BypassReason, ReadCounts
from cachesync.service.database import past_the_cache
from cachesync.service.row_input import RowInput
from cachesync.service.settling import Lease
from cachesync.slots.layout import (
    ABSENT,
    advance_of,
    decode_value,
    filled_content,
    found_content,
    lookup_changes_of,
    new_token,
    row_of,
    slot_name,
    value_of,
)
from cachesync.value import UP_TO_PAYLOAD

if TYPE_CHECKING:
    from collections.abc import (
        AsyncIterator,
        Awaitable,
        Callable,
        Collection,
        Coroutine,
        Iterable,
        Mapping,
        Sequence,
    )

    from cachesync.entity import Entity
    from cachesync.postgres.catalog import Column
    from cachesync.postgres.connect import Connection
    from cachesync.postgres.registry import Registration
    from cachesync.service.settling import Settler
    from cachesync.service.table import Commit, Page, Table, Transaction
    from cachesync.slots.single import Slots

# Between two reads of a slot whose lease another process holds.
_POLL_SECONDS: Final = 0.003
# Maximum number of reads that wait for loads in one process; further reads queue for the database instead.
_MAX_WAITERS: Final = 2000
# Maximum number of rows in a page.
_MAX_PAGE: Final = 1_000_000
# Maximum number of reads per process whose rows are on their way to the slots.
_MAX_ADVANCES: Final = 100
# Maximum attempts to replace or insert a row that others delete and insert at the same time.
_REPLACE_ATTEMPTS: Final = 5
# How long the relay leaves the changes of a service to it; see `relay_at` in `schema.sql`.
_RESERVED_SECONDS: Final = 2.0
# How many times a lookup is believed before the database answers: what it says can change meanwhile.
_LOOKUPS: Final = 2
# Maximum number of slots that a read of many rows looks at in one round trip.
_ROWS_AT_ONCE: Final = 1000


class CacheSettings(Protocol):
    """The settings of a cache, as `ServiceSettings` describes them."""

    @property
    def service(self) -> str:
        """The name of the service."""

    @property
    def lease_ms(self) -> int:
        """Lifetime of a lease, in milliseconds."""

    @property
    def lease_wait_ms(self) -> int:
        """How long a read waits for another read's load, in milliseconds."""

    @property
    def page_bytes(self) -> int:
        """Total size of the payloads of a page, in bytes."""


class Outcome(StrEnum):
    """How a read was answered; the value of the `X-Cache` header.

    Attributes:
        HIT: from the slot.
        MISS: from the database, filling the slot.
        BYPASS: from the database, without the cache.
    """

    HIT = "HIT"
    MISS = "MISS"
    BYPASS = "BYPASS"


@dataclass(frozen=True, slots=True)
class Read:
    """The result of a read.

    Attributes:
        outcome: how the read was answered.
        row: the row; None if it does not exist.
    """

    outcome: Outcome
    row: Row | None


@dataclass(frozen=True, slots=True)
class Written:
    """An acknowledged write.

    Attributes:
        row: the row after the write; None after a delete. Its key can differ from the given one, if a trigger
            of the table has changed it.
        version: the row version that the write drew.
        created: whether the write inserted the row.
        cached: whether the slots of all rows that the write changed have it, or nothing. If not, because
            Redis did not confirm it or a slot has a higher version, reads can be older than the write until
            the stream has applied it.
    """

    row: Row | None
    version: int
    created: bool
    cached: bool


_S = TypeVar("_S")


@dataclass(frozen=True, slots=True)
class _Wanted(Generic[_S]):
    """A slot whose content is to be loaded.

    Attributes:
        name: the slot's Redis key.
        served: returns what a content provides; None if it cannot be served.
        fetch: reads the row from the database.
        content: returns the content of the slot for a row, and its lifetime.
        refuted: content that is replaced, although it could be served.
    """

    name: str
    served: Callable[[bytes | None], _S | None]
    fetch: Callable[[], Awaitable[Row | None]]
    content: Callable[[Entity, Row | None], tuple[bytes, int]]
    refuted: bytes = b""


_HIT_ABSENT: Final = Read(Outcome.HIT, None)
_MISMATCH: Final = "the row does not have the expected version"

# A client can cause invalid values as often as it likes, and each makes the service look at the catalog.
_LOOK_SECONDS: Final = 1.0

GivenKey: TypeAlias = str | tuple[str, ...]
"""A key as a caller gives it: its text, or the text of each of its columns."""

_P = ParamSpec("_P")
_T = TypeVar("_T")


def no_lookup(entity: Entity, columns: Collection[str]) -> InvalidValueError:
    """Return the error for columns that an entity does not declare as unique."""
    message = f"{entity.name!r} has no unique lookup by {', '.join(columns)}"
    return InvalidValueError(None, message + did_you_mean(columns_name(columns), entity.lookups))


def _uninterrupted(
    write: Callable[Concatenate[EntityCache, _P], Coroutine[None, None, Written]],
) -> Callable[Concatenate[EntityCache, _P], Coroutine[None, None, Written]]:
    """Run a write to completion even if its caller is canceled, so that every commit reaches the cache.

    While changes of the entity may not be captured, refuse it.
    """

    @wraps(write)
    async def wrapped(cache: EntityCache, /, *args: _P.args, **kwargs: _P.kwargs) -> Written:
        if cache.problem is not None:
            raise CaptureLostError(cache.problem)
        task = asyncio.get_running_loop().create_task(write(cache, *args, **kwargs))
        cache.writes.add(task)
        task.add_done_callback(cache.writes.discard)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            task.add_done_callback(_report_unexpected)
            raise

    return wrapped


def _report_unexpected(task: asyncio.Task[Written]) -> None:
    """Report the error of a write whose caller no longer waits, unless the write was merely rejected."""
    error = None if task.cancelled() else task.exception()
    if error is not None and not isinstance(error, CacheSyncError):
        message = "a write failed after its caller was canceled"
        task.get_loop().call_exception_handler({"message": message, "exception": error, "task": task})


class EntityCache:
    """Reads and writes the rows of one entity through the cache of this service.

    Keys are given as text, or, if they have several columns, as a tuple with the text of each. They can have
    any spelling that `Key.canonical` accepts.

    Writes can have a precondition, `expected`: None means no precondition; an empty set means that the row
    must exist; any other set means that the row must have one of the given versions.

    Attributes:
        entity: the entity.
        columns: the served columns.
        key: the key.
        writes: the writes in progress.
        problem: why changes of the entity may not be captured, and what to run; None if they are. While it is
            set, reads go past the cache, and writes are refused.
        counts: how the reads of this process were answered.
    """

    def __init__(
        self,
        settings: CacheSettings,
        table: Table,
        slots: Slots,
        settler: Settler,
    ) -> None:
        self.entity = table.entity
        self.counts = ReadCounts()
        self.problem: str | None = None
        self.look: Callable[[float], Awaitable[None]] = _keep
        self.adopt(table)
        self._service = settings.service
        self._lease_ms = settings.lease_ms
        self._wait_seconds = settings.lease_wait_ms / 1000
        self._slots = slots
        self._settler = settler
        self._page_bytes = settings.page_bytes
        # One load per slot and process. Other reads wait until it ends, but do not use its row, which can be
        # older than a write that has been acknowledged since; the slot never is.
        self._loads: dict[str, asyncio.Event] = {}
        self._waiters = 0
        self._advances: set[asyncio.Task[None]] = set()
        self.writes: set[asyncio.Task[Written]] = set()

    def adopt(self, table: Table) -> None:
        """Use another description of the table from now on."""
        self._table = table
        self.columns = table.columns
        self.key = table.key

    async def reload(self, connection: Connection, registration: Registration) -> None:
        """Read the description of the table again; see `Table.reopened`."""
        self.adopt(await self._table.reopened(connection, registration))

    def describes(self, registration: Registration) -> bool:
        """Return whether the description of the table is still the registered one."""
        return self._table.registration == registration

    def hit(self, key: GivenKey) -> tuple[Read, tuple[Column, ...]] | None:
        """Return a hit in any thread, without the event loop, and the columns that it has.

        Args:
            key: the key.

        Returns:
            None if only `read` can tell.

        Raises:
            InvalidValueError: the key is not valid for its column.
        """
        # The event loop finds out more, and empties what is to be emptied.
        if self.problem is not None or not self._settler.is_forgotten(self.entity.name):
            return None
        # The event loop can replace it meanwhile.
        table = self._table
        text = table.key.canonical(key)
        answer = _served(self._slots.get_at_once(self._name(text)), text, table)
        if answer is None:
            return None
        self.counts.hits += 1
        return answer, table.columns

    async def read(self, key: GivenKey) -> Read:
        """Read a row.

        Args:
            key: the key.

        Raises:
            InvalidValueError: the key is not valid for its column.
            DatabaseUnavailableError: the row is not cached, and the database did not respond.
        """
        text = self.key.canonical(key)
        name = self._name(text)
        if self._is_bypassed:
            row = await self._from_database(text)
            self.counts.bypass(self._bypass_reason)
            return Read(Outcome.BYPASS, row)
        reason = BypassReason.WAIT
        try:
            answer = self._served(await self._slots.get(name), text)
            if answer is not None:
                self.counts.hits += 1
                return answer
            answer = await self._load(self._wanted(name, text))
        except CacheUnavailableError:
            reason = BypassReason.REDIS
            answer = None
        if answer is None:
            row = await self._from_database(text)
            self.counts.bypass(reason)
            self._advance([(name, row)])
            return Read(Outcome.BYPASS, row)
        return self._counted(answer)

    async def find(self, columns: Iterable[str], given: GivenKey) -> Read:
        """Read the row that has a value in unique columns.

        The row is in any case what `read` would return for its key, so that it is as new.

        Args:
            columns: the columns, as the entity declares them in `unique`, in any order.
            given: the value, as a key of these columns.

        Raises:
            InvalidValueError: the columns are not declared, or the value is not valid for them.
            DatabaseUnavailableError: the row is not cached, and the database did not respond.
        """
        order = tuple(columns)
        lookup, text = self._value(order, given)
        name = slot_name(self._service, lookup_name(self.entity.name, lookup), text)
        read = None
        if self._is_bypassed or not self._settler.follows_lookups:
            reason = self._bypass_reason
        else:
            reason = BypassReason.WAIT
            try:
                read = await self._find(name, lookup, text)
            except CacheUnavailableError:
                reason = BypassReason.REDIS
        if read is None:
            row = await self._found_in_database(lookup, text)
            self.counts.bypass(reason)
            if row is None:
                self._advance([], nobody=name)
            else:
                self._advance([(self._name(row.key), row)])
            read = Read(Outcome.BYPASS, row)
        return read

    def _value(self, columns: tuple[str, ...], given: GivenKey) -> tuple[str, str]:
        """Return the name of the lookup with these columns, and the canonical text of a value."""
        for name, lookup in self._table.lookups.items():
            if lookup.names == columns:
                return name, lookup.canonical(given)
            if set(lookup.names) == set(columns) and isinstance(given, tuple) and len(given) == len(columns):
                of = dict(zip(columns, given, strict=True))
                return name, lookup.canonical(tuple(of[column] for column in lookup.names))
        raise no_lookup(self.entity, columns)

    async def _find(self, name: str, lookup: str, text: str) -> Read | None:
        """Read the row that the slot of a value names; None if the slots do not tell.

        Only the row's own slot says whether it has the value, so that the slot of the value can be late.
        """

        def served(slot: bytes | None) -> Read | bytes | None:
            if slot == ABSENT:
                return _HIT_ABSENT
            if slot is None or slot == refuted or decode_value(slot, "", self._table.fingerprint) is None:
                return None
            return slot

        refuted = b""
        said = served(await self._slots.get(name))
        for _ in range(_LOOKUPS):
            if isinstance(said, bytes):
                with suppress(InvalidValueError, UnicodeDecodeError):
                    read = await self.read(said[UP_TO_PAYLOAD:].decode())
                    if read.row is not None and self._has_value(read.row, lookup, text):
                        return read
                refuted = said
            elif said is not None:
                break
            said = await self._load(
                _Wanted(name, served, lambda: self._found_in_database(lookup, text), found_content, refuted)
            )
            if said is None:
                return None
            if isinstance(said, Read) and said.row is not None:
                # It was read past its own slot.
                self._advance([(self._name(said.row.key), said.row)])
        return self._counted(said) if isinstance(said, Read) else None

    def _counted(self, read: Read) -> Read:
        self.counts.add(read.outcome)
        return read

    def _has_value(self, row: Row, lookup: str, text: str) -> bool:
        values = values_in(self.entity.lookups, row.payload)
        return values is not None and values.get(lookup) == text

    async def read_many(self, keys: Iterable[GivenKey]) -> dict[str, Read]:
        """Read rows: those in the slots in one round trip, and the others with one query.

        Args:
            keys: the keys.

        Returns:
            One read for each key, by its canonical form.

        Raises:
            InvalidValueError: a key is not valid for its column.
            DatabaseUnavailableError: a row is not cached, and the database did not respond.
        """
        wanted = list(dict.fromkeys(map(self.key.canonical, keys)))
        reads: dict[str, Read] = {}
        for start in range(0, len(wanted), _ROWS_AT_ONCE):
            together = wanted[start : start + _ROWS_AT_ONCE]
            reason = BypassReason.WAIT
            if self._is_bypassed:
                reason = self._bypass_reason
            else:
                try:
                    await self._read_together(together, reads)
                except CacheUnavailableError:
                    reason = BypassReason.REDIS
            for key in together:
                if key in reads:
                    self._counted(reads[key])
            missing = [key for key in together if key not in reads]
            if missing:
                rows = await self._many_from_database(missing)
                self.counts.bypass(reason, len(missing))
                self._advance([(self._name(key), row) for key, row in rows.items()])
                reads |= {key: Read(Outcome.BYPASS, row) for key, row in rows.items()}
        return {key: reads[key] for key in wanted}

    async def page(self, after: GivenKey | None, limit: int) -> Page:
        """Read a page of rows in key order from the database.

        A page of large rows ends early, at `ServiceSettings.page_bytes`.

        Args:
            after: the key that precedes the page; None for the first page.
            limit: maximum number of rows.

        Raises:
            SettingsError: the limit is not a positive number, or is excessive.
            InvalidValueError: the key is not valid for its column.
            DatabaseUnavailableError: the database did not respond.
        """
        if not _is_integer(limit) or not 0 < limit <= _MAX_PAGE:
            message = f"the limit of a page must be from 1 to {_MAX_PAGE}"
            raise SettingsError(message)
        start = None if after is None else self.key.canonical(after)
        page = await self._following_schema(lambda: self._table.page(start, limit, self._page_bytes))
        self._advance([(self._name(row.key), row) for row in page])
        return page

    @_uninterrupted
    async def insert(self, row: RowInput) -> Written:
        """Insert a row.

        Args:
            row: the values of the row; columns that are not given get their default.

        Raises:
            DuplicateRowError: a row with the same unique values exists.
            ConstraintViolatedError: the row violates a constraint.
            InvalidValueError: a value is not valid for its column.
            DatabaseUnavailableError: the database did not respond.
        """
        # If the database generates the key, there is no slot to lease yet. If a reader has guessed the key
        # and found it absent, the change that is applied after the commit empties that slot.
        key = self._key_of(row)
        async with self._leased(key) if key is not None else nullcontext(Lease()) as lease:
            return await self._complete(lease, await self._insert(row), created=True)

    @_uninterrupted
    async def replace(self, key: GivenKey, row: RowInput, expected: frozenset[int] | None) -> Written:
        """Replace a row, or insert it if it does not exist and there is no precondition.

        Args:
            key: the key.
            row: the values of the row; columns that are not given get their default. The key may be omitted
                only if the row exists.
            expected: the precondition.

        Raises:
            VersionMismatchError: the precondition does not hold.
            DuplicateRowError: another row has the same unique values.
            ConstraintViolatedError: the row violates a constraint.
            InvalidValueError: a value is not valid for its column.
            DatabaseUnavailableError: the database did not respond.
        """
        text = self._key_for(key, row)
        async with self._leased(text) as lease:
            for attempt in range(1, _REPLACE_ATTEMPTS + 1):
                replaced = await self._following_schema(
                    lambda: self._table.replace(text, row, _versions(expected))
                )
                if replaced is not None:
                    return await self._complete(lease, replaced, created=False)
                if expected is not None:
                    raise VersionMismatchError(_MISMATCH)
                try:
                    inserted = await self._insert(row)
                except DuplicateRowError as error:
                    if error.columns != self.entity.key or attempt == _REPLACE_ATTEMPTS:
                        raise
                else:
                    return await self._complete(lease, inserted, created=True)
            raise AssertionError

    @_uninterrupted
    async def merge(self, key: GivenKey, patch: RowInput, expected: frozenset[int] | None) -> Written:
        """Apply a JSON merge patch (RFC 7396) to a row.

        Args:
            key: the key.
            patch: the values to change.
            expected: the precondition.

        Raises:
            RowNotFoundError: the row does not exist.
            VersionMismatchError: the precondition does not hold.
            DuplicateRowError: another row has the same unique values.
            ConstraintViolatedError: the row violates a constraint.
            InvalidValueError: a value is not valid for its column.
            DatabaseUnavailableError: the database did not respond.
        """
        text = self._key_for(key, patch)
        async with self._leased(text) as lease:
            merged = await self._following_schema(lambda: self._table.merge(text, patch, _versions(expected)))
            if merged is None:
                await self._raise_refusal(text, expected)
            return await self._complete(lease, merged, created=False)

    @_uninterrupted
    async def delete(self, key: GivenKey, expected: frozenset[int] | None) -> Written:
        """Delete a row.

        Args:
            key: the key.
            expected: the precondition.

        Raises:
            RowNotFoundError: the row does not exist.
            VersionMismatchError: the precondition does not hold.
            ReferenceViolatedError: another row refers to it.
            InvalidValueError: the key is not valid for its column.
            DatabaseUnavailableError: the database did not respond.
        """
        text = self.key.canonical(key)
        async with self._leased(text) as lease:
            deleted = await self._following_schema(lambda: self._table.delete(text, _versions(expected)))
            if deleted is None:
                await self._raise_refusal(text, expected)
            return await self._complete(lease, deleted, created=False)

    async def close(self) -> None:
        """Wait for the writes in progress, and for what reads bring to the slots."""
        await asyncio.gather(*self.writes, *self._advances, *self._settler.retries, return_exceptions=True)

    @property
    def _is_bypassed(self) -> bool:
        if self.problem is not None or past_the_cache.get():
            return True
        return not self._settler.can_be_read(self.entity.name)

    @property
    def _bypass_reason(self) -> BypassReason:
        """Why reads are bypassed."""
        if self.problem is not None:
            return BypassReason.SUSPENDED
        return BypassReason.TRANSACTION if past_the_cache.get() else BypassReason.UNCERTAIN

    def _name(self, key: str) -> str:
        return slot_name(self._service, self.entity.name, key)

    def _served(self, slot: bytes | None, key: str) -> Read | None:
        return _served(slot, key, self._table)

    def _wanted(self, name: str, key: str) -> _Wanted[Read]:
        return _Wanted(
            name, lambda slot: self._served(slot, key), lambda: self._from_database(key), filled_content
        )

    async def _load(self, wanted: _Wanted[_S]) -> _S | Read | None:
        """Load a row into a slot, or wait for another load; return None if that takes too long."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait_seconds
        name = wanted.name
        while (loading := self._loads.get(name)) is not None:
            if not await self._wait(loading, deadline - loop.time()):
                return None
            answer = wanted.served(await self._slots.get(name))
            if answer is not None:
                return answer
        self._loads[name] = loading = asyncio.Event()
        try:
            return await self._load_under_lease(wanted, deadline)
        finally:
            del self._loads[name]
            loading.set()

    async def _wait(self, loading: asyncio.Event, seconds: float) -> bool:
        if self._waiters >= _MAX_WAITERS:
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

    async def _load_under_lease(self, wanted: _Wanted[_S], deadline: float) -> _S | Read | None:
        """Load a row under the lease of a slot; return None if another process holds it for too long."""
        loop = asyncio.get_running_loop()
        token = new_token()
        name = wanted.name
        while (
            slot := await self._slots.lease(
                name, token, self._lease_ms, self._table.fingerprint, "read", refuted=wanted.refuted
            )
        ) is not None:
            answer = wanted.served(slot)
            if answer is not None:
                return answer
            if loop.time() >= deadline:
                return None
            await asyncio.sleep(_POLL_SECONDS)
        try:
            row = await wanted.fetch()
        except BaseException:
            with suppress(CacheUnavailableError):
                await self._slots.release(name, token)
            raise
        with suppress(CacheUnavailableError):
            filled = await self._slots.fill(name, token, *wanted.content(self.entity, row))
            # The lease may have ended, and an earlier load may be about to fill the slot. Without a row, this
            # would end the lease of the next load too, and so on.
            if not filled:
                metrics.refused_fills.labels(self.entity.name).inc()
            if not filled and row is not None:
                self._advance([(self._name(row.key), row)])
        return Read(Outcome.MISS, row)

    async def _read_together(self, keys: Sequence[str], reads: dict[str, Read]) -> None:
        """Add what the slots have, and load what nobody else loads.

        What others load for too long is left out, and so is everything that is unknown when Redis stops
        responding.
        """
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._wait_seconds
        missed = await self._look_at(keys, reads)
        while missed:
            free = [key for key in missed if self._name(key) not in self._loads]
            await self._load_together(free, reads, deadline)
            missed = [key for key in missed if key not in reads]
            names = map(self._name, missed)
            for loading in {self._loads[name] for name in names if name in self._loads}:
                if not await self._wait(loading, deadline - loop.time()):
                    return
            if not missed or loop.time() >= deadline:
                return
            missed = await self._look_at(missed, reads)

    async def _look_at(self, keys: Sequence[str], reads: dict[str, Read]) -> list[str]:
        """Add the hits that slots provide; return the keys of those that can be loaded."""
        slots = await self._slots.get_many([self._name(key) for key in keys])
        found = {
            key: slot for key, slot in zip(keys, slots, strict=True) if not isinstance(slot, BaseException)
        }
        self._add_hits(found, reads)
        return [key for key in found if key not in reads]

    def _add_hits(self, slots: Mapping[str, bytes | None], reads: dict[str, Read]) -> None:
        """Add the hits that slots provide, given by the keys of their rows."""
        answers = {key: self._served(slot, key) for key, slot in slots.items()}
        reads |= {key: answer for key, answer in answers.items() if answer is not None}

    async def _load_together(self, keys: Sequence[str], reads: dict[str, Read], deadline: float) -> None:
        """Load rows into their slots with one query, except those that other processes load for too long."""
        loop = asyncio.get_running_loop()
        loading = asyncio.Event()
        self._loads |= dict.fromkeys(map(self._name, keys), loading)
        waiting = keys
        try:
            while waiting:
                await self._load_under_leases(waiting, reads)
                waiting = [key for key in waiting if key not in reads]
                if not waiting or loop.time() >= deadline:
                    return
                await asyncio.sleep(_POLL_SECONDS)
        finally:
            for key in keys:
                del self._loads[self._name(key)]
            loading.set()

    async def _load_under_leases(self, keys: Sequence[str], reads: dict[str, Read]) -> None:
        token = new_token()
        # Each of them on its own, so that no lease is forgotten if Redis fails in between.
        slots = await asyncio.gather(
            *(
                self._slots.lease(self._name(key), token, self._lease_ms, self._table.fingerprint, "read")
                for key in keys
            ),
            return_exceptions=True,
        )
        leased = [key for key, slot in zip(keys, slots, strict=True) if slot is None]
        self._add_hits(
            {key: slot for key, slot in zip(keys, slots, strict=True) if isinstance(slot, bytes)}, reads
        )
        try:
            rows = await self._many_from_database(leased) if leased else {}
        except BaseException:
            await asyncio.gather(
                *(self._slots.release(self._name(key), token) for key in leased), return_exceptions=True
            )
            raise
        reads |= {key: Read(Outcome.MISS, row) for key, row in rows.items()}
        filled = await asyncio.gather(
            *(
                self._slots.fill(self._name(key), token, *filled_content(self.entity, row))
                for key, row in rows.items()
            ),
            return_exceptions=True,
        )
        refused = filled.count(False)
        if refused:
            metrics.refused_fills.labels(self.entity.name).inc(refused)
        # As after a load of one row.
        self._advance(
            [
                (self._name(key), row)
                for (key, row), done in zip(rows.items(), filled, strict=True)
                if done is False and row is not None
            ]
        )
        for slot in slots:
            if isinstance(slot, BaseException):
                raise slot

    def _advance(self, rows: Sequence[tuple[str, Row | None]], *, nobody: str = "") -> None:
        """Bring rows that were read past the cache to their slots, so that the next hit is not older.

        The read does not wait for it, and if Redis is slow, most reads go without.

        Args:
            rows: the names of slots, and the rows; None for a row that does not exist.
            nobody: the name of the slot of a value that no row has; empty if there is none.
        """
        is_idle = not rows and not nobody
        if is_idle or self._is_bypassed or len(self._advances) >= _MAX_ADVANCES:
            return
        changes = [advance_of(self.entity, name, row) for name, row in rows]
        if nobody:
            changes.append(advance_of(self.entity, nobody, None))
        if self.entity.unique:
            for _, row in rows:
                if row is not None and (values := values_in(self.entity.lookups, row.payload)):
                    head = value_of(row)[:UP_TO_PAYLOAD]
                    changes += lookup_changes_of(self._service, self.entity, row.key, head, values)
        task = asyncio.get_running_loop().create_task(self._slots.advance(changes))
        self._advances.add(task)
        task.add_done_callback(self._advances.discard)

    async def _found_in_database(self, lookup: str, text: str) -> Row | None:
        metrics.loads.labels(self.entity.name).inc()
        return await self._following_schema(lambda: self._table.find(lookup, text))

    async def _from_database(self, key: str) -> Row | None:
        metrics.loads.labels(self.entity.name).inc()
        return await self._following_schema(lambda: self._table.read(key))

    async def _many_from_database(self, keys: Sequence[str]) -> dict[str, Row | None]:
        metrics.loads.labels(self.entity.name).inc(len(keys))
        rows = await self._following_schema(lambda: self._table.read_many(keys))
        return {key: rows.get(key) for key in keys}

    async def _insert(self, row: RowInput) -> Commit:
        return await self._following_schema(lambda: self._table.insert(row))

    async def _following_schema(self, attempt: Callable[[], Awaitable[_T]]) -> _T:
        """Use the table, and do so again with its new description if it failed because the schema changed."""
        table = self._table
        try:
            return await attempt()
        except CaptureLostError:
            await self.look(0)
            raise
        except CacheSyncError as error:
            suspicion = schema_suspicion(error.__cause__)
            if suspicion is None:
                raise
            await self.look(_LOOK_SECONDS if suspicion is SchemaSuspicion.VALUE else 0)
            if suspicion is not SchemaSuspicion.PLAN and self._table is table:
                if self.problem is not None:
                    raise NotInstalledError(self.problem) from error
                raise
        return await attempt()

    @asynccontextmanager
    async def _leased(self, key: str) -> AsyncIterator[Lease]:
        """Hold the lease of the slot of a write; if Redis is unavailable, the write continues without it."""
        lease = Lease(self._name(key))
        token = new_token()
        with suppress(CacheUnavailableError):
            slot = await self._slots.lease(
                lease.name, token, self._lease_ms, self._table.fingerprint, "write"
            )
            # Only a confirmed lease may be used to fill the slot: if Redis executes the request late, after
            # the commit, the lease has missed the changes made in between.
            if slot is None:
                lease.token = token
        try:
            yield lease
        finally:
            if lease.token and not lease.applied:
                with suppress(CacheUnavailableError):
                    await self._slots.release(lease.name, lease.token)

    async def _complete(self, lease: Lease, commit: Commit, *, created: bool) -> Written:
        """Apply a committed write to the slots of all rows that it changed, and publish it."""
        change = self._change(commit)
        if commit.transaction is None:
            cached = await self._settler.apply([change], lease)
            self._settler.publish([change])
        else:
            change, cached = await self._complete_transaction(lease, change, commit.transaction)
        if commit.row is None:
            return Written(None, change.version, created=False, cached=cached)
        row = commit.row
        if change.version != row.version and change.value is not None:
            row = row_of(row.key, change.value)
        return Written(row, row.version, created=created, cached=cached)

    async def _complete_transaction(
        self, lease: Lease, change: Change, transaction: Transaction
    ) -> tuple[Change, bool]:
        """Apply and publish everything that the transaction of a write changed.

        Args:
            lease: the lease of the write.
            change: the change that the write itself made.
            transaction: the transaction of the write.

        Returns:
            The last change that the transaction made to the row of the write, and whether all slots have all
            changes.
        """
        newest = change
        cached = logged = False
        try:
            changes = await self._table.own_changes(transaction)
        except DatabaseError:
            # The change log has the other changes; the relay publishes them.
            pass
        else:
            applied = await self._settler.apply(changes, lease)
            self._settler.publish(changes)
            for other in changes:
                if (other.entity, other.key) == (change.entity, change.key):
                    logged |= other.version == change.version
                    if other.version > newest.version and other.operation == change.operation:
                        newest = other
            # Later, the relay could have published changes already, which are then missing here.
            cached = applied and asyncio.get_running_loop().time() < transaction.started + _RESERVED_SECONDS
        if not logged:
            cached &= await self._settler.apply([change], lease)
            self._settler.publish([change])
        return newest, cached

    def _change(self, commit: Commit) -> Change:
        row = commit.row
        return Change(
            entity=self.entity.name,
            key=commit.key,
            version=commit.version,
            operation=Operation.DELETE if row is None else Operation.UPSERT,
            value=None if row is None else value_of(row),
            source=self._service,
            changed_at=datetime.now(UTC),
        )

    def _given_key(self, row: object) -> list[str | None]:
        """Return the texts of the key columns in a row; None for those that are not given."""
        if not isinstance(row, RowInput):
            message = f"a row is a RowInput, not {type(row).__name__}; use RowInput.from_mapping or from_json"
            raise InvalidValueError(None, message)
        return [row.key_text(name) for name in self.key.names]

    def _key_for(self, key: GivenKey, row: RowInput) -> str:
        """Return the canonical form of a key, which must be that of the row as far as the row has one."""
        text = self.key.canonical(key)
        for column, part, given in zip(
            self.key.columns, self.key.parts(text), self._given_key(row), strict=True
        ):
            if given is not None and column.canonical_key(given) != part:
                message = f"must be {part!r}, as in the key of the row, or omitted"
                raise InvalidValueError(column.name, message)
        return text

    def _key_of(self, row: RowInput) -> str | None:
        """Return the canonical key of a row; None if it is not given or if PostgreSQL will reject it."""
        texts = self._given_key(row)
        if None in texts:
            return None
        try:
            return self.key.canonical(texts)
        except InvalidValueError:
            return None

    async def _raise_refusal(self, key: str, expected: frozenset[int] | None) -> NoReturn:
        """Raise the error for a write that found no row to change."""
        row = await self._table.read(key)
        if row is not None and expected and row.version not in expected:
            raise VersionMismatchError(_MISMATCH)
        if row is not None:
            message = "the row was not changed; a trigger of the table may have discarded the change"
            raise ConstraintViolatedError(None, (), message)
        message = f"no {self.entity.name} has the key {key!r}"
        raise RowNotFoundError(message)


def _served(slot: bytes | None, key: str, table: Table) -> Read | None:
    """Return the hit that a slot provides; None if its content cannot be served."""
    if slot is None:
        return None
    if slot == ABSENT:
        return _HIT_ABSENT
    row = decode_value(slot, key, table.fingerprint)
    return None if row is None else Read(Outcome.HIT, row)


async def _keep(_max_age: float) -> None:
    """Keep the description of the table that the cache was opened with."""


def _versions(expected: object) -> list[int] | None:
    """Return the versions that a row may have; None for any version.

    Args:
        expected: the precondition, a set of integers or None.
    """
    if expected is None:
        return None
    if not isinstance(expected, AbstractSet) or not all(map(_is_integer, expected)):
        message = "the expected versions are a set of integers, or None"
        raise InvalidValueError(None, message)
    return list(expected) or None


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
