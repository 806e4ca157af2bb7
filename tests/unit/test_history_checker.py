"""The checker of histories, on histories made by hand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.history.checker import Wrong, check
from tests.faults.history.record import Difference, Fault, History, Kind, Logged, Operation, Outcome, Row

if TYPE_CHECKING:
    from collections.abc import Iterable

ROW = Row("student", "1")


def done(start: float, kind: Kind, version: int | None = None, **changed: Any) -> Operation:
    """An operation at sa, from a start until 0.5 s later."""
    outcome = Outcome.ABSENT if kind is Kind.READ and version is None else Outcome.DONE
    known: dict[str, Any] = {
        "client": "sa-1",
        "service": "sa",
        "row": ROW,
        "kind": kind,
        "start": start,
        "end": start + 0.5,
        "outcome": outcome,
        "version": version,
        "digest": "" if version is None else str(version),
        "cache": "HIT" if kind is Kind.READ else "",
    }
    return Operation(**known | changed)


def put(start: float, version: int, **changed: Any) -> Operation:
    return done(start, Kind.UPSERT, version, **changed)


def read(start: float, version: int | None, **changed: Any) -> Operation:
    return done(start, Kind.READ, version, **changed)


def upsert(version: int, at: float = 0.2, source: str = "sa") -> Logged:
    return Logged(row=ROW, version=version, kind=Kind.UPSERT, source=source, at=at, digest=str(version))


def delete(version: int, at: float, source: str = "sa") -> Logged:
    return Logged(row=ROW, version=version, kind=Kind.DELETE, source=source, at=at)


def found(
    operations: Iterable[Operation],
    log: Iterable[Logged],
    after: int | None,
    *,
    faults: Iterable[Fault] = (),
    before: int | None = None,
    in_step: Iterable[tuple[float, float]] = (),
) -> list[tuple[Wrong, str]]:
    """What the checker finds in the history of one row, with its excuses."""
    history = History(
        operations=list(operations),
        log=list(log),
        faults=list(faults),
        in_step=list(in_step),
        before={} if before is None else {ROW: before},
        after={} if after is None else {ROW: after},
    )
    return [(finding.wrong, finding.excuse) for finding in check(history)]


def test_nothing_is_wrong_with_reads_of_what_was_written() -> None:
    operations = [read(0, None), put(1, 5), read(2, 5), read(3, 5), put(4, 7), read(5, 7)]
    assert found(operations, [upsert(5), upsert(7)], after=7) == []


def test_an_acknowledged_write_that_the_log_does_not_have() -> None:
    assert found([put(0, 5)], [upsert(4)], after=4) == [(Wrong.LOST, "")]


def test_an_acknowledged_write_that_the_log_has_with_another_payload() -> None:
    assert found([put(0, 5, digest="other")], [upsert(5)], after=5) == [(Wrong.LOST, "")]


def test_an_acknowledged_delete_that_the_log_does_not_have() -> None:
    assert found([done(1, Kind.DELETE)], [delete(5, at=0.0)], after=None) == [(Wrong.LOST, "")]


def test_two_acknowledged_deletes_are_not_one() -> None:
    deletes = [done(1, Kind.DELETE), done(1.1, Kind.DELETE, client="sa-2")]
    assert found(deletes, [delete(5, at=1.3)], after=None) == [(Wrong.LOST, "")]


@pytest.mark.parametrize("after", [4, None])
def test_a_row_that_is_not_as_the_log_ends(after: int | None) -> None:
    assert found([put(0, 5)], [upsert(4), upsert(5)], after=after) == [(Wrong.LOST, "")]


def test_a_read_of_what_was_rolled_back() -> None:
    assert found([read(1, 5)], [upsert(6)], after=6) == [(Wrong.LOST, "")]


def test_a_read_of_a_version_with_the_payload_of_another() -> None:
    assert found([read(1, 5, digest="other")], [upsert(5)], after=5) == [(Wrong.LOST, "")]


def test_a_read_that_is_older_than_its_service_acknowledged() -> None:
    operations = [put(0, 6), read(1, 5, client="sa-2")]
    assert found(operations, [upsert(5), upsert(6)], after=6) == [(Wrong.STALE_OWN_READ, "")]


def test_a_write_binds_no_read_that_began_before_its_acknowledgement() -> None:
    operations = [put(0, 6), read(0.4, 5, client="sa-2")]
    assert found(operations, [upsert(5), upsert(6)], after=6) == []


def test_a_write_binds_no_reads_at_another_service() -> None:
    operations = [put(0, 6), read(1, 5, client="sb-1", service="sb")]
    assert found(operations, [upsert(5), upsert(6)], after=6) == []


def test_a_row_that_is_hidden_after_its_service_acknowledged_it() -> None:
    operations = [put(0, 6), read(1, None, client="sa-2")]
    assert found(operations, [upsert(6)], after=6) == [(Wrong.STALE_OWN_READ, "")]


def test_a_row_that_is_absent_since_another_deleted_it() -> None:
    operations = [put(0, 6), read(1, None, client="sa-2")]
    assert found(operations, [upsert(6), delete(7, 0.9, "sb")], after=None) == []


def test_a_row_that_was_hidden_before_it_was_deleted() -> None:
    operations = [put(0, 6), read(1, None, client="sa-2")]
    assert found(operations, [upsert(6), delete(7, 9.0, "sb")], after=None) == [(Wrong.STALE_OWN_READ, "")]


def test_a_deleted_row_that_is_still_read() -> None:
    operations = [done(1, Kind.DELETE), read(2, 5)]
    assert found(operations, [upsert(5), delete(6, at=1.2)], after=None) == [(Wrong.STALE_OWN_READ, "")]


def test_a_row_that_was_inserted_again_after_a_delete() -> None:
    operations = [done(1, Kind.DELETE), put(2, 7), read(3, 7)]
    assert found(operations, [upsert(5), delete(6, at=1.2), upsert(7)], after=7) == []


def test_a_write_past_the_cache_binds_no_read_until_the_stream_is_in_step() -> None:
    log = [upsert(5), upsert(6)]
    write = put(0, 6, cache="BYPASS")
    excused = (Wrong.STALE_OWN_READ, "the write's cache step had failed")
    assert found([write, read(3, 5)], log, after=6, in_step=[(2, 5)]) == [excused]
    assert found([write, read(6, 5)], log, after=6, in_step=[(2, 5)]) == [(Wrong.LATE_READ, "")]


def test_a_write_by_psql_binds_every_read_once_the_stream_is_in_step() -> None:
    log = [upsert(5), upsert(6, source="postgres")]
    write = put(0, 6, client="psql-0", service="psql")
    assert found([write, read(3, 5)], log, after=6, in_step=[(2, 5)]) == []
    assert found([write, read(6, 5)], log, after=6, in_step=[(2, 5)]) == [(Wrong.LATE_READ, "")]
    assert found([write, read(6, 5)], log, after=6, in_step=[(0.4, 5), (7, 8)]) == []


def test_a_restored_dump_unbinds_reads_from_what_was_written_before_until_it_is_reconciled() -> None:
    log = [upsert(5), upsert(6)]
    dump = Fault(kind="restore", part="redis-sa", begin=2, repaired=3, in_step=9, restored="sa", reconciled=6)
    excused = (Wrong.STALE_OWN_READ, "a restored dump")
    assert found([put(0, 6), read(4, 5)], log, after=6, faults=[dump]) == [excused]
    assert found([put(0, 6), read(8, 5)], log, after=6, faults=[dump]) == [excused]
    assert found([put(0, 6), read(10, 5)], log, after=6, faults=[dump]) == [(Wrong.STALE_OWN_READ, "")]
    assert found([put(3, 6), read(4, 5)], log, after=6, faults=[dump]) == [(Wrong.STALE_OWN_READ, "")]


def test_a_dump_that_was_restored_to_another_cache_excuses_nothing() -> None:
    dump = Fault(kind="restore", part="redis-sb", begin=2, repaired=3, in_step=9, restored="sb")
    operations = [put(0, 6), read(4, 5)]
    assert found(operations, [upsert(5), upsert(6)], after=6, faults=[dump]) == [(Wrong.STALE_OWN_READ, "")]


def test_a_client_that_reads_backwards() -> None:
    assert found([read(0, 6), read(1, 5)], [upsert(5), upsert(6)], after=6) == [(Wrong.BACKWARDS, "")]


def test_a_client_to_whom_a_row_vanishes_that_was_not_deleted() -> None:
    assert found([read(0, 6), read(1, None)], [upsert(6)], after=6) == [(Wrong.BACKWARDS, "")]


def test_a_client_that_sees_what_was_before_the_absence_that_it_saw() -> None:
    operations = [read(0, 5), read(1, None), read(2, 5)]
    assert found(operations, [upsert(5), delete(6, 0.5)], after=None) == [(Wrong.BACKWARDS, "")]


def test_another_client_may_be_ahead() -> None:
    operations = [read(0, 6), read(1, 5, client="sa-2")]
    assert found(operations, [upsert(5), upsert(6)], after=6) == []


@pytest.mark.parametrize(
    ("first", "then", "excuse"),
    [
        ("BYPASS", "HIT", "a read past the cache, during a fault"),
        ("MISS", "HIT", "a read past the cache, during a fault"),
        ("HIT", "HIT", ""),
        ("HIT", "MISS", ""),
        ("BYPASS", "BYPASS", ""),
    ],
)
def test_during_a_fault_only_a_hit_may_be_older_than_a_read_past_the_cache(
    first: str, then: str, excuse: str
) -> None:
    cut = Fault(kind="cut", part="redis", begin=0, repaired=2, in_step=5)
    operations = [read(1, 6, cache=first), read(3, 5, cache=then)]
    assert found(operations, [upsert(5), upsert(6)], after=6, faults=[cut]) == [(Wrong.BACKWARDS, excuse)]


def test_between_faults_no_read_may_be_older_than_one_before() -> None:
    cut = Fault(kind="cut", part="redis", begin=0, repaired=2, in_step=5)
    operations = [read(6, 6, cache="BYPASS"), read(7, 5)]
    assert found(operations, [upsert(5), upsert(6)], after=6, faults=[cut]) == [(Wrong.BACKWARDS, "")]


@pytest.mark.parametrize("when", ["at_rest", "reconciled"])
def test_slots_that_differ_at_rest_or_after_a_reconciliation(when: str) -> None:
    history = History()
    getattr(history, when).append(Difference(service="sa", row=ROW, held="V5", version=6))
    assert [(finding.wrong, finding.excuse) for finding in check(history)] == [(Wrong.STALE_AT_REST, "")]


def test_a_stream_that_never_comes_to_rest() -> None:
    kill = Fault(kind="kill", part="triggerer", begin=0, repaired=2)
    assert found([], [], after=None, faults=[kill]) == [(Wrong.STALE_AT_REST, "")]


def test_a_poisoned_message_that_is_no_dead_letter() -> None:
    findings = check(History(unburied=["sb poison-1"]))
    assert [(finding.wrong, finding.text) for finding in findings] == [
        (Wrong.LOST, "no dead letter of sb poison-1")
    ]
