"""What capturing changes costs the writer: transactions per second with `pgbench`, and bulk statements.

The captured table is compared with a plain one of the same columns on the same server. The two take turns, so
that changes in the machine's speed affect both.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import asyncpg

from benchmarks import pgbench

if TYPE_CHECKING:
    from benchmarks.target import Target

CLIENTS: Final = (1, 8)
KINDS: Final = ("update", "insert")
#: The rows that are updated have keys from 1 on.
ROWS: Final = 10_000
_FIRST_INSERT: Final = 100_000_000
_UPDATE: Final = """\\set key random(1, {rows})
UPDATE {table} SET name = :n WHERE id = :key;"""
_INSERT: Final = """\\set key :first + :client_id * 1000000 + :n
INSERT INTO {table} (id, name, age) VALUES (:key, :n, 20);"""
_MAKE: Final = """
CREATE TABLE IF NOT EXISTS plain (id bigint PRIMARY KEY, name text NOT NULL, age integer);
INSERT INTO plain SELECT i, '0', 20 FROM generate_series({first}, {last}) AS i ON CONFLICT (id) DO NOTHING;
"""


class Tables:
    """The plain table and `student`.

    Attributes:
        target: the system.
    """

    def __init__(self, target: Target) -> None:
        self.target = target
        self._inserted = _FIRST_INSERT

    async def prepare(self) -> None:
        """Create the plain table, and the same rows in both tables."""
        connection = await asyncpg.connect(self.target.dsn)
        await connection.execute(_MAKE.format(first=1, last=ROWS))
        await connection.close()
        self.target.insert(1, ROWS)

    async def tps(self, table: str, kind: str, clients: int, seconds: float) -> float:
        """Return the transactions per second of single UPDATEs or INSERTs."""
        # Every run inserts keys of its own.
        self._inserted += 100_000_000
        script = {"update": _UPDATE, "insert": _INSERT}[kind].format(table=table, rows=ROWS)
        load = pgbench.Load(script, clients, seconds, variables={"first": self._inserted})
        return (await pgbench.run(self.target.dsn, load))[0]

    async def rates(self, table: str, seconds: float) -> dict[str, float]:
        """Return the transactions per second of a table, by kind and number of clients."""
        return {
            f"{kind}_{clients}": await self.tps(table, kind, clients, seconds)
            for kind in KINDS
            for clients in CLIENTS
        }

    async def bulk(self, table: str, first: int, rows: int) -> tuple[float, float]:
        """Return the seconds and the megabytes of WAL that an UPDATE of many rows takes."""
        connection = await asyncpg.connect(self.target.dsn)
        try:
            await connection.execute("CHECKPOINT")
            before = await connection.fetchval("SELECT pg_current_wal_insert_lsn()::text")
            began = time.perf_counter()
            await connection.execute(
                f"UPDATE {table} SET age = (coalesce(age, 0) + 1) % 100 WHERE id BETWEEN $1 AND $2",
                first,
                first + rows - 1,
                timeout=600,
            )
            taken = time.perf_counter() - began
            wal = await connection.fetchval(
                "SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), $1::text::pg_lsn)::float8", before
            )
        finally:
            await connection.close()
        return taken, wal / 2**20

    async def plain_rows(self, first: int, rows: int) -> None:
        """Insert rows into the plain table."""
        connection = await asyncpg.connect(self.target.dsn)
        await connection.execute(_MAKE.format(first=first, last=first + rows - 1), timeout=600)
        await connection.execute("VACUUM ANALYZE plain")
        await connection.close()


async def shares(tables: Tables, rounds: int, seconds: float) -> list[dict[str, float]]:
    """Return, by round, the TPS of both tables and the captured table's share of the plain one's."""
    results = []
    for _ in range(rounds):
        figures: dict[str, float] = {}
        for kind in KINDS:
            for clients in CLIENTS:
                name = f"{kind}_{clients}"
                plain, captured = [
                    await tables.tps(table, kind, clients, seconds) for table in ("plain", "student")
                ]
                figures |= {f"{name}_plain_tps": plain, f"{name}_tps": captured}
                figures[f"{name}_share"] = captured / plain
        results.append(figures)
    return results
