"""What keeps the change log short, and tells how far it is published and what is missing in it."""

from __future__ import annotations

import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from cachesync import metrics
from cachesync.statements import statement

if TYPE_CHECKING:
    from datetime import timedelta

    import asyncpg

_COUNT_SECONDS: Final = 5.0
_MOST_COUNTED: Final = 100_000
_SAMPLE_SECONDS: Final = 10.0
# So long after its version was drawn, a change is committed, rolled back, or of a transaction that shows.
_SETTLED_SECONDS: Final = 60.0
_PRUNE_SECONDS: Final = 600.0
_PRUNED_AT_ONCE: Final = 5000


BEFORE_ALL: Final = datetime(1970, 1, 1, tzinfo=UTC)
"""A time before any at which a line is due."""


class _Sample(NamedTuple):
    taken: float
    taken_at: datetime
    version: int
    next_transaction: int


class Upkeep:
    """Done in steps, between which the relay publishes.

    Args:
        retention: how long a published line is kept.

    Attributes:
        pruning: whether there may be more to remove at once.
        unpublished_from: no line that was due before is unpublished. What an index holds of lines that
            were published, until a vacuum, need not be walked through again and again.
    """

    def __init__(self, retention: timedelta) -> None:
        self._retention = retention
        self._samples: deque[_Sample] = deque()
        self._count_at = 0.0
        self._sample_at = 0.0
        self._prune_at = 0.0
        self._pruned_to = 0
        # Before this time no transaction can add a line any more.
        self._settled_at = BEFORE_ALL
        self.pruning = False
        self.unpublished_from = BEFORE_ALL

    def restart(self) -> None:
        """Begin anew on a database that may be another server now, with a clock of its own."""
        self._settled_at = self.unpublished_from = BEFORE_ALL

    async def step(self, connection: asyncpg.Connection) -> None:
        """Do what is due: count the backlog, look for a gap, remove a batch of old lines."""
        now = time.monotonic()
        if now >= self._count_at:
            self._count_at = now + _COUNT_SECONDS
            await self._count(connection)
        if now >= self._sample_at:
            self._sample_at = now + _SAMPLE_SECONDS
            await self._sample(connection, now)
        if now >= self._prune_at:
            self._prune_at = now + _PRUNE_SECONDS
            self.pruning = True
            # The clock of the server may have been set back.
            self.unpublished_from = BEFORE_ALL
        if self.pruning:
            await self._prune(connection)

    async def _count(self, connection: asyncpg.Connection) -> None:
        (backlog,) = await connection.fetch(statement("backlog"), _MOST_COUNTED, self.unpublished_from)
        metrics.backlog.set(backlog["lines"])
        metrics.backlog_age.set(backlog["age"])
        self.unpublished_from = min(self._settled_at, backlog["first"] or self._settled_at)

    async def _sample(self, connection: asyncpg.Connection, now: float) -> None:
        """Count the versions without a line between samples that no transaction under way can fill."""
        (record,) = await connection.fetch(statement("sequence_sample"))
        self._samples.append(_Sample(now, record["taken_at"], record["version"], record["next_transaction"]))
        while (
            len(self._samples) > 1
            and now - self._samples[1].taken >= _SETTLED_SECONDS
            and self._samples[1].next_transaction <= record["oldest_transaction"]
        ):
            low, high = self._samples.popleft().version, self._samples[0].version
            self._settled_at = self._samples[0].taken_at
            if high > low:
                lines = await connection.fetchval(
                    "SELECT count(*) FROM cachesync.change_log WHERE version > $1 AND version <= $2",
                    low,
                    high,
                )
                metrics.gap.inc(high - low - lines)

    async def _prune(self, connection: asyncpg.Connection) -> None:
        (record,) = await connection.fetch(
            statement("prune"), self._pruned_to, _PRUNED_AT_ONCE, self._retention
        )
        metrics.pruned.inc(record["removed"])
        self._pruned_to = record["next"] or 0
        self.pruning = record["next"] is not None
