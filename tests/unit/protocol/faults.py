"""What can be wrong with the protocol."""

from __future__ import annotations

from enum import StrEnum
from typing import Final


class Fault(StrEnum):
    """One way to be wrong."""

    # A cache that says what is not so.
    STALE = "every event has been delivered, and the slot holds an older row"
    ORPHAN = "every event has been delivered, and the slot holds a deleted row"
    FALSE_ABSENT = "every event has been delivered, and the slot hides a row"
    AHEAD = "the slot is newer than the database"
    OLDER = "a read returned what is older than promised"
    BACKWARDS = "a value was replaced by an older one"
    LASTING = "the slot has no time to live"

    # A cache that works for nothing.
    REWRITTEN = "a change that is no newer than the slot wrote to it"
    STOLEN = "a lease was ended by another than its holder"
    TAKEN = "a lease took the place of what could be served"
    REFUSED = "the newest row was refused from the lease's holder"
    UNSERVED = "a read was given neither an answer nor the lease"


NOTHING: Final[frozenset[Fault]] = frozenset()
EVERYTHING: Final = frozenset(Fault)
