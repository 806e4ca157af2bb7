"""The kinds of drift, how they are detected and repaired, and what a reconciliation has found."""

from __future__ import annotations

from enum import StrEnum
from typing import TYPE_CHECKING, Final, Literal

from pydantic import BaseModel

from cachesync.slots.layout import ABSENT, changed_content, is_readable, value_of
from cachesync.value import UP_TO_PAYLOAD, encode_value, version_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachesync.change import Row
    from cachesync.entity import OnChange

MAX_SAMPLES: Final = 10
"""Maximum number of keys of each kind in a report."""


Outcome = Literal["clean", "repaired", "drift", "unrepaired"]
"""What a run means: `clean` if nothing was wrong, `repaired` if all drift was repaired, `drift` if a dry run
found drift, `unrepaired` if some could not be repaired."""


class Kind(StrEnum):
    """The kinds of drift.

    Attributes:
        STALE: the value has an older version or another schema's fingerprint, or, in a deep run, another
            payload.
        ORPHAN: there is a value, but no row.
        AHEAD: the value's version is higher than the row's.
        FALSE_ABSENT: the slot says *absent*, but the row exists.
        UNREADABLE: the content is not that of a slot, and reads treat it as a miss.
    """

    STALE = "stale"
    ORPHAN = "orphan"
    AHEAD = "ahead"
    FALSE_ABSENT = "false_absent"
    UNREADABLE = "unreadable"


class Findings(BaseModel):
    """What was found in the slots of one entity.

    Attributes:
        examined: the number of slots that were compared with their rows.
        stale, orphan, ahead, false_absent, unreadable: the number of slots with that kind of drift; see
            `Kind`.
        repaired: of those, the number that were repaired.
        refused: of those, the number that a concurrent change had replaced first.
        failed: of those, the number whose repair Redis rejected.
        samples: up to `MAX_SAMPLES` keys of each kind, and of the failed ones under `failed`.
    """

    examined: int = 0
    stale: int = 0
    orphan: int = 0
    ahead: int = 0
    false_absent: int = 0
    unreadable: int = 0
    repaired: int = 0
    refused: int = 0
    failed: int = 0
    samples: dict[str, list[str]] = {}

    @property
    def drift(self) -> int:
        """The number of slots that were wrong."""
        return self.stale + self.orphan + self.ahead + self.false_absent + self.unreadable

    def add_drift(self, kind: Kind, key: str) -> None:
        """Count a slot that is wrong."""
        setattr(self, kind, getattr(self, kind) + 1)
        self._sample(kind, key)

    def add_failure(self, key: str) -> None:
        """Count a slot whose repair Redis rejected."""
        self.failed += 1
        self._sample("failed", key)

    def merge(self, other: Findings, rename: Callable[[str], str] = str) -> None:
        """Add other findings to these.

        Args:
            other: the findings to add.
            rename: converts their sample keys.
        """
        for name in COUNTS:
            setattr(self, name, getattr(self, name) + getattr(other, name))
        for kind, keys in other.samples.items():
            for key in keys:
                self._sample(kind, rename(key))

    def _sample(self, kind: str, key: str) -> None:
        keys = self.samples.setdefault(kind, [])
        if len(keys) < MAX_SAMPLES:
            # Names written by other programs can contain characters that a report cannot.
            keys.append("".join(one if one.isprintable() else ascii(one)[1:-1] for one in key))


COUNTS: Final = tuple(name for name in Findings.model_fields if name != "samples")
"""The names of the counts in `Findings`."""


def outcome_of(findings: Findings, *, dry_run: bool) -> Outcome:
    """Return what findings mean for a run.

    Args:
        findings: what was found.
        dry_run: whether the run only reported.
    """
    if not findings.drift:
        return "clean"
    if dry_run:
        return "drift"
    return "unrepaired" if findings.failed else "repaired"


def drift_of(slot: bytes, row: Row | None, *, deep: bool) -> Kind | None:
    """Return the kind of drift between a slot and its row, or None if they agree.

    Args:
        slot: the slot's content, which is neither empty nor a lease.
        row: the row, read after the slot; None if there is none.
        deep: whether to compare the payloads too.
    """
    if not is_readable(slot):
        return Kind.UNREADABLE
    if slot == ABSENT:
        return None if row is None else Kind.FALSE_ABSENT
    if row is None:
        return Kind.ORPHAN
    if version_of(slot) > row.version:
        return Kind.AHEAD
    current = encode_value(row.version, row.fingerprint, b"")
    if slot[: len(current)] != current or (deep and slot[UP_TO_PAYLOAD:] != row.payload):
        return Kind.STALE
    return None


def repair_of(kind: Kind, row: Row | None, on_change: OnChange) -> bytes:
    """Return the content with which to repair a slot; empty to empty it.

    A slot that is ahead or a false absent may have rejected a change that is newer than the row as read, or
    may be about to. Such a slot is emptied, because an empty slot cannot be wrong. So is an unreadable one.

    Args:
        kind: the kind of drift.
        row: the row, read after the slot; None if there is none.
        on_change: the entity's policy.
    """
    value = value_of(row) if row is not None and kind is Kind.STALE else None
    return changed_content(on_change, value)
