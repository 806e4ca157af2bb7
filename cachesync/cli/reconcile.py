"""The command `cachesync reconcile`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal, Self

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cachesync.cli.options import Dsn, EntitiesFile, RedisUrls, connection, console, redis_clients, run
from cachesync.entity import load_entities
from cachesync.errors import SettingsError
from cachesync.reconcile import run as runs
from cachesync.reconcile.drift import COUNTS
from cachesync.reconcile.models import Parameters

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from cachesync.entity import Entity
    from cachesync.reconcile.chunk import Progress as ChunkProgress
    from cachesync.reconcile.models import Report, Task
    from cachesync.slots.clients import WorkerRedis

_PREFIX: Final = "command-"
_UNREPAIRED: Final = 3


def reconcile(
    *,
    services: Annotated[
        list[str] | None, typer.Option("--service", help="Whose cache; all with a --redis if left out.")
    ] = None,
    names: Annotated[
        list[str] | None, typer.Option("--entity", help="Whose slots; all that are declared if left out.")
    ] = None,
    delta: Annotated[
        bool,
        typer.Option("--delta", help="Only what changed since the last run that left nothing wrong."),
    ] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Compare payloads, too, not only versions.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Repair nothing.")] = False,
    rate: Annotated[int | None, typer.Option(min=1, help="The most slots per second.")] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Where to write the report; - is the standard output.")
    ] = None,
    redis: RedisUrls = None,
    dsn: Dsn = None,
    entities: EntitiesFile = Path("entities.toml"),
) -> None:
    """Find what is wrong in the caches, and repair it.

    An interrupted run goes on where it was when the same command is run again within a day.

    Exit status: 0 nothing is wrong any more, or this was a dry run; 1 it could not run; 3 something could
    not be repaired.
    """

    async def work() -> None:
        declared = load_entities(entities)
        with redis_clients(redis) as clients:
            parameters = Parameters(
                services=_known(services, clients, "--redis gives no address of the service"),
                entities=_known(names, declared, f"{entities} declares no entity"),
                mode=_mode(delta=delta),
                deep=deep,
                dry_run=dry_run,
                rate_limit=rate,
            )
            report = await _run(dsn, parameters, clients, declared)
        if json_file is not None:
            text = report.model_dump_json(indent=2) + "\n"
            if json_file == Path("-"):
                typer.echo(text, nl=False)
            else:
                json_file.write_text(text, encoding="utf-8")
        _tell(report)
        if report.outcome == "unrepaired":
            raise typer.Exit(_UNREPAIRED)

    run(work())


def _mode(*, delta: bool) -> Literal["full", "delta"]:
    return "delta" if delta else "full"


def _known(asked: list[str] | None, known: Collection[str], otherwise: str) -> tuple[str, ...]:
    """What was asked for, or all there is."""
    for name in asked or ():
        if name not in known:
            message = f"{otherwise} {name!r}"
            raise SettingsError(message)
    if not known:
        message = "no cache is known; name each service's Redis, such as --redis sb=redis://host:6379/0"
        raise SettingsError(message)
    return tuple(dict.fromkeys(asked or known))


async def _run(
    dsn: str | None,
    parameters: Parameters,
    clients: Mapping[str, WorkerRedis],
    entities: Mapping[str, Entity],
) -> Report:
    async with connection(dsn) as opened:
        name = await runs.unfinished(opened, _PREFIX, parameters)
        if name is None:
            name = _PREFIX + datetime.now(UTC).isoformat(timespec="milliseconds")
            await runs.claim(opened, name)
        else:
            console.print(f"going on with the unfinished run {name}", markup=False)
        tasks = await runs.plan(opened, name, parameters, clients)
        with _Bar(len(tasks)) as bar:
            for task in tasks:
                bar.begin(task)
                await runs.run_chunk(dsn, clients[task.service], name, task, entities, watch=bar.watch)
        return await runs.report(opened, name)


class _Bar:
    """Shows how far a run has come."""

    def __init__(self, chunks: int) -> None:
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[counts]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._bar = self._progress.add_task("", total=chunks, counts="")
        self._done = -1
        self._before = (0, 0)
        self._now = (0, 0)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def begin(self, task: Task) -> None:
        """A chunk begins."""
        self._done += 1
        self._before = self._now
        self._progress.update(self._bar, description=task.label, completed=self._done)

    def watch(self, progress: ChunkProgress) -> None:
        """It has come so far."""
        examined = sum(found.examined for found in progress.findings.values())
        drift = sum(found.drift for found in progress.findings.values())
        self._now = (self._before[0] + examined, self._before[1] + drift)
        self._progress.update(
            self._bar,
            completed=self._done + progress.share,
            counts=f"{self._now[0]:,} examined, {self._now[1]:,} wrong",
        )


def _tell(report: Report) -> None:
    for note in report.notes:
        console.print(note, markup=False)
    for service, entities in report.services.items():
        for entity, found in entities.items():
            counts = {name.replace("_", " "): getattr(found, name) for name in COUNTS}
            told = (f"{count:,} {name}" for name, count in counts.items() if count or name == "examined")
            console.print(f"{service} {entity}: {', '.join(told)}", markup=False)
    for kind, slots in report.samples.items():
        console.print(f"{kind.replace('_', ' ')}: {', '.join(slots)}", markup=False)
    console.print(
        f"{report.outcome}: run {report.run}, {report.duration_s:.1f} s, {report.rows_per_s:,.0f} slots/s",
        markup=False,
    )
