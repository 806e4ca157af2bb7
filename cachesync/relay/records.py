"""Exports what other background work, whose processes end too soon to be asked, has noted in the database."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Final

from cachesync.metrics import relay as metrics
from cachesync.postgres.statements import statement

if TYPE_CHECKING:
    import asyncpg

_PAUSE_SECONDS: Final = 30.0
# Of a report's findings; `examined` and `refused` need nobody's attention.
_FINDINGS: Final = ("stale", "orphan", "ahead", "false_absent", "unreadable", "repaired", "failed")


class Records:
    """Reads the results of the reconciliations, and counts the parked letters, from time to time."""

    def __init__(self) -> None:
        self._next_look = 0.0

    async def step(self, connection: asyncpg.Connection) -> None:
        """Look if it is due.

        Args:
            connection: a connection with the role `cachesync_worker`.
        """
        now = time.monotonic()
        if now < self._next_look:
            return
        self._next_look = now + _PAUSE_SECONDS
        parked = await connection.fetch(statement("relay/parked"))
        metrics.parked.replace(self, {(record["service"],): record["letters"] for record in parked})
        runs = await connection.fetch(statement("relay/reconciliations"))
        metrics.reconciled.replace(self, {(run["service"],): run["finished_at"] for run in runs})
        metrics.drift.replace(
            self,
            {
                (run["service"], entity, finding): found[finding]
                for run in runs
                for entity, found in json.loads(run["entities"]).items()
                for finding in _FINDINGS
            },
        )
        metrics.unfinished.set(self, await connection.fetchval(statement("relay/unfinished")))
