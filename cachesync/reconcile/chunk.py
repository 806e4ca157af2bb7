"""One chunk of a reconciliation: slots are read, compared with their rows, looked at again, and repaired."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from itertools import compress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import structlog
from hiredis import ReplyError

from cachesync.reconcile.drift import Findings, Kind, drift_of, repair_of
from cachesync.slots.layout import UP_TO_PAYLOAD, encode_value, slot_name, with_jitter
from cachesync.slots.scripts import run_script

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator, Callable, Mapping

    from cachesync.change import Row
    from cachesync.entity import Entity
    from cachesync.reconcile.bulk import Bulk
    from cachesync.reconcile.rows import ComparedRows
    from cachesync.reconcile.source import Source
    from cachesync.slots.scripts import Command

_log = structlog.get_logger(__name__)

SETTLE_SECONDS: Final = 5.0
"""How long a slot has to be wrong before it is called so: longer than a change takes to a cache."""

# The more slots PostgreSQL is asked for at a time, the more of their rows share a page, which matters where
# the table is larger than its memory; and the more memory they take here.
_ROUND_SECONDS: Final = 1.0
_FEWEST: Final = 500
_MOST: Final = 100_000
# A rate limit is kept evenly.
_LIMITED_ROUND_SECONDS: Final = 0.2
_FIRST: Final = 10_000
# Slots that wait for their second look; so many of them bound the memory.
_MOST_WAITING: Final = 100_000
# Whole slots are read so many at a time: their payloads may be large.
_SECOND_LOOK: Final = 500
_LEASE: Final = ord("L")


@dataclass(frozen=True, slots=True)
class Candidate:
    """A slot that differed from its row at the first look; `version` is the row's, None without one."""

    entity: str
    key: str
    begins: bytes
    version: int | None


class Drift(NamedTuple):
    """A slot that is wrong, as it was read before the row was."""

    key: str
    name: bytes
    slot: bytes | ReplyError
    row: Row | None
    kind: Kind


@dataclass(slots=True)
class Round:
    """What was read at a time, and what is left to do about it."""

    cursor: int
    findings: dict[str, Findings] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    due: float = 0.0


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a chunk has come.

    Attributes:
        cursor: where it goes on after an interruption: all before it is done.
        share: how much of it has been read, from 0 to 1.
        findings: what was found up to the cursor, by entity.
    """

    cursor: int
    share: float
    findings: Mapping[str, Findings]


class Chunk:
    """Reconciles some of the slots of one service.

    Args:
        bulk: a connection to its Redis.
        rows: the rows of each entity that is asked for.
        entities: their declarations.
        service: its name.
        deep: whether payloads are compared, too.
        dry_run: whether nothing is repaired.
        rate_limit: the most slots per second; None: as fast as it goes.
        settle_seconds: how long a slot has to be wrong before it is called so.
    """

    def __init__(
        self,
        bulk: Bulk,
        rows: Mapping[str, ComparedRows],
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
        # One round is read while the one before it is compared, but a connection is one thread's at a time.
        self._redis = asyncio.Lock()

    async def run(self, source: Source, findings: dict[str, Findings]) -> AsyncGenerator[Progress]:
        """Do it; yields after each round.

        Args:
            source: what is to be examined.
            findings: what was found before its cursor.

        Raises:
            CacheUnavailableError: Redis does not answer.
        """
        waiting: deque[Round] = deque()
        cursor, share, size, ended = source.cursor, 0.0, _FIRST, False
        reading = asyncio.ensure_future(self._read(source, self._at_most(size)))
        try:
            while not ended or waiting:
                if not ended:
                    started = time.monotonic()
                    names, slots = await reading
                    current, share, ended = Round(source.cursor), source.share, source.ended
                    if not ended:
                        reading = asyncio.ensure_future(self._read(source, self._at_most(size)))
                    await self._first_look(names, slots, current)
                    waiting.append(current)
                    size = await self._paced(size, len(names), time.monotonic() - started)
                while waiting and (ended or self._is_due(waiting)):
                    done = waiting.popleft()
                    await self._second_look(done)
                    for entity, found in done.findings.items():
                        findings.setdefault(entity, Findings()).add(found)
                    cursor = done.cursor
                yield Progress(cursor, share, findings)
        finally:
            # It has the connection until it ends.
            await asyncio.wait({reading})
            if not reading.cancelled():
                reading.exception()

    def _at_most(self, size: int) -> int:
        if self._rate_limit is None:
            return size
        return max(1, min(size, int(self._rate_limit * _LIMITED_ROUND_SECONDS)))

    async def _paced(self, size: int, count: int, seconds: float) -> int:
        """Wait as the rate limit asks; the size that makes the next round take as long as a round should."""
        if self._rate_limit is not None:
            await asyncio.sleep(count / self._rate_limit - seconds)
        factor = min(2.0, max(0.5, _ROUND_SECONDS / max(seconds, 0.001)))
        return max(_FEWEST, min(_MOST, int(size * factor)))

    @staticmethod
    def _is_due(waiting: deque[Round]) -> bool:
        first = waiting[0]
        if not first.candidates or first.due <= time.monotonic():
            return True
        return sum(len(one.candidates) for one in waiting) > _MOST_WAITING

    async def _read(self, source: Source, size: int) -> tuple[list[bytes], list[bytes]]:
        """The next names, and what their slots begin with."""
        async with self._redis:
            return await source.read(size)

    async def _first_look(self, names: list[bytes], slots: list[bytes], current: Round) -> None:
        """Compare slots with their rows, which are read later than they were."""
        for prefix, entity in self._prefixes.items():
            # An empty one is gone since it was listed; a lease is about to be something else.
            compared = [
                slot != b"" and slot[0] != _LEASE and name.startswith(prefix)
                for name, slot in zip(names, slots, strict=True)
            ]
            keys = [name[len(prefix) :] for name in compress(names, compared)]
            if not keys:
                continue
            found = list(compress(slots, compared))
            current.findings[entity] = Findings(examined=len(keys))
            for place, version in await self._rows[entity].disagreeing(keys, found, deep=self._deep):
                key, begins = keys[place].decode(errors="surrogateescape"), found[place][:UP_TO_PAYLOAD]
                current.candidates.append(Candidate(entity, key, begins, version))
        current.due = time.monotonic() + self._settle_seconds

    async def _second_look(self, current: Round) -> None:
        """Tell drift from changes in flight, and repair it."""
        if not current.candidates:
            return
        await asyncio.sleep(current.due - time.monotonic())
        groups: dict[str, list[Candidate]] = {}
        for candidate in current.candidates:
            groups.setdefault(candidate.entity, []).append(candidate)
        for entity, candidates in groups.items():
            for start in range(0, len(candidates), _SECOND_LOOK):
                await self._settle(entity, candidates[start : start + _SECOND_LOOK], current.findings[entity])

    async def _settle(self, entity: str, candidates: list[Candidate], findings: Findings) -> None:
        slots = await self._in_thread(self._bulk.call, [(b"GET", self._name(one)) for one in candidates])
        rows = await self._rows[entity].read(one.key for one in candidates)
        wrong: list[Drift] = []
        for one, slot in zip(candidates, slots, strict=True):
            row = rows.get(one.key)
            if slot is None or (None if row is None else row.version) != one.version:
                continue
            kind: Kind | None = None
            if isinstance(slot, ReplyError):
                # No string at all, which no script can touch.
                kind = Kind.ORPHAN if row is None else Kind.STALE
            elif slot[:UP_TO_PAYLOAD] == one.begins:
                kind = drift_of(slot, row, deep=self._deep)
            if kind is not None:
                wrong.append(Drift(one.key, self._name(one), slot, row, kind))
        wrong = await self._without_changes_in_flight(entity, wrong)
        for drift in wrong:
            findings.found(drift.kind, drift.key)
        if not self._dry_run:
            await self._repair(entity, wrong, findings)

    async def _without_changes_in_flight(self, entity: str, wrong: list[Drift]) -> list[Drift]:
        versions = [one.row.version for one in wrong if one.row is not None]
        gone = [one.key for one in wrong if one.row is None]
        if not wrong:
            return wrong
        moving, going = await self._rows[entity].in_flight(versions, gone)

        def is_in_flight(one: Drift) -> bool:
            if one.row is None:
                return going is None or one.key in going
            # A change that is on its way makes right what is older, and nothing else.
            return (
                one.kind is not Kind.AHEAD
                and not isinstance(one.slot, ReplyError)
                and not one.slot.startswith(encode_value(one.row.version, b"", b""))
                and one.row.version in moving
            )

        return [one for one in wrong if not is_in_flight(one)]

    async def _repair(self, entity: str, wrong: list[Drift], findings: Findings) -> None:
        declared = self._entities[entity]
        repairs: list[tuple[Drift, Command]] = []
        for one in wrong:
            if isinstance(one.slot, ReplyError):
                _log.warning("what stands in a slot's place is none", slot=one.name, error=str(one.slot))
                findings.could_not_repair(one.key)
                continue
            content = repair_of(one.kind, one.row, declared.on_change)
            repairs.append((one, (one.name, one.slot, content, with_jitter(declared.ttl))))
        answers = await self._in_thread(run_script, "repair", [call for _, call in repairs], self._bulk.call)
        for (one, _), answer in zip(repairs, answers, strict=True):
            if isinstance(answer, ReplyError):
                _log.warning("a slot could not be repaired", slot=one.name, error=str(answer))
                findings.could_not_repair(one.key)
            elif answer:
                findings.repaired += 1
            else:
                findings.refused += 1

    def _name(self, candidate: Candidate) -> bytes:
        name = slot_name(self._service, candidate.entity, candidate.key)
        return name.encode(errors="surrogateescape")

    async def _in_thread(self, call: Callable[..., list[Any]], *arguments: Any) -> list[Any]:
        """Use the connection in a thread, while nobody else does."""
        async with self._redis:
            return await asyncio.to_thread(call, *arguments)
