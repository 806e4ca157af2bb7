"""Counts how the reads of a process were answered."""

from __future__ import annotations

from enum import StrEnum


class BypassReason(StrEnum):
    """Why a read was answered without the cache.

    Attributes:
        REDIS: Redis did not respond, or refused, or is not called after repeated failures.
        WAIT: another read's load took too long.
        SUSPENDED: changes of the entity may not be captured.
        UNCERTAIN: slots that must be emptied are not yet.
        TRANSACTION: the caller is in a transaction, and would see what it has not committed.
    """

    REDIS = "redis"
    WAIT = "wait"
    SUSPENDED = "suspended"
    UNCERTAIN = "uncertain"
    TRANSACTION = "transaction"


class ReadCounts:
    """How the reads of one entity were answered.

    They are added in any thread without a lock, which would cost more than the rest: CPython does not switch
    threads between reading and writing an attribute in one statement.

    Attributes:
        hits: the number of reads that were answered from the cache.
        misses: the number of reads that were answered from the database, filling the slot.
        bypasses: the number of reads that were answered without the cache, by reason.
    """

    __slots__ = ("bypasses", "hits", "misses")

    def __init__(self) -> None:
        self.hits = 0
        self.misses = 0
        self.bypasses: dict[BypassReason, int] = {}

    def add(self, outcome: str) -> None:
        """Count a read through the cache.

        Args:
            outcome: HIT or MISS.
        """
        if outcome == "HIT":
            self.hits += 1
        else:
            self.misses += 1

    def bypass(self, reason: BypassReason, reads: int = 1) -> None:
        """Count reads past the cache."""
        self.bypasses[reason] = self.bypasses.get(reason, 0) + reads
