"""The ways in which the protocol can fail."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Fault(StrEnum):
    """A violation of the protocol."""

    # A wrong answer from the cache.
    STALE = "every event has been delivered, and the slot holds an older row"
    ORPHAN = "every event has been delivered, and the slot holds a deleted row"
    FALSE_ABSENT = "every event has been delivered, and the slot hides a row"
    AHEAD = "the slot is newer than the database"
    OLDER = "a read returned an older row than promised"
    BACKWARDS = "a value was replaced by an older one"
    LASTING = "the slot has no time to live"

    # Work that the cache wastes.
    REWRITTEN = "a change wrote to a slot that was at least as new"
    STOLEN = "a lease was ended by someone other than its holder"
    TAKEN = "a lease replaced content that could be served"
    REFUSED = "the newest row was rejected although the lease holder offered it"
    UNSERVED = "a read got neither an answer nor the lease"


NOTHING: Final[frozenset[Fault]] = frozenset()
EVERYTHING: Final = frozenset(Fault)
