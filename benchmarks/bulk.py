"""A bulk UPDATE in SQL on its way into all caches, and single changes beside it."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import asyncpg

from benchmarks.cpu import accounting
from benchmarks.propagation import Propagation, Writer, measure
from benchmarks.target import BULK_FIRST

if TYPE_CHECKING:
    from collections.abc import Mapping

    from benchmarks.target import Target
    from local.process import Process

_UPDATE: Final = "UPDATE student SET age = $1 WHERE id BETWEEN $2 AND $3"
_AGES: Final = range(21, 150)
_RATE: Final = 50


class Bulk:
    """Bulk UPDATEs of a range of rows, which must exist.

    Args:
        target: the system.
        rows: number of rows.
        singles: what sends single changes beside the UPDATE, by name.
        worker: the process whose memory is watched, if any.
    """

    def __init__(
        self, target: Target, rows: int, singles: Mapping[str, Writer], worker: Process | None = None
    ) -> None:
        self._target = target
        self._rows = rows
        self._singles = singles
        self._worker = worker
        self._ages = iter(_AGES)

    async def measure(self, seconds: float = 15) -> dict[str, float]:
        """Update all rows, wait until every cache has them, and return the figures.

        Single changes are sent for the given time from the commit on, or not at all if it is 0.
        """
        age = next(self._ages)
        connection = await asyncpg.connect(self._target.dsn)
        try:
            before = await connection.fetchval("SELECT pg_current_wal_insert_lsn()::text")
            memory = _Memory(self._worker)
            with accounting(self._target.processes) as usage:
                began = time.perf_counter()
                await connection.execute(_UPDATE, age, BULK_FIRST, BULK_FIRST + self._rows - 1, timeout=600)
                committed = time.perf_counter()
                wal = await connection.fetchval(
                    "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), $1::text::pg_lsn)::float8", before
                )
                watching = asyncio.create_task(memory.watch())
                writing = asyncio.create_task(self._write(seconds))
                arrived = await self._target.until_all_hold(b'"age":%d' % age, BULK_FIRST, self._rows)
                watching.cancel()
            singles = await writing
        finally:
            await connection.close()
        figures = {
            "statement_s": committed - began,
            "wal_mb": wal / 2**20,
            "changes_per_s": self._rows / (arrived - committed),
            "cpu_us": 1e6 * usage.total() / self._rows,
            **{f"cpu_us.{name}": used for name, used in usage.per(self._rows).items()},
            **memory.figures(),
        }
        for name, result in singles.items():
            figures |= {f"beside_{name}_p50_ms": result.figures()["p50_ms"]}
            figures |= {f"beside_{name}_p99_ms": result.figures()["p99_ms"]}
        return figures

    async def _write(self, seconds: float) -> dict[str, Propagation]:
        if not seconds:
            return {}
        results = await asyncio.gather(
            *(measure(self._target, writer, _RATE, seconds) for writer in self._singles.values())
        )
        return dict(zip(self._singles, results, strict=True))


class _Memory:
    """The resident memory of a process and its descendants."""

    def __init__(self, process: Process | None) -> None:
        self._process = process
        self._first = self._last = self._now()

    async def watch(self) -> None:
        """Look again and again."""
        while True:
            await asyncio.sleep(1)
            self._last = max(self._last, self._now())

    def figures(self) -> dict[str, float]:
        """Return the first and the largest size in MB."""
        if self._process is None:
            return {}
        return {"memory_before_mb": self._first, "memory_max_mb": self._last}

    def _now(self) -> float:
        tree = [] if self._process is None else self._process.tree()
        return float(sum(each.memory_info().rss for each in tree)) / 2**20
