"""The judge, with times of the test's own."""

from __future__ import annotations

import pytest

from cachesync.live_check.judge import LAG_BOUNDS, Change, Followed, Judge, has, violation_of
from cachesync.slots.layout import ABSENT
from cachesync.value import encode_value

CHANGE = Change("student", "1", 7)
LEASE = b"L" + b"0" * 19 + b"token"


def value(version: int) -> bytes:
    return encode_value(version, b"01234567", b"{")


def look(judge: Judge, followed: Followed, head: bytes, now: float) -> bool:
    return judge.looked(followed, head, now, now)


@pytest.mark.parametrize(
    ("head", "seen", "deleted_seen"),
    [
        (b"", True, True),
        (LEASE, True, True),
        (ABSENT, False, True),
        (value(6), False, False),
        (value(7), True, True),
        (value(8), True, True),
        (b"foreign", False, False),
    ],
    ids=["empty", "lease", "absent", "older", "the version", "newer", "unreadable"],
)
def test_slot_has_a_change_if_no_read_of_it_is_older(head: bytes, *, seen: bool, deleted_seen: bool) -> None:
    assert has(head, CHANGE) is seen
    assert has(head, CHANGE._replace(is_delete=True)) is deleted_seen


def test_kinds_of_violations() -> None:
    found = [violation_of(head) for head in (value(6), ABSENT, b"foreign")]
    assert found == ["behind", "false absent", "unreadable"]


def test_change_of_the_live_checks_own_is_judged_at_every_horizon_and_its_lag_is_counted() -> None:
    judge = Judge()
    followed = judge.follow(CHANGE, 100.0, is_exact=True)
    planned = []
    for _ in range(9):
        now = followed.next_at
        planned.append(round(now - 100.0, 2))
        assert not look(judge, followed, value(6), now)
    assert planned == [0.01, 0.02, 0.04, 0.08, 0.1, 0.2, 0.4, 0.8, 1.0]
    assert judge.oldest() is followed
    assert look(judge, followed, value(7), 101.5)
    assert (judge.oldest(), judge.next_at()) == (None, None)
    counts = judge.take_counts()["student"]
    assert (counts.judged, counts.seen) == ([1, 1, 1, 1], [0, 0, 1, 1])
    assert [bound for bound, count in zip(LAG_BOUNDS, counts.lags, strict=True) if count] == [2.0]
    assert judge.take_counts() == {}


@pytest.mark.parametrize(("lag", "bound"), [(0.01, 0.01), (0.0101, 0.02), (300, 300), (301, float("inf"))])
def test_bounds_of_the_histogram_are_inclusive(lag: float, bound: float) -> None:
    judge = Judge()
    look(judge, judge.follow(CHANGE, 0.0, is_exact=True), value(7), lag)
    counts = judge.take_counts()["student"].lags
    assert [one for one, count in zip(LAG_BOUNDS, counts, strict=True) if count] == [bound]


def test_change_that_was_found_in_the_log_is_judged_from_when_it_was_found() -> None:
    """Its transaction can have committed long after the change was made."""
    judge = Judge()
    followed = judge.follow(CHANGE, 100.0)
    assert followed.next_at == 101.0
    look(judge, followed, value(7), 101.1)
    counts = judge.take_counts()["student"]
    assert (counts.judged, counts.seen, sum(counts.lags)) == ([0, 1, 1, 1], [0, 1, 1, 1], 0)


def test_late_look_tells_only_what_it_can() -> None:
    """What the cache has now, it can have got before the horizon or after it."""
    judge = Judge()
    look(judge, judge.follow(CHANGE, 100.0, is_exact=True), value(7), 101.4)
    counts = judge.take_counts()["student"]
    assert (counts.judged, counts.seen) == ([0, 0, 1, 1], [0, 0, 1, 1])
    look(judge, judge.follow(CHANGE, 200.0, is_exact=True), value(6), 201.4)
    counts = judge.take_counts()["student"]
    assert (counts.judged, counts.seen) == ([1, 1, 0, 0], [0, 0, 0, 0])


def test_change_that_is_not_seen_grows_older_and_is_a_violation_after_five_seconds() -> None:
    judge = Judge()
    old = judge.follow(CHANGE, 100.0, is_exact=True)
    new = judge.follow(CHANGE._replace(version=9), 103.0, is_exact=True)
    for now in (104.0, 104.9):
        look(judge, old, value(6), now)
        look(judge, new, value(6), now)
        assert judge.overdue(now) == []
    look(judge, old, value(6), 105.0)
    assert judge.overdue(108.5) == [old]
    old.violation = 1
    assert (judge.overdue(120.0), judge.violations()) == ([], 1)
    look(judge, old, value(8), 121.0)
    assert judge.oldest() is new
    assert judge.overdue(121.0) == [new]


def test_nothing_is_judged_while_the_cache_does_not_respond() -> None:
    judge = Judge()
    followed = judge.follow(CHANGE, 100.0, is_exact=True)
    for now in (101.0, 104.0, 107.0):
        judge.unanswered(now)
    assert judge.overdue(107.0) == []
    assert judge.oldest() is followed
    look(judge, followed, value(6), 111.9)
    assert judge.overdue(111.9) == []
    assert judge.overdue(112.0) == [followed]
    look(judge, followed, value(7), 131.0)
    counts = judge.take_counts()["student"]
    assert (counts.judged, counts.seen) == ([0, 0, 0, 1], [0, 0, 0, 1])


def test_older_upsert_of_a_row_that_was_deleted_does_not_make_absent_wrong() -> None:
    judge = Judge()
    upsert = judge.follow(CHANGE, 100.0)
    judge.follow(Change("student", "1", 8, is_delete=True), 100.0)
    assert look(judge, upsert, ABSENT, 101.0)


def test_oldest_change_is_kept_whatever_the_number_of_changes() -> None:
    judge = Judge()
    followed = [judge.follow(CHANGE._replace(version=version), 0.0) for version in range(7, 1007)]
    for one in followed:
        look(judge, one, value(6), 31.0)
    last = judge.follow(CHANGE._replace(version=2000), 32.0)
    assert len(judge.due(1e9)) == 1000
    assert judge.oldest() is followed[0]
    assert last in judge.due(1e9)
