"""The division of a keyspace into parts."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesync.reconcile.keyspace import Part, parts


def visits(part: Part, bits: int) -> list[int]:
    """The buckets that a scan of the part visits in a Redis hash table of 2^bits buckets."""
    visited = []
    cursor = part.first
    while True:
        mask = (1 << bits) - 1
        visited.append(cursor & mask)
        # As Redis does it: increment the cursor with its bits reversed.
        reversed_next = int(f"{cursor | ~mask & (1 << 64) - 1:064b}"[::-1], 2) + 1 & (1 << 64) - 1
        cursor = int(f"{reversed_next:064b}"[::-1], 2)
        if part.ends_at(cursor):
            return visited


@given(st.integers(0, 5), st.integers(0, 10))
def test_parts_cover_every_bucket_exactly_once(part_bits: int, table_bits: int) -> None:
    visited = [bucket for part in parts(1 << part_bits, 1) for bucket in visits(part, table_bits)]
    assert set(visited) == set(range(1 << table_bits))
    # A table with fewer buckets than parts is scanned several times.
    assert len(visited) == max(1 << part_bits, 1 << table_bits)


@pytest.mark.parametrize(("slots", "count"), [(0, 1), (100, 1), (101, 2), (201, 4), (400, 4), (401, 8)])
def test_number_of_parts_keeps_each_part_small(slots: int, count: int) -> None:
    assert parts(slots, 100) == [Part(number, count) for number in range(count)]


def test_share_of_a_part_grows_from_zero_to_one() -> None:
    part = Part(2, 4)
    assert part.share(part.first) == 0.0
    assert part.share(part.first | 1 << 2) == 0.5
    assert part.share(Part(3, 4).first) == part.share(0) == 1.0
