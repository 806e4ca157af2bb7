"""Measures the unpublished part of the change log, and counts the versions that are in none of its lines."""

from __future__ import annotations

import time
from collections import deque
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final, NamedTuple

from cachesync.metrics import relay as metrics
from cachesync.postgres.statements import statement

if TYPE_CHECKING:
    import asyncpg

_COUNT_SECONDS: Final = 5.0
_MAX_LINES: Final = 100_000
_SAMPLE_SECONDS: Final = 10.0
# This long after its version was drawn, a change has been committed or rolled back, or a snapshot shows its
# transaction as in progress.
_SETTLED_SECONDS: Final = 60.0
# The server's clock may have been set back, so the start is not trusted forever.
_FORGET_SECONDS: Final = 600.0

_BEFORE_ALL: Final = datetime(1970, 1, 1, tzinfo=UTC)


class _Sample(NamedTuple):
    taken: float
    taken_at: datetime
    version: int
    next_transaction: int


class Backlog:
    """Measures the unpublished part of the change log.

    Attributes:
        start: every line that was due before this time has been published. Until the next vacuum, the index
            still contains lines that have been published; this spares each round from scanning them.
    """

    def __init__(self) -> None:
        self._samples: deque[_Sample] = deque()
        self._next_count = 0.0
        self._next_sample = 0.0
        self._next_forget = 0.0
        # No transaction can add a line that was due before this time.
        self._settled_at = _BEFORE_ALL
        self.start = _BEFORE_ALL

    def restart(self) -> None:
        """Start over after a reconnect: the database may be a different server with a different clock."""
        self._settled_at = self.start = _BEFORE_ALL

    async def step(self, connection: asyncpg.Connection) -> None:
        """Count the backlog and look for missing versions, each if it is due.

        Args:
            connection: a connection with the role `cachesync_worker`.
        """
        now = time.monotonic()
        if now >= self._next_count:
            self._next_count = now + _COUNT_SECONDS
            await self._count(connection)
        if now >= self._next_sample:
            self._next_sample = now + _SAMPLE_SECONDS
            await self._sample(connection, now)
        if now >= self._next_forget:
            self._next_forget = now + _FORGET_SECONDS
            self.start = _BEFORE_ALL

    async def _count(self, connection: asyncpg.Connection) -> None:
        (backlog,) = await connection.fetch(statement("relay/backlog"), _MAX_LINES, self.start)
        metrics.backlog.set(self, backlog["changes"])
        metrics.backlog_age.set(self, backlog["age"])
        self.start = min(self._settled_at, backlog["first"] or self._settled_at)

    async def _sample(self, connection: asyncpg.Connection, now: float) -> None:
        """Count the versions without a change between two samples, once no open transaction can add any."""
        (record,) = await connection.fetch(statement("relay/sequence_sample"))
        self._samples.append(_Sample(now, record["taken_at"], record["version"], record["next_transaction"]))
        while (
            len(self._samples) > 1
            and now - self._samples[1].taken >= _SETTLED_SECONDS
            and self._samples[1].next_transaction <= record["oldest_transaction"]
        ):
            low, high = self._samples.popleft().version, self._samples[0].version
            self._settled_at = self._samples[0].taken_at
            if high > low:
                changes = await connection.fetchval(statement("relay/count_changes"), low, high)
                metrics.gap.inc(high - low - changes)
