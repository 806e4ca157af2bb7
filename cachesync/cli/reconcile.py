"""The command `cachesync reconcile`."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final, Literal

import typer
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from cachesync.cli.options import (
    Dsn,
    EntitiesFile,
    RedisUrls,
    connection,
    console,
    redis_clients,
    run,
    selected,
)
from cachesync.cli.rows import printable
from cachesync.entity import load_entities
from cachesync.errors import SettingsError
from cachesync.reconcile import run as runs
from cachesync.reconcile.drift import COUNTS
from cachesync.reconcile.models import MAX_RATE, Parameters

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachesync.entity import Entity
    from cachesync.reconcile.chunk import Progress as ChunkProgress
    from cachesync.reconcile.models import Report, Task
    from cachesync.slots.clients import BlockingRedis

_PREFIX: Final = "command-"
_UNREPAIRED: Final = 3


def reconcile(
    *,
    services: Annotated[
        list[str] | None,
        typer.Option(
            "--service", help="Only this service's cache; can be repeated.", show_default="all with --redis"
        ),
    ] = None,
    names: Annotated[
        list[str] | None,
        typer.Option(
            "--entity", help="Only slots of this entity; can be repeated.", show_default="all declared"
        ),
    ] = None,
    delta: Annotated[
        bool,
        typer.Option("--delta", help="Only keys that changed since the last run that left no drift."),
    ] = False,
    deep: Annotated[bool, typer.Option("--deep", help="Compare payloads too, not only versions.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Report drift without repairing it.")] = False,
    rate: Annotated[
        int | None, typer.Option(min=1, max=MAX_RATE, help="Maximum number of slots per second.")
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="File for the report; - is standard output.")
    ] = None,
    redis: RedisUrls = None,
    dsn: Dsn = None,
    entities: EntitiesFile = Path("entities.toml"),
) -> None:
    """Compare caches with the database, and repair drift.

    If a run was interrupted, the same command resumes it within a day.

    Exit status: 0 if nothing is wrong anymore or the run was a dry run, 1 if the command could not run, 3 if
    something could not be repaired.
    """

    async def work() -> None:
        # Before the run, which can take hours.
        if json_file is not None and not json_file.parent.is_dir():
            message = f"--json {json_file}: {json_file.parent} is not a directory"
            raise SettingsError(message)
        declared = load_entities(entities)
        with redis_clients(redis) as clients:
            parameters = Parameters(
                services=selected(services, clients, "no --redis given for service"),
                entities=selected(names, declared, f"{entities} does not declare entity"),
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
        _print_report(report)
        if report.outcome == "unrepaired":
            raise typer.Exit(_UNREPAIRED)

    run(work())


def _mode(*, delta: bool) -> Literal["full", "delta"]:
    return "delta" if delta else "full"


async def _run(
    dsn: str | None,
    parameters: Parameters,
    clients: Mapping[str, BlockingRedis],
    entities: Mapping[str, Entity],
) -> Report:
    async with connection(dsn) as opened:
        name = await runs.unfinished(opened, _PREFIX, parameters)
        if name is None:
            name = _PREFIX + datetime.now(UTC).isoformat(timespec="milliseconds")
            await runs.claim(opened, name)
        else:
            console.print(f"resuming unfinished run {name}")
        tasks = await runs.plan(opened, name, parameters, clients)
        progress = _ProgressBar(len(tasks))
        with progress.display:
            for task in tasks:
                progress.on_chunk(task)
                await runs.run_chunk(
                    dsn, clients[task.service], name, task, entities, on_progress=progress.on_progress
                )
        return await runs.report(opened, name)


class _ProgressBar:
    """Shows the progress of a run.

    Args:
        chunks: the number of chunks.

    Attributes:
        display: shows the progress bar as a context manager.
    """

    def __init__(self, chunks: int) -> None:
        self.display = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %  {task.fields[counts]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
        )
        self._bar = self.display.add_task("", total=chunks, counts="")
        self._done = -1
        self._before = (0, 0)
        self._now = (0, 0)

    def on_chunk(self, task: Task) -> None:
        """Show the start of a chunk."""
        self._done += 1
        self._before = self._now
        self.display.update(self._bar, description=task.label, completed=self._done)

    def on_progress(self, progress: ChunkProgress) -> None:
        """Show the progress of the current chunk."""
        examined = sum(found.examined for found in progress.findings.values())
        drift = sum(found.drift for found in progress.findings.values())
        self._now = (self._before[0] + examined, self._before[1] + drift)
        self.display.update(
            self._bar,
            completed=self._done + progress.share,
            counts=f"{self._now[0]:,} examined, {self._now[1]:,} wrong",
        )


def _print_report(report: Report) -> None:
    for note in report.notes:
        console.print(note)
    for service, entities in report.services.items():
        for entity, found in entities.items():
            counts = {name.replace("_", " "): getattr(found, name) for name in COUNTS}
            shown = (f"{count:,} {name}" for name, count in counts.items() if count or name == "examined")
            console.print(f"{service} {entity}: {', '.join(shown)}")
    for kind, slots in report.samples.items():
        console.print(f"{kind.replace('_', ' ')}: {', '.join(map(printable, slots))}")
    console.print(
        f"{report.outcome}: run {report.run}, {report.duration_s:.1f} s, {report.rows_per_s:,.0f} slots/s",
    )
