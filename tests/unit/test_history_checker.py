"""The checker of histories, on handwritten histories."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest

from tests.faults.history.checker import Wrong, check
from tests.faults.history.record import Difference, Fault, History, Kind, Logged, Operation, Outcome, Row

if TYPE_CHECKING:
    from collections.abc import Iterable

ROW = Row("student", "1")


def done(start: float, kind: Kind, version: int | None = None, **changed: Any) -> Operation:
    """Return an operation at sa that takes 0.5 s."""
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
    """Return the checker's findings in the history of one row, with their excuses."""
    history = History(
        operations=list(operations),
        log=list(log),
        faults=list(faults),
        in_step=list(in_step),
        before={} if before is None else {ROW: before},
        after={} if after is None else {ROW: after},
    )
    return [(finding.wrong, finding.excuse) for finding in check(history)]


def test_correct_history_has_no_findings() -> None:
    operations = [read(0, None), put(1, 5), read(2, 5), read(3, 5), put(4, 7), read(5, 7)]
    assert found(operations, [upsert(5), upsert(7)], after=7) == []


def nobody(start: float, value: str = "c") -> Operation:
    row = Row("student@code", value)
    return done(start, Kind.FIND, row=row, outcome=Outcome.ABSENT, value=value, cache="HIT")


def having(version: int, value: str, at: float = 0.2) -> Logged:
    return replace(upsert(version, at), value=value)


@pytest.mark.parametrize(
    ("log", "wrong"),
    [
        ([having(5, "c")], [(Wrong.STALE_OWN_READ, "")]),
        ([having(5, "d")], []),
        # Given away before the read began, after it had ended, and taken back.
        ([having(5, "c"), having(7, "", at=1.5)], []),
        ([having(5, "c"), having(7, "", at=3.5)], [(Wrong.STALE_OWN_READ, "")]),
        ([having(3, ""), having(5, "c")], [(Wrong.STALE_OWN_READ, "")]),
        ([having(5, "c"), delete(7, at=1.5)], []),
    ],
)
def test_value_that_an_acknowledged_write_gave_to_a_row_is_found(
    log: list[Logged], wrong: list[tuple[Wrong, str]]
) -> None:
    newest = log[-1]
    after = newest.version if newest.kind is Kind.UPSERT else None
    assert found([put(0, 5), nobody(2), nobody(0.1, "other")], log, after=after) == wrong


def test_row_found_by_a_value_has_it() -> None:
    log = [having(5, "c"), having(7, "d", at=2.0)]
    operations = [put(0, 5), read(1, 5, value="c"), read(1.2, 5, value="d")]
    assert found(operations, log, after=7) == [(Wrong.WRONG_ROW, "")]


def test_acknowledged_write_missing_from_the_log_is_lost() -> None:
    assert found([put(0, 5)], [upsert(4)], after=4) == [(Wrong.LOST, "")]


def test_acknowledged_write_logged_with_another_payload_is_lost() -> None:
    assert found([put(0, 5, digest="other")], [upsert(5)], after=5) == [(Wrong.LOST, "")]


def test_acknowledged_delete_missing_from_the_log_is_lost() -> None:
    assert found([done(1, Kind.DELETE)], [delete(5, at=0.0)], after=None) == [(Wrong.LOST, "")]


def test_two_acknowledged_deletes_need_two_logged_ones() -> None:
    deletes = [done(1, Kind.DELETE), done(1.1, Kind.DELETE, client="sa-2")]
    assert found(deletes, [delete(5, at=1.3)], after=None) == [(Wrong.LOST, "")]


@pytest.mark.parametrize("after", [4, None])
def test_row_that_differs_from_its_last_logged_change_is_lost(after: int | None) -> None:
    assert found([put(0, 5)], [upsert(4), upsert(5)], after=after) == [(Wrong.LOST, "")]


def test_read_of_a_version_that_was_never_committed_is_lost() -> None:
    assert found([read(1, 5)], [upsert(6)], after=6) == [(Wrong.LOST, "")]


def test_read_of_a_version_with_another_payload_is_lost() -> None:
    assert found([read(1, 5, digest="other")], [upsert(5)], after=5) == [(Wrong.LOST, "")]


def test_read_older_than_its_service_acknowledged_is_stale() -> None:
    operations = [put(0, 6), read(1, 5, client="sa-2")]
    assert found(operations, [upsert(5), upsert(6)], after=6) == [(Wrong.STALE_OWN_READ, "")]


def test_write_does_not_bind_reads_that_began_before_its_acknowledgement() -> None:
    operations = [put(0, 6), read(0.4, 5, client="sa-2")]
    assert found(operations, [upsert(5), upsert(6)], after=6) == []


def test_write_does_not_bind_reads_at_another_service() -> None:
    operations = [put(0, 6), read(1, 5, client="sb-1", service="sb")]
    assert found(operations, [upsert(5), upsert(6)], after=6) == []


def test_false_absence_after_an_acknowledged_write_is_stale() -> None:
    operations = [put(0, 6), read(1, None, client="sa-2")]
    assert found(operations, [upsert(6)], after=6) == [(Wrong.STALE_OWN_READ, "")]


def test_absence_after_a_delete_by_another_service_is_correct() -> None:
    operations = [put(0, 6), read(1, None, client="sa-2")]
    assert found(operations, [upsert(6), delete(7, 0.9, "sb")], after=None) == []


def test_absence_before_the_row_is_deleted_is_stale() -> None:
    operations = [put(0, 6), read(1, None, client="sa-2")]
    assert found(operations, [upsert(6), delete(7, 9.0, "sb")], after=None) == [(Wrong.STALE_OWN_READ, "")]


def test_read_of_a_deleted_row_is_stale() -> None:
    operations = [done(1, Kind.DELETE), read(2, 5)]
    assert found(operations, [upsert(5), delete(6, at=1.2)], after=None) == [(Wrong.STALE_OWN_READ, "")]


def test_read_of_a_row_inserted_again_after_a_delete_is_correct() -> None:
    operations = [done(1, Kind.DELETE), put(2, 7), read(3, 7)]
    assert found(operations, [upsert(5), delete(6, at=1.2), upsert(7)], after=7) == []


def test_write_that_bypassed_the_cache_binds_reads_once_the_stream_is_in_step() -> None:
    log = [upsert(5), upsert(6)]
    write = put(0, 6, cache="BYPASS")
    excused = (Wrong.STALE_OWN_READ, "the write's cache step failed")
    assert found([write, read(3, 5)], log, after=6, in_step=[(2, 5)]) == [excused]
    assert found([write, read(6, 5)], log, after=6, in_step=[(2, 5)]) == [(Wrong.LATE_READ, "")]


def test_write_with_psql_binds_all_reads_once_the_stream_is_in_step() -> None:
    log = [upsert(5), upsert(6, source="postgres")]
    write = put(0, 6, client="psql-0", service="psql")
    assert found([write, read(3, 5)], log, after=6, in_step=[(2, 5)]) == []
    assert found([write, read(6, 5)], log, after=6, in_step=[(2, 5)]) == [(Wrong.LATE_READ, "")]
    assert found([write, read(6, 5)], log, after=6, in_step=[(0.4, 5), (7, 8)]) == []


def test_restored_dump_excuses_reads_older_than_earlier_writes_until_it_is_reconciled() -> None:
    log = [upsert(5), upsert(6)]
    dump = Fault(kind="restore", part="redis-sa", begin=2, repaired=3, in_step=9, restored="sa", reconciled=6)
    excused = (Wrong.STALE_OWN_READ, "a restored dump")
    assert found([put(0, 6), read(4, 5)], log, after=6, faults=[dump]) == [excused]
    assert found([put(0, 6), read(8, 5)], log, after=6, faults=[dump]) == [excused]
    assert found([put(0, 6), read(10, 5)], log, after=6, faults=[dump]) == [(Wrong.STALE_OWN_READ, "")]
    assert found([put(3, 6), read(4, 5)], log, after=6, faults=[dump]) == [(Wrong.STALE_OWN_READ, "")]


def test_dump_restored_to_another_cache_excuses_nothing() -> None:
    dump = Fault(kind="restore", part="redis-sb", begin=2, repaired=3, in_step=9, restored="sb")
    operations = [put(0, 6), read(4, 5)]
    assert found(operations, [upsert(5), upsert(6)], after=6, faults=[dump]) == [(Wrong.STALE_OWN_READ, "")]


def test_client_that_reads_an_older_version_than_before_goes_backwards() -> None:
    assert found([read(0, 6), read(1, 5)], [upsert(5), upsert(6)], after=6) == [(Wrong.BACKWARDS, "")]


def test_client_that_no_longer_sees_an_existing_row_goes_backwards() -> None:
    assert found([read(0, 6), read(1, None)], [upsert(6)], after=6) == [(Wrong.BACKWARDS, "")]


def test_client_that_sees_a_deleted_row_again_goes_backwards() -> None:
    operations = [read(0, 5), read(1, None), read(2, 5)]
    assert found(operations, [upsert(5), delete(6, 0.5)], after=None) == [(Wrong.BACKWARDS, "")]


def test_clients_can_see_different_versions() -> None:
    operations = [read(0, 6), read(1, 5, client="sa-2")]
    assert found(operations, [upsert(5), upsert(6)], after=6) == []


@pytest.mark.parametrize(
    ("first", "then", "excuse"),
    [
        ("BYPASS", "HIT", "a read from the database during a fault"),
        ("MISS", "HIT", "a read from the database during a fault"),
        ("HIT", "HIT", ""),
        ("HIT", "MISS", ""),
        ("BYPASS", "BYPASS", ""),
    ],
)
def test_during_a_fault_only_a_hit_can_be_older_than_a_read_from_the_database(
    first: str, then: str, excuse: str
) -> None:
    cut = Fault(kind="cut", part="redis", begin=0, repaired=2, in_step=5)
    operations = [read(1, 6, cache=first), read(3, 5, cache=then)]
    assert found(operations, [upsert(5), upsert(6)], after=6, faults=[cut]) == [(Wrong.BACKWARDS, excuse)]


def test_between_faults_no_read_can_be_older_than_an_earlier_one() -> None:
    cut = Fault(kind="cut", part="redis", begin=0, repaired=2, in_step=5)
    operations = [read(6, 6, cache="BYPASS"), read(7, 5)]
    assert found(operations, [upsert(5), upsert(6)], after=6, faults=[cut]) == [(Wrong.BACKWARDS, "")]


@pytest.mark.parametrize("when", ["at_rest", "reconciled"])
def test_slot_that_differs_at_rest_or_after_a_reconciliation_is_stale(when: str) -> None:
    history = History()
    getattr(history, when).append(Difference(service="sa", row=ROW, held="V5", version=6))
    assert [(finding.wrong, finding.excuse) for finding in check(history)] == [(Wrong.STALE_AT_REST, "")]


def test_stream_that_never_comes_to_rest_is_a_finding() -> None:
    kill = Fault(kind="kill", part="triggerer", begin=0, repaired=2)
    assert found([], [], after=None, faults=[kill]) == [(Wrong.STALE_AT_REST, "")]


def test_undecodable_message_without_a_dead_letter_is_lost() -> None:
    findings = check(History(unburied=["sb poison-1"]))
    assert [(finding.wrong, finding.text) for finding in findings] == [
        (Wrong.LOST, "no dead letter for sb poison-1")
    ]
