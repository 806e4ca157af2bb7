"""One chunk of a reconciliation: reads slots, compares them with their rows, checks again, and repairs."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import compress
from typing import TYPE_CHECKING, Any, Final, NamedTuple, TypeAlias

import structlog
from hiredis import ReplyError

from cachesync.reconcile.drift import Findings, Kind, drift_of, repair_of
from cachesync.reconcile.source import UNREADABLE
from cachesync.slots.layout import EMPTY, is_lease, is_lease_lifetime, is_readable, slot_name, with_jitter
from cachesync.slots.scripts import is_emptied, run_script
from cachesync.value import UP_TO_PAYLOAD, encode_value

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from cachesync.change import Row
    from cachesync.entity import Entity
    from cachesync.reconcile.rows import ComparedLookup, ComparedRows
    from cachesync.reconcile.source import Batch, Source, Values
    from cachesync.slots.bulk import Bulk
    from cachesync.slots.scripts import Command

_log = structlog.get_logger(__name__)

Compared: TypeAlias = "ComparedRows | ComparedLookup"
"""The rows with which slots are compared."""

SETTLE_SECONDS: Final = 5.0
"""How long a slot must be wrong to count as drift: longer than a change takes to reach a cache."""

# The more slots a round has, the more of their rows share a page, which matters if the table is larger than
# PostgreSQL's memory; but the more memory this process needs.
_ROUND_SECONDS: Final = 1.0
_MIN_ROUND: Final = 500
_MAX_ROUND: Final = 200_000
# Short, so that a rate limit does not lead to bursts.
_LIMITED_ROUND_SECONDS: Final = 0.2
_FIRST_ROUND: Final = 50_000
# Limits the memory for slots that wait to be checked again.
_MAX_CANDIDATES: Final = 100_000
# Small, because these slots are read in full and their payloads can be large.
_RECHECK_BATCH: Final = 500


@dataclass(frozen=True, slots=True)
class Candidate:
    """A slot that differed from its row when they were first compared.

    Attributes:
        entity: the entity's name.
        key: the row's key.
        before_payload: the slot up to its payload; empty if it was not compared: unreadable, or a lease.
        version: the row's version; None if there is no row, or if it was not compared.
    """

    entity: str
    key: str
    before_payload: bytes
    version: int | None


class Drift(NamedTuple):
    """A slot that is wrong.

    Attributes:
        key: the row's key.
        name: the slot's name.
        slot: the slot's content, read before the row; empty if its name holds another Redis type.
        row: the row; None if there is none.
        kind: the kind of drift.
    """

    key: str
    name: bytes
    slot: bytes
    row: Row | None
    kind: Kind


@dataclass(slots=True)
class Round:
    """The slots that were read together.

    Attributes:
        cursor: the source's cursor after them.
        findings: what was found so far, by entity.
        candidates: the slots to check again.
        due: when to check them, on the monotonic clock.
    """

    cursor: int
    findings: dict[str, Findings] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    due: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """The progress of a chunk.

    Attributes:
        cursor: where to resume after an interruption; everything before it is finished.
        share: the share of the chunk that has been read, from 0 to 1.
        findings: what was found up to the cursor, by entity.
    """

    cursor: int
    share: float
    findings: Mapping[str, Findings]


class Chunk:
    """Reconciles a part of one service's slots.

    Args:
        bulk: a connection to the service's Redis.
        rows: the rows of each entity to examine, by the entity's name; those of its lookups by theirs.
        entities: the declared entities, by the same names.
        service: the service's name.
        deep: whether to compare payloads too.
        dry_run: whether to report drift without repairing it.
        rate_limit: the maximum number of slots per second; None for no limit.
        settle_seconds: how long a slot must be wrong to count as drift, in seconds.
    """

    def __init__(
        self,
        bulk: Bulk,
        rows: Mapping[str, Compared],
        entities: Mapping[str, Entity],
        service: str,
        *,
        deep: bool,
        dry_run: bool,
        rate_limit: int | None = None,
        settle_seconds: float = SETTLE_SECONDS,
    ) -> None:
        self._bulk = bulk
        self._rows = rows
        self._entities = entities
        self._service = service
        self._deep = deep
        self._dry_run = dry_run
        self._rate_limit = rate_limit
        self._settle_seconds = settle_seconds
        self._prefixes = {slot_name(service, name, "").encode(): name for name in rows}
        # One round is read while the previous one is compared, but only one thread can use the connection.
        self._redis = asyncio.Lock()

    async def run(self, source: Source, findings: dict[str, Findings]) -> AsyncGenerator[Progress]:
        """Examine and repair the slots of a source; yield the progress after each round.

        Args:
            source: the slots to examine.
            findings: what was found before the source's cursor, by entity; it is updated.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        waiting: deque[Round] = deque()
        cursor, share, size, ended = source.cursor, 0.0, _FIRST_ROUND, False
        reading = asyncio.ensure_future(self._read(source, self._limited(size)))
        try:
            while not ended or waiting:
                if not ended:
                    started = time.monotonic()
                    batch = await reading
                    current, share, ended = Round(source.cursor), source.share, source.ended
                    if not ended:
                        reading = asyncio.ensure_future(self._read(source, self._limited(size)))
                    await self._compare(batch, current)
                    waiting.append(current)
                    size = await self._pace(size, batch.count, time.monotonic() - started)
                while waiting and (ended or self._is_due(waiting)):
                    done = waiting.popleft()
                    await self._recheck(done)
                    for entity, found in done.findings.items():
                        findings.setdefault(entity, Findings()).merge(found)
                    cursor = done.cursor
                yield Progress(cursor, share, findings)
        finally:
            # The read uses the connection until it ends.
            await asyncio.wait({reading})
            if not reading.cancelled():
                reading.exception()

    def _limited(self, size: int) -> int:
        if self._rate_limit is None:
            return size
        return max(1, min(size, int(self._rate_limit * _LIMITED_ROUND_SECONDS)))

    async def _pace(self, size: int, count: int, seconds: float) -> int:
        """Enforce the rate limit, and return the size with which the next round takes `_ROUND_SECONDS`."""
        if self._rate_limit is not None:
            await asyncio.sleep(count / self._rate_limit - seconds)
        factor = min(2.0, max(0.5, _ROUND_SECONDS / max(seconds, 0.001)))
        return max(_MIN_ROUND, min(_MAX_ROUND, int(size * factor)))

    @staticmethod
    def _is_due(waiting: deque[Round]) -> bool:
        first = waiting[0]
        if not first.candidates or first.due <= time.monotonic():
            return True
        return sum(len(one.candidates) for one in waiting) > _MAX_CANDIDATES

    async def _read(self, source: Source, size: int) -> Batch:
        """Return the next slots."""
        async with self._redis:
            return await source.read(size)

    async def _compare(self, batch: Batch, current: Round) -> None:
        """Compare slots with their rows, which are read after the slots."""
        for entity, values in batch.values.items():
            await self._compare_values(entity, values, current)
        for prefix, entity in self._prefixes.items():
            # An empty slot has been emptied since it was listed.
            examined = [
                slot != b"" and name.startswith(prefix)
                for name, slot in zip(batch.names, batch.slots, strict=True)
            ]
            keys = [name[len(prefix) :] for name in compress(batch.names, examined)]
            if keys:
                await self._compare_slots(entity, keys, list(compress(batch.slots, examined)), current)
        current.due = time.monotonic() + self._settle_seconds

    async def _compare_values(self, entity: str, values: Values, current: Round) -> None:
        if not values.count:
            return
        current.findings.setdefault(entity, Findings()).examined += values.count
        differing = await self._rows[entity].other_versions(values)
        if differing:
            keys, before_payloads = values.split()
            current.candidates += [
                Candidate(
                    entity, keys[index].decode(errors="surrogateescape"), before_payloads[index], version
                )
                for index, version in differing
            ]

    async def _compare_slots(
        self, entity: str, keys: list[bytes], slots: list[bytes], current: Round
    ) -> None:
        unlike_rows = [slot == UNREADABLE or is_lease(slot) for slot in slots]
        # A lease is about to become something else, unless it never ends.
        current.candidates += [
            Candidate(entity, unlike.decode(errors="surrogateescape"), EMPTY, None)
            for unlike in compress(keys, unlike_rows)
        ]
        leases = sum(map(is_lease, slots))
        current.findings.setdefault(entity, Findings()).examined += len(keys) - leases
        keys = [key for key, unlike in zip(keys, unlike_rows, strict=True) if not unlike]
        slots = [slot for slot, unlike in zip(slots, unlike_rows, strict=True) if not unlike]
        for index, version in await self._rows[entity].mismatches(keys, slots, deep=self._deep):
            key = keys[index].decode(errors="surrogateescape")
            current.candidates.append(Candidate(entity, key, slots[index][:UP_TO_PAYLOAD], version))

    async def _recheck(self, current: Round) -> None:
        """Check candidates again once they are due, and repair those that no change in flight explains."""
        if not current.candidates:
            return
        await asyncio.sleep(current.due - time.monotonic())
        groups: dict[str, list[Candidate]] = {}
        for candidate in current.candidates:
            groups.setdefault(candidate.entity, []).append(candidate)
        for entity, candidates in groups.items():
            for start in range(0, len(candidates), _RECHECK_BATCH):
                batch = candidates[start : start + _RECHECK_BATCH]
                await self._recheck_batch(entity, batch, current.findings[entity])

    async def _recheck_batch(self, entity: str, candidates: list[Candidate], findings: Findings) -> None:
        names = [self._name(one) for one in candidates]
        replies = await self._in_thread(
            self._bulk.call, [command for name in names for command in ((b"GET", name), (b"PTTL", name))]
        )
        rows = await self._rows[entity].read(one.key for one in candidates)
        wrong: list[Drift] = []
        for one, name, slot, left in zip(candidates, names, replies[::2], replies[1::2], strict=True):
            row = rows.get(one.key)
            version = None if row is None else row.version
            if slot is None:
                continue
            kind: Kind | None = None
            if _is_unreadable(slot, left):
                kind = Kind.UNREADABLE
                # Leases were not counted, because most of them end by themselves.
                findings.examined += isinstance(slot, bytes) and is_lease(slot)
            elif slot[:UP_TO_PAYLOAD] == one.before_payload and one.version == version:
                kind = drift_of(slot, row, deep=self._deep)
            if kind is not None:
                wrong.append(Drift(one.key, name, slot if isinstance(slot, bytes) else EMPTY, row, kind))
        wrong = await self._without_changes_in_flight(entity, wrong)
        for drift in wrong:
            findings.add_drift(drift.kind, drift.key)
        if not self._dry_run:
            await self._repair(entity, wrong, findings)

    async def _without_changes_in_flight(self, entity: str, wrong: list[Drift]) -> list[Drift]:
        if not wrong:
            return wrong
        versions = [one.row.version for one in wrong if one.row is not None]
        gone = [one.key for one in wrong if one.row is None]
        changing, deleting = await self._rows[entity].in_flight(versions, gone)

        def is_in_flight(one: Drift) -> bool:
            if one.kind is Kind.UNREADABLE:
                return False
            if one.row is None:
                return deleting is None or one.key in deleting
            # A change in flight can only explain a slot that is older than it.
            return (
                one.kind is not Kind.AHEAD
                and not one.slot.startswith(encode_value(one.row.version, b"", b""))
                and one.row.version in changing
            )

        return [one for one in wrong if not is_in_flight(one)]

    async def _repair(self, entity: str, wrong: list[Drift], findings: Findings) -> None:
        declared = self._entities[entity]
        repairs: list[Command] = [
            (
                one.name,
                one.slot,
                repair_of(one.kind, one.row, declared.on_change),
                with_jitter(declared.ttl),
            )
            for one in wrong
        ]
        replies = await self._in_thread(run_script, "repair", repairs, self._bulk.call)
        failed = [
            (one, reply)
            for one, reply in zip(wrong, replies, strict=True)
            if isinstance(reply, ReplyError) and not is_emptied(reply)
        ]
        deleted = await self._in_thread(self._bulk.call, [(b"DEL", one.name) for one, _ in failed])
        for (one, reply), delete in zip(failed, deleted, strict=True):
            if isinstance(delete, ReplyError):
                _log.warning("slot repair failed", slot=one.name, error=str(reply))
                findings.add_failure(one.key)
            else:
                findings.repaired += 1
        for reply in replies:
            if reply == 0:
                findings.refused += 1
            elif not isinstance(reply, ReplyError) or is_emptied(reply):
                findings.repaired += 1

    def _name(self, candidate: Candidate) -> bytes:
        name = slot_name(self._service, candidate.entity, candidate.key)
        return name.encode(errors="surrogateescape")

    async def _in_thread(self, call: Callable[..., list[Any]], *arguments: Any) -> list[Any]:
        """Call a function that uses the connection, in a thread, while no one else uses it."""
        async with self._redis:
            return await asyncio.to_thread(call, *arguments)


def _is_unreadable(slot: bytes | ReplyError, left: int | ReplyError) -> bool:
    """Return whether the content of a slot is not that of a slot.

    Args:
        slot: the content; an error if the name of the slot holds another Redis type.
        left: its remaining lifetime in milliseconds.
    """
    if isinstance(slot, ReplyError):
        return str(slot).startswith("WRONGTYPE")
    return not is_readable(slot) or (is_lease(slot) and isinstance(left, int) and not is_lease_lifetime(left))
