"""All measurements, one system at a time: `make bench` and `make bench-quick`.

`python -m benchmarks --only hits --only posts` measures only some of them and prints the figures.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import httpx
import typer
import uvloop
from rich.console import Console

from benchmarks import idle, library, reconcile, report, stampede, throughput, writer
from benchmarks.aims import load_aims
from benchmarks.bulk import Bulk
from benchmarks.debezium.system import TUNED, Debezium
from benchmarks.propagation import Put, Sql, Writer, measure, warm_up
from benchmarks.regressions import regressions
from benchmarks.results import Results
from benchmarks.target import BULK_FIRST, FIRST, ROWS, Target
from benchmarks.throughput import Bare
from local.ports import free_port
from local.service import Service
from local.settings import REPOSITORY, Settings
from local.system import System
from local.tools import require_wrk

if TYPE_CHECKING:
    from collections.abc import Callable

_FOLDER: Final = Path(__file__).parent
_FULL: Final = _FOLDER / "results.json"
_QUICK: Final = _FOLDER / "quick.json"
_STATE: Final = REPOSITORY / ".local" / "benchmark"
_SLOW: Final = 1
_console = Console(soft_wrap=True, highlight=False)


@dataclass(frozen=True)
class Plan:
    """How much is measured.

    Attributes:
        rounds: number of rounds of each measurement.
        seconds: duration of a run under load.
        sql_rates, put_rates, debezium_rates: changes per second.
        rows: rows of a bulk UPDATE.
        bulk_seconds: no further bulk UPDATE begins after this time.
    """

    rounds: int
    seconds: int
    sql_rates: tuple[int, ...]
    put_rates: tuple[int, ...]
    debezium_rates: tuple[int, ...]
    rows: int
    bulk_seconds: float


_PLANS: Final = {
    False: Plan(
        rounds=3,
        seconds=8,
        sql_rates=(100, 500, 1000, 2000, 5000),
        put_rates=(100, 500, 1000, 1500),
        debezium_rates=(100, 500, 1000, 2000, 5000),
        rows=1_000_000,
        bulk_seconds=120,
    ),
    True: Plan(
        rounds=3, seconds=2, sql_rates=(), put_rates=(), debezium_rates=(), rows=100_000, bulk_seconds=0
    ),
}


class Suite:
    """The measurements of a plan.

    Args:
        plan: how much is measured.
        only: names of the measurements; empty selects all.
        results: receives the figures.
    """

    def __init__(self, plan: Plan, only: set[str], results: Results) -> None:
        self._plan = plan
        self._only = only
        self._results = results

    def run(self, *, quick: bool) -> None:
        """Measure everything, one system at a time."""
        if self._wants(
            "sql", "put", "bulk", "running", "hits", "posts", "library", "stampede", "triggers", "idle"
        ):
            # A state and ports of its own: a system that `make demo` keeps is left alone.
            ports = {name: free_port() for name in Settings.model_fields if name.endswith("_port")}
            servers = {
                name: None for name in Settings.model_fields if name.endswith(("_dsn", "_url", "_bootstrap"))
            }
            # An earlier run may have left a backlog, and topics with other partitions.
            shutil.rmtree(_STATE / "run", ignore_errors=True)
            settings = Settings.model_validate({"state": _STATE, **ports, **servers})
            system = System(settings, _console)
            if quick:
                del system.parts["airflow"]  # starting it would take a third of the time
            with system:
                uvloop.run(self._own(system, quick=quick))
        if quick:
            return
        if self._wants("debezium"):
            with Debezium(_STATE / "debezium-run") as debezium:
                uvloop.run(self._debezium(debezium))
        if self._wants("reconcile"):
            for figures in reconcile.full_runs(self._plan.rows, self._plan.rounds):
                self._add("reconcile", figures)
        if self._wants("idle"):
            uvloop.run(self._idle_airflow())

    async def _own(self, system: System, *, quick: bool) -> None:
        target = Target(system.dsn, system.redis_urls, system.processes)
        target.unbounded()
        tables = writer.Tables(target)
        await tables.prepare()
        if not quick:
            await self._with_airflow(system, target, tables)
            system.airflow.stop()
        await self._without_airflow(system, tables)

    async def _with_airflow(self, system: System, target: Target, tables: writer.Tables) -> None:
        """Measure what needs everything to run."""
        plan = self._plan
        target.insert(FIRST, ROWS)
        sql, put = Sql(system.dsn), Put(system.services["sa"].port)
        await warm_up(target, sql)
        if self._wants("idle"):
            for figures in await idle.measure(system.processes, plan.rounds, plan.seconds):
                self._add("idle", figures)
        if self._wants("sql"):
            await self._propagation("sql", target, sql, plan.sql_rates)
        if self._wants("put"):
            await self._propagation("put", target, put, plan.put_rates)
        if self._wants("running"):
            await self._writer("running", tables)
            await target.until_published()
        if self._wants("bulk"):
            target.insert(BULK_FIRST, plan.rows)
            singles: dict[str, Writer] = {"sql": sql, "put": put}
            await self._bulk("bulk", Bulk(target, plan.rows, singles, system.airflow.triggerer))
        await put.close()

    async def _without_airflow(self, system: System, tables: writer.Tables) -> None:
        """Measure the services and the triggers, which need nothing that Airflow runs."""
        plan = self._plan
        sa, sb = system.services["sa"], system.services["sb"]
        with Bare(system.folder, system.dsn) as bare:
            if self._wants("hits"):
                for figures in await _in_thread(lambda: throughput.hits(sb, bare, plan.rounds, plan.seconds)):
                    self._add("hits", figures)
            if self._wants("posts"):
                for figures in await _in_thread(
                    lambda: throughput.posts(sa, bare, plan.rounds, plan.seconds)
                ):
                    self._add("posts", figures)
        if self._wants("library"):
            await asyncio.to_thread(httpx.get, f"{sb.url}/students/1")
            for figures in await library.measure(
                system.dsn, system.redis_urls["sb"], system.bootstrap_servers, plan.rounds
            ):
                self._add("library", figures)
        if self._wants("stampede"):
            await self._stampede(system)
        if self._wants("triggers"):
            for service in system.services.values():
                service.stop()
            await self._writer("triggers", tables)
            await self._bulk_statement(tables)

    async def _propagation(self, name: str, target: Target, writing: Writer, rates: tuple[int, ...]) -> None:
        for rate in rates:
            for _ in range(self._plan.rounds):
                result = await measure(target, writing, rate, self._plan.seconds)
                self._add(f"{name}_{rate}", result.figures())
                if not result.sustained:
                    # What is left would burden the next run.
                    await target.until_published()
                    break

    async def _bulk(self, name: str, bulk: Bulk) -> None:
        end = time.monotonic() + self._plan.bulk_seconds
        for _ in range(self._plan.rounds):
            figures = await bulk.measure()
            if "memory_max_mb" in figures:
                figures["memory_ratio"] = figures["memory_max_mb"] / figures["memory_before_mb"]
            self._add(name, figures)
            if time.monotonic() > end:
                break

    async def _writer(self, name: str, tables: writer.Tables) -> None:
        for figures in await writer.shares(tables, self._plan.rounds, self._plan.seconds / 2):
            self._add(name, figures)

    async def _bulk_statement(self, tables: writer.Tables) -> None:
        rows = self._plan.rows
        await tables.plain_rows(BULK_FIRST, rows)
        await asyncio.to_thread(tables.target.insert, BULK_FIRST, rows)
        for _ in range(self._plan.rounds):
            (plain, plain_wal), (own, own_wal) = [
                await tables.bulk(table, BULK_FIRST, rows) for table in ("plain", "student")
            ]
            figures = {"bulk_plain_s": plain, "bulk_s": own, "bulk_ratio": own / plain}
            self._add("triggers", figures | {"bulk_plain_wal_mb": plain_wal, "bulk_wal_mb": own_wal})

    async def _stampede(self, system: System) -> None:
        second = Service(
            system.folder / "second",
            "sb",
            dsn=system.dsn,
            redis_url=system.redis_urls["sb"],
            bootstrap_servers=system.bootstrap_servers,
        )
        with second:
            ports = [system.services["sb"].port, second.port]
            for figures in await stampede.measure(ports, system.redis_urls["sb"], 5 * self._plan.rounds):
                self._add("stampede", figures)

    async def _debezium(self, debezium: Debezium) -> None:
        plan = self._plan
        tables = writer.Tables(debezium.target)
        await tables.prepare()
        debezium.target.insert(FIRST, ROWS)
        debezium.target.insert(BULK_FIRST, plan.rows)
        # Of a table that is not published too, its server decodes every change, so that this comes first.
        plain = [await tables.rates("plain", plan.seconds / 2) for _ in range(plan.rounds)]
        debezium.connect({})
        target = debezium.target
        await warm_up(target, Sql(target.dsn))
        await self._propagation("debezium", target, Sql(target.dsn), plan.debezium_rates)
        for alone in plain:
            captured = await tables.rates("student", plan.seconds / 2)
            self._add("debezium_writer", {f"{name}_tps": tps for name, tps in captured.items()})
            self._add("debezium_writer", {f"{name}_plain_tps": tps for name, tps in alone.items()})
            self._add("debezium_writer", {f"{name}_share": captured[name] / alone[name] for name in alone})
        await warm_up(target, Sql(target.dsn))
        await self._bulk("debezium_bulk", Bulk(target, plan.rows, {"sql": Sql(target.dsn)}))
        debezium.connect(TUNED)
        target = debezium.target
        await warm_up(target, Sql(target.dsn))
        await self._bulk("debezium_bulk_tuned", Bulk(target, plan.rows, {"sql": Sql(target.dsn)}))

    async def _idle_airflow(self) -> None:
        own = await idle.of_airflow(_STATE / "airflow-run", self._plan.rounds, self._plan.seconds)
        for figures in own:
            self._add("idle_airflow", figures)
        whole = self._results.figures.get("idle.cores", [])
        for cores, figures in zip(whole, own, strict=False):
            self._add("idle", {"cores_without_airflow": max(0.0, cores - figures["cores"])})

    def _wants(self, *names: str) -> bool:
        return not self._only or not self._only.isdisjoint(names)

    def _add(self, prefix: str, figures: dict[str, float]) -> None:
        self._results.add(prefix, figures)
        shown = "  ".join(f"{name} {value:.4g}" for name, value in figures.items() if "." not in name)
        _console.print(f"{prefix:18}{shown}")


async def _in_thread(work: Callable[[], list[dict[str, float]]]) -> list[dict[str, float]]:
    return await asyncio.to_thread(work)


def main(
    *,
    quick: Annotated[
        bool, typer.Option(help="Measure only ratios, and compare them with those kept.")
    ] = False,
    keep: Annotated[
        bool, typer.Option(help="With --quick: keep the ratios instead of comparing them.")
    ] = False,
    only: Annotated[list[str] | None, typer.Option(help="Measure only this. Can be repeated.")] = None,
) -> None:
    """Measure the system, and write the results."""
    require_wrk()
    results = Results.begin()
    began = time.monotonic()
    aims = load_aims()
    try:
        Suite(_PLANS[quick], set(only or ()), results).run(quick=quick)
    finally:
        results.seconds = round(time.monotonic() - began)
        _console.print(f"took {results.seconds:.0f} s")
        # What was measured before an error is kept.
        if not quick and not only:
            results.save(_FULL)
            report.write(results, aims)
    if only or not quick:
        return
    if keep or not _QUICK.exists():
        results.save(_QUICK)
        _console.print(f"kept in {_QUICK.relative_to(REPOSITORY)}")
    else:
        lines, slower = regressions(results, Results.load(_QUICK), aims)
        _console.print(*lines, sep="\n")
        if slower:
            raise typer.Exit(_SLOW)


if __name__ == "__main__":
    typer.run(main)
