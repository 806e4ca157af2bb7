"""Drift and its repair."""

from __future__ import annotations

import pytest

from cachesync.change import Row
from cachesync.reconcile.drift import MAX_SAMPLES, Findings, Kind, drift_of, repair_of
from cachesync.slots.layout import ABSENT, EMPTY
from cachesync.value import encode_value

ROW = Row("1", 5, b"abcdef01", b"{}")
SLOT = encode_value(5, b"abcdef01", b"{}")


@pytest.mark.parametrize(
    ("slot", "row", "kind"),
    [
        (SLOT, ROW, None),
        (ABSENT, None, None),
        (ABSENT, ROW, Kind.FALSE_ABSENT),
        (SLOT, None, Kind.ORPHAN),
        (b"", ROW, Kind.UNREADABLE),
        (b"nonsense", None, Kind.UNREADABLE),
        (b"nonsense", ROW, Kind.UNREADABLE),
        (b"AA", None, Kind.UNREADABLE),
        (b"V", ROW, Kind.UNREADABLE),
        (b"V" + b"x" * 30, ROW, Kind.UNREADABLE),
        (b"V+" + SLOT[2:], ROW, Kind.UNREADABLE),
        (encode_value(5, b"abcdef01", b""), ROW, Kind.UNREADABLE),
        (encode_value(4, b"abcdef01", b"{}"), ROW, Kind.STALE),
        (encode_value(5, b"abcdef02", b"{}"), ROW, Kind.STALE),
        (encode_value(6, b"abcdef01", b"{}"), ROW, Kind.AHEAD),
        (encode_value(6, b"abcdef02", b"{}"), ROW, Kind.AHEAD),
    ],
)
@pytest.mark.parametrize("deep", [False, True])
def test_slot_that_differs_from_its_row_is_drift(
    slot: bytes,
    row: Row | None,
    kind: Kind | None,
    *,
    deep: bool,
) -> None:
    assert drift_of(slot, row, deep=deep) is kind


def test_only_a_deep_comparison_finds_another_payload_of_the_same_version() -> None:
    other = encode_value(5, b"abcdef01", b'{"a":1}')
    assert drift_of(other, ROW, deep=False) is None
    assert drift_of(other, ROW, deep=True) is Kind.STALE


@pytest.mark.parametrize("kind", list(Kind))
def test_repair_fills_only_stale_slots_of_refreshed_entities_and_empties_all_others(kind: Kind) -> None:
    row = None if kind is Kind.ORPHAN else ROW
    assert repair_of(kind, row, "refresh") == (SLOT if kind is Kind.STALE else EMPTY)
    assert repair_of(kind, row, "invalidate") == EMPTY


def test_findings_add_up_and_keep_a_sample_of_keys() -> None:
    total, more = Findings(examined=3), Findings(examined=4)
    for key in range(MAX_SAMPLES):
        total.add_drift(Kind.AHEAD, str(key))
    more.add_drift(Kind.AHEAD, "last")
    more.add_drift(Kind.ORPHAN, "a\0\udcff")
    more.add_failure("é")
    total.merge(more, "sb:{}".format)
    assert (total.examined, total.ahead, total.orphan, total.failed, total.drift) == (7, 11, 1, 1, 12)
    assert len(total.samples["ahead"]) == MAX_SAMPLES
    assert total.samples["orphan"] == [r"sb:a\x00\udcff"]
    assert total.samples["failed"] == ["sb:é"]
