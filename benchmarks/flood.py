"""Effect of a bulk UPDATE in SQL on single writes, while the relay publishes its changes.

Writes through sa and writes in SQL run at a fixed rate before the UPDATE and from its commit on. The output
has their percentiles, from the acknowledgement to the entry in sb's cache; the relay's throughput in rows per
second; the maximum resident size of the triggerer, which runs the relay and the streams; and whether all
changes have arrived.

`python -m benchmarks.flood` starts the whole system.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import asyncpg
import redis.asyncio
import typer
import uvloop
from rich.console import Console

from benchmarks.propagation import Psql, Service, Watch, measure, prepare
from local.settings import Settings
from local.system import System

if TYPE_CHECKING:
    from local.process import Process

_FIRST: Final = 10_000_000
_SAMPLED: Final = 1000
_UNPUBLISHED: Final = "SELECT count(*) FROM cachesync.change_log WHERE published_at IS NULL"


def resident(process: Process) -> float:
    """Return the resident memory of a process and its descendants, in MB."""
    return sum(each.memory_info().rss for each in process.tree()) / 2**20


async def run(system: System, settings: Settings, rows: int, rate: int, seconds: int) -> None:
    """Measure single writes before and after the UPDATE, and print the results."""
    console = Console()
    pool = await asyncpg.create_pool(system.dsn)
    slots = redis.asyncio.Redis.from_url(system.redis_urls["sb"])
    last = _FIRST + rows
    insert = "INSERT INTO student SELECT i, 'n' || i, 20 FROM generate_series($1::int, $2::int) AS i"
    async with pool.acquire() as connection, connection.transaction():
        await connection.execute(f"{insert} ON CONFLICT (id) DO NOTHING", _FIRST, last - 1)
        # Inserting the rows is not part of the measurement.
        await connection.execute("UPDATE cachesync.change_log SET published_at = now()")
    await prepare(settings)
    sample = [_FIRST + number * (rows // _SAMPLED) for number in range(_SAMPLED)]
    for key in sample:
        # Any older version will do: changes only update slots that hold a value.
        await slots.set(f"sb:student:{key}", b"V%019d00000000{}" % 1)
    writers: dict[str, Service | Psql] = {"sa": Service(settings), "psql": Psql(pool)}
    watches = {name: Watch(system.redis_urls["sb"]) for name in writers}
    listening = [await watch.start() for watch in watches.values()]

    async def single(seconds: int) -> None:
        results = await asyncio.gather(
            *(measure(watches[name], writer, rate, seconds) for name, writer in writers.items())
        )
        for name, text in zip(writers, results, strict=True):
            console.print(f"{name}: {text}", soft_wrap=True)

    await single(3)
    console.print("before:")
    await single(seconds)
    before = resident(system.airflow.triggerer)
    began = time.perf_counter()
    await pool.execute("UPDATE student SET age = 30 WHERE id >= $1", _FIRST, timeout=600)
    committed = time.perf_counter()
    console.print(f"UPDATE of {rows} rows: {committed - began:.1f} s; after its commit:")
    writing = asyncio.create_task(single(seconds))
    largest = before
    while left := await pool.fetchval(f"{_UNPUBLISHED} AND key::bigint >= $1", _FIRST):
        largest = max(largest, resident(system.airflow.triggerer))
        console.print(f"  {time.perf_counter() - committed:5.1f} s  {left} unpublished")
        await asyncio.sleep(2)
    taken = time.perf_counter() - committed
    await writing
    console.print(
        f"{rows / taken:.0f} rows/s published; triggerer {before:.0f} MB before, {largest:.0f} MB maximum"
    )
    expected = {
        record["id"]: record["row_version"]
        for record in await pool.fetch("SELECT id, row_version FROM student WHERE id = ANY($1)", sample)
    }
    behind = sample
    while behind and time.perf_counter() - committed < 10 * taken:
        await asyncio.sleep(0.5)
        held = await slots.mget([f"sb:student:{key}" for key in sample])
        behind = [
            key for key, slot in zip(sample, held, strict=True) if slot and int(slot[1:20]) < expected[key]
        ]
    console.print(
        f"{len(behind)} of {_SAMPLED} cached rows behind after {time.perf_counter() - committed:.1f} s"
    )
    for task in listening:
        task.cancel()
    await pool.close()


def main(rows: int = 1_000_000, rate: int = 50, seconds: int = 20) -> None:
    """Measure how a bulk UPDATE passes through the relay, and how it affects single writes."""
    settings = Settings()
    with System(settings, Console()) as system:
        uvloop.run(run(system, settings, rows, rate, seconds))


if __name__ == "__main__":
    typer.run(main)
