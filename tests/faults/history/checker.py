"""Checks a history for violations of the guarantees.

Some violations are excused:

- A write whose response says BYPASS, and every write through another service or `psql`, binds a service's
  reads only once the stream has been in step with it. Until then, reads can be as old as the stream's lag.
- After a dump has been restored to a cache, writes from before the restore do not bind the cache's reads
  until a reconciliation has ended and the stream has applied the changes in flight, which are not drift.
- A read that went to the database can be newer than the cache while a fault delays the stream. A later hit
  can therefore be older than that read, until the caches are in step after the fault. Hits never go backwards
  relative to each other, and neither does a read from the database.

Killed components, emptied caches, late commands, and duplicate or reordered messages excuse nothing, since
leases, floors and versions exist to handle them.
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

# The database and this process read the same clock, at slightly different moments.
_TOLERANCE = 0.1


class Wrong(StrEnum):
    """Kinds of violations."""

    LOST = "lost"
    WRONG_ROW = "row without the value"
    STALE_OWN_READ = "stale own read"
    LATE_READ = "read older than the stream"
    BACKWARDS = "backwards"
    STALE_AT_REST = "stale at rest"


@dataclass(frozen=True, slots=True)
class Finding:
    """A violation.

    Attributes:
        wrong: the kind.
        text: what was found.
        excuse: the reason if an injected fault explains it, or an empty string.
    """

    wrong: Wrong
    text: str
    excuse: str = ""


def check(history: History) -> list[Finding]:
    """Return all violations in a history."""
    rows = _Rows(history)
    unburied = [Finding(Wrong.LOST, f"no dead letter for {message}") for message in history.unburied]
    return [
        *unburied,
        *_lost(history, rows),
        *_old_reads(history, rows),
        *_backwards(history, rows),
        *_at_rest(history),
    ]


class _Rows:
    """The versions of each row over time."""

    def __init__(self, history: History) -> None:
        self.changes: dict[tuple[Row, int], Logged] = {}
        self.before = history.before
        self._absent: dict[Row, list[tuple[int, float]]] = defaultdict(list)
        self._values: dict[Row, list[Logged]] = defaultdict(list)
        self.having: dict[str, set[Row]] = defaultdict(set)
        self.newest: dict[Row, Logged] = {}
        for change in sorted(history.log, key=lambda change: change.version):
            self.changes[change.row, change.version] = change
            self.newest[change.row] = change
            self._values[change.row].append(change)
            if change.value:
                self.having[change.value].add(change.row)
            if change.kind is Kind.DELETE:
                self._absent[change.row].append((change.version, change.at))
        for row in {operation.row for operation in history.operations} - history.before.keys():
            self._absent[row].insert(0, (0, -inf))
        self.deletes = self._acknowledged_deletes(history)

    def absent(self, row: Row, least: int, end: float) -> int | None:
        """Return the first version from `least` up that deleted the row, or None if it came after `end`."""
        for version, at in self._absent.get(row, ()):
            if version >= least:
                return version if at <= end + _TOLERANCE else None
        return None

    def lacks(self, row: Row, value: str, least: int, end: float) -> bool:
        """Return whether the row did not have a unique value at some version from `least` up, until `end`."""
        if not least:
            return True
        return any(
            change.version >= least and change.value != value and change.at <= end + _TOLERANCE
            for change in self._values[row]
        )

    def version(self, write: Operation) -> int | None:
        """Return the version of an acknowledged write; for a delete without one, the earliest that fits."""
        return write.version if write.version is not None else self.deletes.get(id(write))

    def _acknowledged_deletes(self, history: History) -> dict[int, int]:
        """Return the versions of deletes, which responses do not include: the earliest that fit."""
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
        if operation.kind in {Kind.UPSERT, Kind.DELETE} and operation.outcome is Outcome.DONE
    )


def _lost(history: History, rows: _Rows) -> Iterator[Finding]:
    """Find acknowledged writes and reads that the log lacks, and rows that differ from its last change."""
    for write in _acknowledged(history.operations):
        version = rows.version(write)
        logged = None if version is None else rows.changes.get((write.row, version))
        if logged is None or logged.kind is not write.kind or logged.digest != write.digest:
            yield Finding(Wrong.LOST, f"{write} was acknowledged, but the log has {logged}")
    for row, newest in rows.newest.items():
        expected = newest.version if newest.kind is Kind.UPSERT else None
        if history.after.get(row) != expected:
            yield Finding(
                Wrong.LOST, f"{row} has version {history.after.get(row)}, but the log ends with {newest}"
            )
    for read in _answered(history.operations):
        if read.version is None or rows.before.get(read.row) == read.version:
            continue
        logged = rows.changes.get((read.row, read.version))
        if logged is None or logged.digest != read.digest:
            yield Finding(Wrong.LOST, f"{read} returned data that was never committed; the log has {logged}")
        elif read.value and logged.value != read.value:
            yield Finding(Wrong.WRONG_ROW, f"{read} returned a row with {logged.value!r}")


def _answered(operations: Iterable[Operation]) -> Iterator[Operation]:
    return (
        operation
        for operation in operations
        if operation.kind is Kind.READ and operation.outcome in {Outcome.DONE, Outcome.ABSENT}
    )


@dataclass(frozen=True, slots=True)
class _Bound:
    """From `since` on, reads must return at least this version, whose write began at `start`."""

    since: float
    start: float
    version: int


class _Bounds:
    """The bounds on one row's reads through one service."""

    def __init__(self, bounds: Iterable[_Bound]) -> None:
        self._bounds = sorted(bounds, key=lambda bound: bound.since)
        self._since = [bound.since for bound in self._bounds]
        self._highest = list(accumulate((bound.version for bound in self._bounds), max))

    def at(self, moment: float, after: float = -inf) -> int:
        """Return the minimum version for a read that starts at `moment`, by writes begun since `after`."""
        count = bisect_right(self._since, moment)
        if after == -inf:
            return self._highest[count - 1] if count else 0
        return max((bound.version for bound in self._bounds[:count] if bound.start >= after), default=0)


class _Stream:
    """The stream's progress over time."""

    def __init__(self, in_step: Iterable[tuple[float, float]]) -> None:
        looks = sorted(in_step, reverse=True)
        self._committed = [-committed for committed, _ in looks]
        self._earliest = list(accumulate((applied for _, applied in looks), min))

    def in_step_with(self, committed: float) -> float:
        """Return when everything committed by then was known to be in the caches, or infinity."""
        count = bisect_right(self._committed, -committed)
        return self._earliest[count - 1] if count else inf


def _old_reads(history: History, rows: _Rows) -> Iterator[Finding]:
    """Find reads older than what their service had acknowledged, or than the stream had applied by then."""
    judged = list(_judged(history, rows))
    services = {read.service for read, _ in judged}
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
    for read, row in judged:
        place = (read.service, row)
        restored = _restored(restores, read)
        for wrong, bounds, excuse in (
            (Wrong.STALE_OWN_READ, own_bounds.get(place, nothing), ""),
            (Wrong.LATE_READ, streamed_bounds.get(row, nothing), ""),
            (Wrong.STALE_OWN_READ, bypassed_bounds.get(place, nothing), "the write's cache step failed"),
        ):
            if _is_older(rows, read, row, bounds.at(read.start, restored)):
                yield Finding(wrong, f"{read} is older than {bounds.at(read.start, restored)}", excuse)
                break
            if restored > -inf and _is_older(rows, read, row, bounds.at(read.start)):
                yield Finding(wrong, f"{read} is older than {bounds.at(read.start)}", "a restored dump")
                break


def _restored(restores: Iterable[Fault], read: Operation) -> float:
    """Return the time from which writes bind the read: the end of the last restore that still has effects."""
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


def _judged(history: History, rows: _Rows) -> Iterator[tuple[Operation, Row]]:
    """Yield each read with its row; one that found no row with a value, with each row that ever had it."""
    for read in _answered(history.operations):
        yield read, read.row
    for find in history.operations:
        if find.kind is Kind.FIND and find.outcome is Outcome.ABSENT:
            for row in rows.having.get(find.value, ()):
                yield find, row


def _is_older(rows: _Rows, read: Operation, row: Row, least: int) -> bool:
    if read.kind is Kind.FIND:
        return not rows.lacks(row, read.value, least, read.end)
    if read.version is not None:
        return read.version < least
    return rows.absent(read.row, least, read.end) is None


def _backwards(history: History, rows: _Rows) -> Iterator[Finding]:
    """Find reads older than an earlier read by the same client."""
    seen: dict[tuple[str, Row], tuple[int, Operation]] = {}
    reads = sorted(_answered(history.operations), key=lambda operation: operation.start)
    for read in reads:
        place = (read.client, read.row)
        least, earlier = seen.get(place, (0, read))
        version = read.version if read.version is not None else rows.absent(read.row, least, read.end)
        if version is None or version < least:
            text = f"{read} after {earlier}"
            yield Finding(Wrong.BACKWARDS, text, _excuse(history.faults, earlier, read))
            # Later reads are compared with this one, so that one violation is counted once.
            version = read.version or 0
        seen[place] = (version, read)


def _excuse(faults: Iterable[Fault], earlier: Operation, later: Operation) -> str:
    if _restored(faults, later) > earlier.start:
        return "a restored dump"
    past_the_cache = earlier.cache != "HIT" and later.cache == "HIT"
    if past_the_cache and any(
        fault.begin <= later.end and earlier.start <= fault.in_step for fault in faults
    ):
        return "a read from the database during a fault"
    return ""


def _at_rest(history: History) -> Iterator[Finding]:
    """Find slots that differ from their rows after the faults, and a stream that never came to rest."""
    for fault in history.faults:
        if fault.in_step == inf:
            yield Finding(
                Wrong.STALE_AT_REST, f"changes before the repair of {fault} are still not in the caches"
            )
    for difference in history.at_rest:
        yield Finding(Wrong.STALE_AT_REST, str(difference))
    for difference in history.reconciled:
        yield Finding(Wrong.STALE_AT_REST, f"after a reconciliation: {difference}")
