"""Cost of a reconciliation: slots per second, memory, and the CPU time of each process involved.

Full runs of the command `cachesync reconcile` are measured at several sizes, on a cache that holds every row.
The result is the throughput relative to an upper bound from the same round: one client reads the beginning of
every slot by pipelined GETRANGE while another copies each row's key and version out of PostgreSQL, without
comparing them. Then runs with `--delta` are measured at the last size, with more and more changed rows.

`python -m benchmarks.reconcile` starts its own PostgreSQL and Redis.
"""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import asyncpg
import redis
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.cpu import of_tree
from benchmarks.target import SLOTS
from cachesync.entity import load_entities
from cachesync.install.installer import install
from cachesync.slots.bulk import Bulk
from cachesync.value import UP_TO_PAYLOAD
from local.postgres import Postgres, client
from local.redis import Redis, redis_server
from local.settings import REPOSITORY
from local.silent import Silent
from local.state import claim_any

if TYPE_CHECKING:
    import resource

_BATCH: Final = 1000
_PEAK: Final = re.compile(r"^VmHWM:\s+(\d+) kB", re.MULTILINE)
_SAMPLE_SECONDS: Final = 0.02
_FILL: Final = """
TRUNCATE student;
TRUNCATE cachesync.change_log, cachesync.reconciliation, cachesync.reconciliation_chunk;
ALTER TABLE student DISABLE TRIGGER USER;
INSERT INTO student
SELECT i, 'name ' || i, i % 100, nextval('cachesync.row_version') FROM generate_series(1, {rows}) AS i;
ALTER TABLE student ENABLE TRIGGER USER;
"""
_LOG: Final = """
INSERT INTO cachesync.change_log (version, entity, key, operation, fingerprint, payload, source, published_at)
SELECT t.version, 'student', t.key, 'upsert', '', t.payload, 'benchmark', now() - interval '1 hour'
FROM cachesync.student AS t;
"""
_CHANGE: Final = """
UPDATE student SET age = (age + 1) % 100 WHERE id <= {rows};
UPDATE cachesync.change_log SET published_at = now() WHERE published_at IS NULL;
"""
_ROWS: Final = "COPY (SELECT key, version FROM cachesync.student) TO STDOUT"


@dataclass(frozen=True, slots=True)
class Measured:
    """One run: slots examined, duration, maximum memory in MB, and CPU time per process; times in seconds."""

    examined: int
    seconds: float
    megabytes: float
    python: float
    redis: float
    postgresql: float


class Servers:
    """The PostgreSQL and Redis servers, with the operations on them that the benchmark needs."""

    def __init__(self, postgres: Postgres, cache: Redis) -> None:
        self._postgres = postgres
        self._cache = cache
        self._client = redis.Redis.from_url(cache.url)
        # No eviction, whatever the number of rows.
        self._client.config_set("maxmemory", 0)

    def install(self) -> None:
        """Create the sample's tables and install the product."""
        self._postgres.sql((REPOSITORY / "local" / "sample.sql").read_text(encoding="utf-8"))

        async def run() -> None:
            connection = await asyncpg.connect(self._postgres.dsn)
            await install(connection, load_entities(REPOSITORY / "entities.toml"), Silent())
            await connection.close()

        asyncio.run(run())

    def fill(self, rows: int) -> None:
        """Replace all rows with the given number of new ones, cache them, and delete all earlier runs."""
        self._postgres.sql(_FILL.format(rows=rows))
        self._postgres.sql("VACUUM ANALYZE")
        self._client.flushall(asynchronous=True)
        self._cache_rows(rows)

    def log(self) -> None:
        """Add a change of every row to the change log, published an hour ago."""
        self._postgres.sql(_LOG)
        self._postgres.sql("VACUUM ANALYZE")

    def change(self, rows: int) -> None:
        """Change the given number of rows, and update the cache to match."""
        self._postgres.sql(_CHANGE.format(rows=rows))
        self._cache_rows(rows)

    def bound(self, rows: int) -> float:
        """Run the upper bound: read all slots and all rows without comparing them; return its seconds."""
        began = time.perf_counter()
        with self._copy(_ROWS, subprocess.DEVNULL) as copying, Bulk(self._client, "the Redis") as bulk:
            last = b"%d" % (UP_TO_PAYLOAD - 1)
            for start in range(1, rows + 1, _BATCH):
                keys = range(start, min(start + _BATCH, rows + 1))
                bulk.call([(b"GETRANGE", b"sb:student:%d" % key, b"0", last) for key in keys])
        assert copying.returncode == 0
        return time.perf_counter() - began

    def reconcile(self, *options: str) -> Measured:
        """Run `cachesync reconcile` and measure it."""
        before = [of_tree(server) for server in (self._cache, self._postgres)]
        process = subprocess.Popen(
            [sys.executable, "-m", "cachesync", "reconcile", "--json", "-", *options],
            env=os.environ
            | {"CACHESYNC_DSN": self._postgres.dsn, "CACHESYNC_REDIS_URLS": f"sb={self._cache.url}"},
            cwd=REPOSITORY,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        assert process.stdout is not None
        megabytes, used = _watch(process)
        report = json.loads(process.stdout.read())
        after = [of_tree(server) for server in (self._cache, self._postgres)]
        assert report["outcome"] == "clean", report
        return Measured(
            examined=report["examined"],
            seconds=report["duration_s"],
            megabytes=megabytes,
            python=used.ru_utime + used.ru_stime,
            redis=after[0] - before[0],
            postgresql=after[1] - before[1],
        )

    def _cache_rows(self, rows: int) -> None:
        port = str(self._cache.port)
        cli = f"{redis_server().removesuffix('server')}cli"
        with self._copy(SLOTS.format(service="sb", first=1, last=rows), subprocess.PIPE) as copying:
            subprocess.run([cli, "-p", port, "--pipe"], stdin=copying.stdout, capture_output=True, check=True)
        assert copying.returncode == 0

    def _copy(self, statement: str, output: int) -> subprocess.Popen[bytes]:
        psql, environment = client("psql", self._postgres.dsn, "-Xq", "-c", statement)
        return subprocess.Popen(psql, env=environment, stdout=output)


def _watch(process: subprocess.Popen[bytes]) -> tuple[float, resource.struct_rusage]:
    """Wait for the end of a process; return its maximum resident size in MB, and what it used."""
    peak = 0
    while True:
        # Not `ru_maxrss`, which includes the size of this process when it forked.
        found = _PEAK.search(Path(f"/proc/{process.pid}/status").read_text(encoding="utf-8"))
        peak = int(found[1]) if found is not None else peak
        ended, _, used = os.wait4(process.pid, os.WNOHANG)
        if ended:
            return peak / 1024, used
        time.sleep(_SAMPLE_SECONDS)


def _load() -> str:
    return f"{os.getloadavg()[0]:.1f}"


def _row(measured: Measured) -> list[str]:
    return [
        f"{measured.examined:,}",
        f"{measured.seconds:.1f}",
        f"{measured.examined / measured.seconds:,.0f}",
        f"{measured.megabytes:.0f}",
        *(f"{seconds:.1f}" for seconds in (measured.python, measured.redis, measured.postgresql)),
    ]


_COLUMNS: Final = ("examined", "s", "slots/s", "MB", "Python s", "Redis s", "PostgreSQL s")


def full_runs(rows: int, rounds: int) -> list[dict[str, float]]:
    """Return the figures of full runs at one size, by round."""
    folder = REPOSITORY / ".local" / "benchmark"
    results = []
    with claim_any(folder) as state, Postgres(state) as postgres, Redis(state) as cache:
        postgres.drop_databases()
        servers = Servers(postgres, cache)
        servers.install()
        servers.fill(rows)
        for _ in range(rounds):
            bound = servers.bound(rows)
            measured = servers.reconcile()
            used = measured.python + measured.redis + measured.postgresql
            results.append(
                {
                    "slots_per_s": measured.examined / measured.seconds,
                    "bound_slots_per_s": rows / bound,
                    "ratio": bound / measured.seconds,
                    "cpu_us": 1e6 * used / measured.examined,
                    "memory_mb": measured.megabytes,
                }
            )
    return results


def main(
    sizes: Annotated[
        list[int] | None, typer.Option("--rows", help="Number of rows. Can be repeated.")
    ] = None,
    changed: Annotated[
        list[int] | None, typer.Option(help="Number of rows to change before a delta run. Can be repeated.")
    ] = None,
    rounds: Annotated[int, typer.Option(help="Number of measurements of each full run.")] = 3,
) -> None:
    """Measure full and delta reconciliations."""
    console = Console(width=120)
    folder = REPOSITORY / ".local" / "benchmark"
    with claim_any(folder) as state, Postgres(state) as postgres, Redis(state) as cache:
        postgres.drop_databases()
        servers = Servers(postgres, cache)
        servers.install()
        for rows in sizes or [10_000, 100_000, 1_000_000]:
            servers.fill(rows)
            full = Table(*_COLUMNS, "bound s", "ratio", "load", title="full")
            for _ in range(rounds):
                bound = servers.bound(rows)
                measured = servers.reconcile()
                full.add_row(*_row(measured), f"{bound:.1f}", f"{bound / measured.seconds:.2f}", _load())
            console.print(full)
        servers.log()
        servers.reconcile()
        delta = Table("changed", *_COLUMNS, "load", title="delta")
        for rows in changed or [0, 1000, 10_000, 100_000]:
            servers.change(rows)
            delta.add_row(f"{rows:,}", *_row(servers.reconcile("--delta")), _load())
        console.print(delta)


if __name__ == "__main__":
    typer.run(main)
