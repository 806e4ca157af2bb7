"""The command `cachesync warm`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cachesync.cli.options import (
    Dsn,
    EntitiesFile,
    Json,
    RedisUrls,
    connection,
    console,
    print_json,
    redis_clients,
    run,
    selected,
)
from cachesync.entity import load_entities
from cachesync.warm.warm import MAX_RATE, Warmed, Warming

if TYPE_CHECKING:
    from collections.abc import Sequence

_STOPPED: Final = 3


def warm(
    *,
    name: Annotated[str, typer.Argument(metavar="ENTITY", help="The entity whose rows to cache.")],
    services: Annotated[
        list[str] | None,
        typer.Option(
            "--service", help="Only this service's cache; can be repeated.", show_default="all with --redis"
        ),
    ] = None,
    limit: Annotated[
        int | None, typer.Option(min=1, help="Maximum number of rows.", show_default="no limit")
    ] = None,
    recent: Annotated[
        bool,
        typer.Option(
            "--recent",
            help="The rows that changed last, as far back as the change log reaches, not all in key order.",
        ),
    ] = False,
    rate: Annotated[
        int | None,
        typer.Option(min=1, max=MAX_RATE, help="Maximum number of rows per second.", show_default="no limit"),
    ] = None,
    redis: RedisUrls = None,
    dsn: Dsn = None,
    entities: EntitiesFile = Path("entities.toml"),
    as_json: Json = False,
) -> None:
    """Fill the slots of an entity from the database, before they are read.

    Slots that are cached already stay as they are, so that the command can be repeated after an interruption.
    It stops before it would evict others.

    Exit status: 0 if all of these rows are cached, 1 if the command could not run, 3 if it stopped because a
    Redis is nearly full.
    """

    async def work() -> None:
        declared = load_entities(entities)
        (entity,) = selected([name], declared, f"{entities} does not declare entity")
        done: list[Warmed] = []
        with redis_clients(redis) as clients:
            for service in selected(services, clients, "no --redis given for service"):
                async with connection(dsn) as opened:
                    warming = Warming(opened, clients[service], service, declared[entity])
                    done.append(warming.done)
                    progress = _ProgressBar(limit)
                    with progress.display:
                        await warming.run(
                            limit=limit, recent=recent, rate=rate, on_progress=progress.on_progress
                        )
        if as_json:
            print_json([one.model_dump() for one in done])
        _print(done)
        if any(one.stopped is not None for one in done):
            raise typer.Exit(_STOPPED)

    run(work())


class _ProgressBar:
    """Shows the progress for one cache.

    Args:
        limit: the maximum number of rows; None if it is not known.

    Attributes:
        display: shows the progress bar as a context manager.
    """

    def __init__(self, limit: int | None) -> None:
        self.display = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[speed]}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._bar = self.display.add_task("", total=limit, speed="")

    def on_progress(self, done: Warmed) -> None:
        self.display.update(
            self._bar,
            description=f"{done.service} {done.entity}",
            completed=done.rows,
            speed=f"{done.filled:,} filled, {done.rows / max(done.seconds, 0.001):,.0f} rows/s",
        )


def _print(done: Sequence[Warmed]) -> None:
    for one in done:
        console.print(
            f"{one.service} {one.entity}: {one.rows:,} rows, {one.filled:,} filled, {one.cached:,} cached "
            f"already, {one.not_filled:,} not filled; {one.seconds:.1f} s, "
            f"{one.rows / max(one.seconds, 0.001):,.0f} rows/s",
        )
        if one.stopped is not None:
            console.print(f"stopped: {one.stopped}")
