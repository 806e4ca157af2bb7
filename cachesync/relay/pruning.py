"""Removes old published lines from the change log."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

from cachesync.metrics import relay as metrics
from cachesync.postgres.statements import statement

if TYPE_CHECKING:
    from datetime import timedelta

    import asyncpg

_PAUSE_SECONDS: Final = 600.0
_BATCH: Final = 5000


class Pruner:
    """Removes lines in batches, so that the relay can publish in between.

    Args:
        retention: how long a line is kept after it was published.

    Attributes:
        busy: whether a pass is in progress, so that there may be more lines to remove.
    """

    def __init__(self, retention: timedelta) -> None:
        self._retention = retention
        self._next_pass = 0.0
        self._pruned_to = 0
        self.busy = False

    async def step(self, connection: asyncpg.Connection) -> None:
        """Remove one batch of lines if a pass is due or in progress.

        Args:
            connection: a connection with the role `cachesync_worker`.
        """
        now = time.monotonic()
        if now >= self._next_pass:
            self._next_pass = now + _PAUSE_SECONDS
            self.busy = True
        if not self.busy:
            return
        (record,) = await connection.fetch(statement("relay/prune"), self._pruned_to, _BATCH, self._retention)
        metrics.pruned.inc(record["removed"])
        self._pruned_to = record["next"] or 0
        self.busy = record["next"] is not None
