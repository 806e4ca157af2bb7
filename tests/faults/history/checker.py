"""Looks through a history for what must not be.

What excuses what:

- A write whose answer says BYPASS, and every write through another service or `psql`, binds a service's
  reads only once the stream was in step with it: until then its lag is the bound.
- A dump that was restored to a cache unbinds its reads from what was written before, until a reconciliation
  has ended and the stream has brought what that left to it: a change in flight is no drift.
- A read that went past the cache may be newer than what the cache holds while a fault keeps the stream
  behind. So a later hit may be older than it, while a fault is being repaired or not yet caught up with.
  Two hits never go backwards, nor does a read of the database.

Killed parts, emptied caches, late commands, repeated and overtaken messages excuse nothing: leases, floors
and versions are there for them.
"""

from __future__ import annotations

from bisect import bisect_right
from collections import defaultdict
from dataclasses import dataclass
from enum import StrEnum
from itertools import accumulate
from math import inf
from typing import TYPE_CHECKING

from tests.faults.history.record import Kind, Outcome

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from tests.faults.history.record import Fault, History, Logged, Operation, Row

# The database's clock and ours are the same, read at slightly different moments.
_TOLERANCE = 0.1


class Wrong(StrEnum):
    """What can be wrong."""

    LOST = "lost"
    STALE_OWN_READ = "stale own read"
    LATE_READ = "read older than the stream"
    BACKWARDS = "backwards"
    STALE_AT_REST = "stale at rest"


@dataclass(frozen=True, slots=True)
class Finding:
    """Something wrong; `excuse` where a fault that was put in explains it."""

    wrong: Wrong
    text: str
    excuse: str = ""


def check(history: History) -> list[Finding]:
    """Everything that is wrong with a history."""
    rows = _Rows(history)
    unburied = [Finding(Wrong.LOST, f"no dead letter of {message}") for message in history.unburied]
    return [
        *unburied,
        *_lost(history, rows),
        *_old_reads(history, rows),
        *_backwards(history, rows),
        *_at_rest(history),
    ]


class _Rows:
    """The versions that each row has had."""

    def __init__(self, history: History) -> None:
        self.changes: dict[tuple[Row, int], Logged] = {}
        self.before = history.before
        self._absent: dict[Row, list[tuple[int, float]]] = defaultdict(list)
        self.newest: dict[Row, Logged] = {}
        for change in sorted(history.log, key=lambda change: change.version):
            self.changes[change.row, change.version] = change
            self.newest[change.row] = change
            if change.kind is Kind.DELETE:
                self._absent[change.row].append((change.version, change.at))
        for row in {operation.row for operation in history.operations} - history.before.keys():
            self._absent[row].insert(0, (0, -inf))
        self.deletes = self._acknowledged_deletes(history)

    def absent(self, row: Row, least: int, end: float) -> int | None:
        """The first version, from `least` on, with which the row was gone by then; None where it was not."""
        for version, at in self._absent.get(row, ()):
            if version >= least:
                return version if at <= end + _TOLERANCE else None
        return None

    def version(self, write: Operation) -> int | None:
        """The version that an acknowledged write drew; where its answer did not say, the least that fits."""
        return write.version if write.version is not None else self.deletes.get(id(write))

    def _acknowledged_deletes(self, history: History) -> dict[int, int]:
        """The versions of the deletes, whose answers do not say them: the earliest that fit."""
        logged: dict[tuple[Row, str], list[Logged]] = defaultdict(list)
        for change in history.log:
            if change.kind is Kind.DELETE:
                logged[change.row, change.source].append(change)
        for changes in logged.values():
            changes.sort(key=lambda change: change.version)
        found = {}
        deletes = (
            operation for operation in _acknowledged(history.operations) if operation.kind is Kind.DELETE
        )
        for delete in sorted(deletes, key=lambda operation: operation.end):
            if delete.version is not None:
                continue
            changes = logged[delete.row, delete.service]
            for change in changes:
                if delete.start - _TOLERANCE <= change.at <= delete.end + _TOLERANCE:
                    found[id(delete)] = change.version
                    changes.remove(change)
                    break
        return found


def _acknowledged(operations: Iterable[Operation]) -> Iterator[Operation]:
    return (
        operation
        for operation in operations
        if operation.kind is not Kind.READ and operation.outcome is Outcome.DONE
    )


def _lost(history: History, rows: _Rows) -> Iterator[Finding]:
    """Acknowledged writes and reads of what the log does not have, and rows that are not as it ends."""
    for write in _acknowledged(history.operations):
        version = rows.version(write)
        logged = None if version is None else rows.changes.get((write.row, version))
        if logged is None or logged.kind is not write.kind or logged.digest != write.digest:
            yield Finding(Wrong.LOST, f"{write} is acknowledged, the log has {logged}")
    for row, newest in rows.newest.items():
        expected = newest.version if newest.kind is Kind.UPSERT else None
        if history.after.get(row) != expected:
            yield Finding(
                Wrong.LOST, f"{row} has version {history.after.get(row)}, the log ends with {newest}"
            )
    for read in _answered(history.operations):
        if read.version is None or rows.before.get(read.row) == read.version:
            continue
        logged = rows.changes.get((read.row, read.version))
        if logged is None or logged.digest != read.digest:
            yield Finding(Wrong.LOST, f"{read} shows what was never committed, the log has {logged}")


def _answered(operations: Iterable[Operation]) -> Iterator[Operation]:
    return (
        operation
        for operation in operations
        if operation.kind is Kind.READ and operation.outcome in {Outcome.DONE, Outcome.ABSENT}
    )


@dataclass(frozen=True, slots=True)
class _Bound:
    """From `since` on, reads show at least this version; `start` is when it began to be written."""

    since: float
    start: float
    version: int


class _Bounds:
    """The bounds of one row's reads at one service."""

    def __init__(self, bounds: Iterable[_Bound]) -> None:
        self._bounds = sorted(bounds, key=lambda bound: bound.since)
        self._since = [bound.since for bound in self._bounds]
        self._highest = list(accumulate((bound.version for bound in self._bounds), max))

    def at(self, moment: float, after: float = -inf) -> int:
        """The least version that a read that begins now may show, by what was written after a moment."""
        count = bisect_right(self._since, moment)
        if after == -inf:
            return self._highest[count - 1] if count else 0
        return max((bound.version for bound in self._bounds[:count] if bound.start >= after), default=0)


class _Stream:
    """When the stream was in step with what."""

    def __init__(self, in_step: Iterable[tuple[float, float]]) -> None:
        looks = sorted(in_step, reverse=True)
        self._committed = [-committed for committed, _ in looks]
        self._earliest = list(accumulate((applied for _, applied in looks), min))

    def in_step_with(self, committed: float) -> float:
        """When everything that was committed by then was in the caches, as far as anyone looked."""
        count = bisect_right(self._committed, -committed)
        return self._earliest[count - 1] if count else inf


def _old_reads(history: History, rows: _Rows) -> Iterator[Finding]:
    """Reads older than what their service had acknowledged, or than the stream had brought to its cache."""
    services = {read.service for read in _answered(history.operations)}
    stream = _Stream(history.in_step)
    restores = [fault for fault in history.faults if fault.restored]
    own: dict[tuple[str, Row], list[_Bound]] = defaultdict(list)
    bypassed: dict[tuple[str, Row], list[_Bound]] = defaultdict(list)
    streamed: dict[Row, list[_Bound]] = defaultdict(list)
    for write in _acknowledged(history.operations):
        version = rows.version(write)
        if version is None:
            continue
        bound = _Bound(write.end, write.start, version)
        if write.service in services:
            kind = bypassed if write.cache == "BYPASS" else own
            kind[write.service, write.row].append(bound)
        in_step = stream.in_step_with(write.end)
        if in_step < inf:
            streamed[write.row].append(_Bound(in_step, write.start, version))
    own_bounds = {place: _Bounds(bounds) for place, bounds in own.items()}
    bypassed_bounds = {place: _Bounds(bounds) for place, bounds in bypassed.items()}
    streamed_bounds = {row: _Bounds(bounds) for row, bounds in streamed.items()}
    nothing = _Bounds(())
    for read in _answered(history.operations):
        place = (read.service, read.row)
        restored = _restored(restores, read)
        for wrong, bounds, excuse in (
            (Wrong.STALE_OWN_READ, own_bounds.get(place, nothing), ""),
            (Wrong.LATE_READ, streamed_bounds.get(read.row, nothing), ""),
            (Wrong.STALE_OWN_READ, bypassed_bounds.get(place, nothing), "the write's cache step had failed"),
        ):
            if _is_older(rows, read, bounds.at(read.start, restored)):
                yield Finding(wrong, f"{read} is older than {bounds.at(read.start, restored)}", excuse)
                break
            if restored > -inf and _is_older(rows, read, bounds.at(read.start)):
                yield Finding(wrong, f"{read} is older than {bounds.at(read.start)}", "a restored dump")
                break


def _restored(restores: Iterable[Fault], read: Operation) -> float:
    """Since when writes bind the read: since the end of the last restore that is not made good by then."""
    return max(
        (
            fault.repaired
            for fault in restores
            if fault.restored == read.service
            and fault.begin <= read.end
            and read.start <= max(fault.reconciled, fault.in_step)
        ),
        default=-inf,
    )


def _is_older(rows: _Rows, read: Operation, least: int) -> bool:
    if read.version is not None:
        return read.version < least
    return rows.absent(read.row, least, read.end) is None


def _backwards(history: History, rows: _Rows) -> Iterator[Finding]:
    """Reads that show less than an earlier read of the same client."""
    seen: dict[tuple[str, Row], tuple[int, Operation]] = {}
    reads = sorted(_answered(history.operations), key=lambda operation: operation.start)
    for read in reads:
        place = (read.client, read.row)
        least, earlier = seen.get(place, (0, read))
        version = read.version if read.version is not None else rows.absent(read.row, least, read.end)
        if version is None or version < least:
            text = f"{read} after {earlier}"
            yield Finding(Wrong.BACKWARDS, text, _excuse(history.faults, earlier, read))
            # What follows is compared with this, or one slip would be many.
            version = read.version or 0
        seen[place] = (version, read)


def _excuse(faults: Iterable[Fault], earlier: Operation, later: Operation) -> str:
    if _restored(faults, later) > earlier.start:
        return "a restored dump"
    past_the_cache = earlier.cache != "HIT" and later.cache == "HIT"
    if past_the_cache and any(
        fault.begin <= later.end and earlier.start <= fault.in_step for fault in faults
    ):
        return "a read past the cache, during a fault"
    return ""


def _at_rest(history: History) -> Iterator[Finding]:
    """Slots that differ from their rows after the faults, and a stream that never came to rest."""
    for fault in history.faults:
        if fault.in_step == inf:
            yield Finding(
                Wrong.STALE_AT_REST, f"changes before the repair of {fault} are still not in the caches"
            )
    for difference in history.at_rest:
        yield Finding(Wrong.STALE_AT_REST, str(difference))
    for difference in history.reconciled:
        yield Finding(Wrong.STALE_AT_REST, f"after a reconciliation: {difference}")
