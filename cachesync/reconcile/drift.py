"""What can be wrong with a slot, and what was found of it."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel

from cachesync.slots.layout import ABSENT, HEAD_BYTES, UP_TO_PAYLOAD, changed_content, encode_value

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachesync.change import Row
    from cachesync.entity import OnChange

SAMPLE: Final = 10
"""Of so many keys of each kind a report tells."""

_VERSION: Final = slice(1, HEAD_BYTES)


class Kind(StrEnum):
    """One kind of drift."""

    STALE = "stale"
    ORPHAN = "orphan"
    AHEAD = "ahead"
    FALSE_ABSENT = "false_absent"


class Findings(BaseModel):
    """What was found in the slots of one entity.

    Attributes:
        examined: the slots that were compared with their rows.
        stale: an older version, another schema's payload, or another payload than the row's.
        orphan: a value, and no row.
        ahead: a version above the row's.
        false_absent: 'no such row', and a row.
        repaired: those of them that are right now.
        refused: those that a concurrent change was quicker to replace.
        failed: those that Redis would not let repair.
        samples: some of the keys of each kind, and of those that failed.
    """

    examined: int = 0
    stale: int = 0
    orphan: int = 0
    ahead: int = 0
    false_absent: int = 0
    repaired: int = 0
    refused: int = 0
    failed: int = 0
    samples: dict[str, list[str]] = {}

    @property
    def drift(self) -> int:
        """All that was wrong."""
        return self.stale + self.orphan + self.ahead + self.false_absent

    def found(self, kind: Kind, key: str) -> None:
        """Count a slot that is wrong."""
        setattr(self, kind, getattr(self, kind) + 1)
        self._sample(kind, key)

    def could_not_repair(self, key: str) -> None:
        """Count a slot that Redis would not let repair."""
        self.failed += 1
        self._sample("failed", key)

    def add(self, other: Findings, rename: Callable[[str], str] = str) -> None:
        """Take in what was found elsewhere, its keys renamed."""
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for kind, keys in other.samples.items():
            for key in keys:
                self._sample(kind, rename(key))

    def _sample(self, kind: str, key: str) -> None:
        keys = self.samples.setdefault(kind, [])
        if len(keys) < SAMPLE:
            # Somebody else's strings may hold what no report can.
            keys.append("".join(one if one.isprintable() else ascii(one)[1:-1] for one in key))


COUNTS: Final = tuple(name for name in Findings.model_fields if name != "samples")
"""The names of what is counted."""


def drift_of(slot: bytes, row: Row | None, *, deep: bool) -> Kind | None:
    """What is wrong with a slot, given the row as it was read after it; None where nothing is.

    Args:
        slot: its content, which is no lease.
        row: the row; None where there is none.
        deep: whether the payloads count, too.
    """
    if slot == ABSENT:
        return None if row is None else Kind.FALSE_ABSENT
    if row is None:
        return Kind.ORPHAN
    digits = slot[_VERSION]
    if slot[:1] == b"V" and digits.isdigit() and int(digits) > row.version:
        return Kind.AHEAD
    current = encode_value(row.version, row.fingerprint, b"")
    if slot[: len(current)] != current or (deep and slot[UP_TO_PAYLOAD:] != row.payload):
        return Kind.STALE
    return None


def repair_of(kind: Kind, row: Row | None, on_change: OnChange) -> bytes:
    """The content that a slot is repaired with.

    What is ahead, or hides a row, may have refused a change that is newer than the row as it was read, or
    may be about to: such a slot is emptied, as then it cannot be wrong.
    """
    return changed_content(on_change, row if kind is Kind.STALE else None)
