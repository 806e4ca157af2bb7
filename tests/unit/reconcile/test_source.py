"""Values that are compared together."""

from __future__ import annotations

import pytest

from cachesync.reconcile.source import Values
from cachesync.slots.layout import HEAD_BYTES
from cachesync.value import encode_value

PREFIX = b"sb:student:"
SCHEMA = b"abcdef01"
GOOD = [encode_value(version, SCHEMA, b'{"id":1}')[:HEAD_BYTES] for version in (1, 2, 3)]
NAMES = [b"sb:student:1", b"sb:student:sb:student:", b"sb:student:"]


def test_values_are_joined_and_split_again() -> None:
    values = Values(SCHEMA)
    assert values.add(PREFIX, NAMES, GOOD)
    assert values.add(PREFIX, [b"sb:student:4"], [encode_value(4, SCHEMA, b"{}")[:HEAD_BYTES]])
    assert values.count == 4
    assert values.split() == (
        [b"1", b"sb:student:", b"", b"4"],
        [encode_value(version, SCHEMA, b"") for version in (1, 2, 3, 4)],
    )


@pytest.mark.parametrize(
    "other",
    [
        None,
        1,
        b"",
        b"A",
        b"L" + b"0" * 19 + b"a token...",
        b"V+" + GOOD[1][2:],
        b"V" + b"x" * 19 + SCHEMA + b"{",
        GOOD[1][:-1],
        GOOD[1][:-1] + b"[",
        encode_value(2, b"abcdef02", b"{"),
        # The bytes that separate two versions, one place too early.
        GOOD[1][:19] + SCHEMA + b"{V",
    ],
)
@pytest.mark.parametrize("position", range(3))
def test_block_with_anything_else_is_not_added(other: object, position: int) -> None:
    values = Values(SCHEMA)
    slots: list[object] = [*GOOD]
    slots[position] = other
    assert not values.add(PREFIX, NAMES, slots)
    assert values == Values(SCHEMA)


@pytest.mark.parametrize(
    "name", [b"sb:student", b"sb:course:1", b"sb:student:a\nb", b"sb:student:a\nsb:student:b"]
)
def test_block_with_another_name_is_not_added(name: bytes) -> None:
    values = Values(SCHEMA)
    assert not values.add(PREFIX, [NAMES[0], name, NAMES[2]], GOOD)
    assert values == Values(SCHEMA)
