"""How cost grows: `make bench-growth`.

One dimension grows at a time. Airflow does not run, so that what is measured is the pipeline: the relay and
each stream are processes of their own.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import httpx
import typer
import uvloop
from rich.console import Console

from benchmarks import idle, reconcile, throughput
from benchmarks.growth import report
from benchmarks.growth.pipeline import Pipeline
from benchmarks.propagation import Sql, measure, warm_up
from benchmarks.results import Results
from benchmarks.target import FIRST, ROWS
from local.settings import REPOSITORY
from local.tools import require_wrk

if TYPE_CHECKING:
    from collections.abc import Callable

    from local.service import Service

_STATE: Final = REPOSITORY / ".local" / "benchmark"
_FILE: Final = Path(__file__).with_name("results.json")
_RATE: Final = 300
#: A hundred entries of 100 KB a second are 10 MB/s in each of the two caches.
_SIZE_RATE: Final = 100
_SECONDS: Final = 4
_ROUNDS: Final = 2
_STEPS: Final = {
    "rows": (10_000, 100_000, 1_000_000, 3_000_000),
    "bytes": (100, 1_000, 10_000, 100_000),
    "connections": (1, 10, 100, 900),
    "entities": (2, 10, 50, 200),
    "partitions": (1, 3, 6, 12, 24),
    "caches": (1, 2, 4, 8),
    "slots": (100_000, 1_000_000, 10_000_000),
}
_console = Console(soft_wrap=True, highlight=False)


class Growth:
    """The measurements; a method for each dimension, named after it.

    Args:
        results: receives the figures.
    """

    def __init__(self, results: Results) -> None:
        self._results = results

    async def rows(self) -> None:
        """Rows of the table and slots of each cache; the changes are spread over all of them."""
        with _pipeline() as pipeline:
            inserted = 0
            for count in _STEPS["rows"]:
                await asyncio.to_thread(pipeline.target.insert, FIRST + inserted, count - inserted)
                inserted = count
                await self._changes(f"rows_{count}", pipeline, Sql(pipeline.target.dsn, count), _RATE)

    async def bytes(self) -> None:
        """Size of an entry."""
        with _pipeline() as pipeline:
            await asyncio.to_thread(pipeline.target.insert, FIRST, ROWS)
            pipeline.target.keep_uncompressed()
            for size in _STEPS["bytes"]:
                writing = Sql(pipeline.target.dsn, ROWS, size)
                await self._changes(f"bytes_{size}", pipeline, writing, _SIZE_RATE)
                await asyncio.to_thread(self._hits, f"bytes_{size}", pipeline.service, size)

    async def connections(self) -> None:
        """Connections of clients to a service, all of which ask for an entry again and again."""
        with _pipeline() as pipeline:
            for count in _STEPS["connections"]:
                await asyncio.to_thread(
                    self._hits, f"connections_{count}", pipeline.service, 0, connections=count
                )

    async def entities(self) -> None:
        """Entities, of which one has changes."""
        await self._systems("entities", lambda count: _pipeline(entities=count))

    async def partitions(self) -> None:
        """Partitions of each topic."""
        await self._systems("partitions", lambda count: _pipeline(partitions=count))

    async def caches(self) -> None:
        """Caches that follow."""
        await self._systems("caches", lambda count: _pipeline(caches=count))

    async def slots(self) -> None:
        """Slots of a cache that is reconciled, none of which is wrong."""
        for count in _STEPS["slots"]:
            for figures in await asyncio.to_thread(reconcile.full_runs, count, _ROUNDS):
                self._add(f"slots_{count}", figures)

    async def _systems(self, name: str, make: Callable[[int], Pipeline]) -> None:
        """Measure a system of each size."""
        for count in _STEPS[name]:
            with make(count) as pipeline:
                await asyncio.to_thread(pipeline.target.insert, FIRST, ROWS)
                await self._changes(f"{name}_{count}", pipeline, Sql(pipeline.target.dsn), _RATE)
                for figures in await idle.measure(pipeline.target.processes, _ROUNDS, _SECONDS):
                    self._add(f"{name}_{count}", {"idle_cores": figures["cores"]})

    async def _changes(self, name: str, pipeline: Pipeline, writing: Sql, rate: int) -> None:
        await warm_up(pipeline.target, writing)
        for _ in range(_ROUNDS):
            self._add(name, (await measure(pipeline.target, writing, rate, _SECONDS)).figures())

    def _hits(
        self, name: str, service: Service, size: int, connections: int = throughput.CONNECTIONS
    ) -> None:
        """Measure hits of an entry that is this many bytes larger than the smallest."""
        row = f"{service.url}/students/1"
        httpx.put(row, json={"name": "x" * (size + 1), "age": 20}).raise_for_status()
        assert httpx.get(row).headers["x-cache"] == "HIT"
        for _ in range(_ROUNDS):
            per_second, cpu = throughput.rate(service, "/students/1", _SECONDS, connections=connections)
            self._add(name, {"hits_per_s": per_second, "hit_cpu_us": cpu})

    def _add(self, prefix: str, figures: dict[str, float]) -> None:
        self._results.add(prefix, figures)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items() if "." not in name)
        _console.print(f"{prefix:18}{shown}")


def _pipeline(**size: int) -> Pipeline:
    return Pipeline(_STATE / "growth-run", _STATE / "kafka", **size)


def main(
    *,
    only: Annotated[
        list[str] | None, typer.Option(help="Measure only this, and print the figures. Can be repeated.")
    ] = None,
) -> None:
    """Measure how cost grows, and write the results."""
    require_wrk()
    results = Results.begin()
    growth = Growth(results)
    began = time.monotonic()
    for name in only or _STEPS:
        uvloop.run(getattr(growth, name)())
    results.seconds = round(time.monotonic() - began)
    _console.print(f"took {results.seconds:.0f} s")
    if not only:
        results.save(_FILE)
        report.write(results)


if __name__ == "__main__":
    typer.run(main)
