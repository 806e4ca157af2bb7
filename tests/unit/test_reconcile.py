"""The parts of a keyspace, and what is called drift."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesync.change import Row
from cachesync.reconcile.drift import SAMPLE, Findings, Kind, drift_of, repair_of
from cachesync.reconcile.keyspace import Part, parts
from cachesync.slots.layout import ABSENT, EMPTY, encode_value

ROW = Row("1", 5, b"abcdef01", b"{}")
SLOT = encode_value(5, b"abcdef01", b"{}")


def visits(part: Part, bits: int) -> list[int]:
    """The buckets that a scan of the part visits, as Redis goes through a table of 2^bits of them."""
    visited = []
    cursor = part.first
    while True:
        mask = (1 << bits) - 1
        visited.append(cursor & mask)
        # Redis's own arithmetic: the next one in the order of the reversed bits.
        reversed_next = int(f"{cursor | ~mask & (1 << 64) - 1:064b}"[::-1], 2) + 1 & (1 << 64) - 1
        cursor = int(f"{reversed_next:064b}"[::-1], 2)
        if part.ends_at(cursor):
            return visited


@given(st.integers(0, 5), st.integers(0, 10))
def test_the_parts_of_a_keyspace_hold_each_bucket_and_none_twice(part_bits: int, table_bits: int) -> None:
    visited = [bucket for part in parts(1 << part_bits, 1) for bucket in visits(part, table_bits)]
    assert set(visited) == set(range(1 << table_bits))
    # A table with fewer buckets than there are parts is scanned several times over.
    assert len(visited) == max(1 << part_bits, 1 << table_bits)


@pytest.mark.parametrize(("slots", "count"), [(0, 1), (100, 1), (101, 2), (201, 4), (400, 4), (401, 8)])
def test_a_keyspace_has_as_many_parts_as_keep_each_small(slots: int, count: int) -> None:
    assert parts(slots, 100) == [Part(number, count) for number in range(count)]


def test_the_share_of_a_part_goes_from_nothing_to_all_of_it() -> None:
    part = Part(2, 4)
    assert part.share(part.first) == 0.0
    assert part.share(part.first | 1 << 2) == 0.5
    assert part.share(Part(3, 4).first) == part.share(0) == 1.0


@pytest.mark.parametrize(
    ("slot", "row", "kind"),
    [
        (SLOT, ROW, None),
        (ABSENT, None, None),
        (ABSENT, ROW, Kind.FALSE_ABSENT),
        (SLOT, None, Kind.ORPHAN),
        (b"nonsense", None, Kind.ORPHAN),
        (b"nonsense", ROW, Kind.STALE),
        (b"V", ROW, Kind.STALE),
        (encode_value(4, b"abcdef01", b"{}"), ROW, Kind.STALE),
        (encode_value(5, b"abcdef02", b"{}"), ROW, Kind.STALE),
        (encode_value(6, b"abcdef01", b"{}"), ROW, Kind.AHEAD),
        (encode_value(6, b"abcdef02", b"{}"), ROW, Kind.AHEAD),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_a_slot_is_wrong_where_it_differs_from_its_row(
    slot: bytes,
    row: Row | None,
    kind: Kind | None,
    *,
    deep: bool,
) -> None:
    assert drift_of(slot, row, deep=deep) is kind


def test_only_a_deep_look_sees_another_payload_under_the_same_version() -> None:
    other = encode_value(5, b"abcdef01", b'{"a":1}')
    assert drift_of(other, ROW, deep=False) is None
    assert drift_of(other, ROW, deep=True) is Kind.STALE


@pytest.mark.parametrize("kind", list(Kind))
def test_only_what_is_stale_is_filled_and_only_where_changes_refresh(kind: Kind) -> None:
    row = None if kind is Kind.ORPHAN else ROW
    assert repair_of(kind, row, "refresh") == (SLOT if kind is Kind.STALE else EMPTY)
    assert repair_of(kind, row, "invalidate") == EMPTY


def test_findings_add_up_and_keep_a_sample() -> None:
    total, more = Findings(examined=3), Findings(examined=4)
    for key in range(SAMPLE):
        total.found(Kind.AHEAD, str(key))
    more.found(Kind.AHEAD, "last")
    more.found(Kind.ORPHAN, "a\0\udcff")
    more.could_not_repair("é")
    total.add(more, "sb:{}".format)
    assert (total.examined, total.ahead, total.orphan, total.failed, total.drift) == (7, 11, 1, 1, 12)
    assert len(total.samples["ahead"]) == SAMPLE
    assert total.samples["orphan"] == [r"sb:a\x00\udcff"]
    assert total.samples["failed"] == ["sb:é"]
