"""The commands `cachesync dead-letters`."""

from __future__ import annotations

import json
from getpass import getuser
from pathlib import Path
from platform import node
from typing import TYPE_CHECKING, Annotated, Any, Final, Self

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

from cachesync.cli.options import (
    BootstrapServers,
    Dsn,
    EntitiesFile,
    RedisUrls,
    console,
    failed,
    kafka_client,
    redis_clients,
    run,
)
from cachesync.dead_letters.request import LetterTopic, Request, RequestAction
from cachesync.dead_letters.service import DeadLetterService
from cachesync.entity import load_entities

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachesync.dead_letters.audit import AuditEntry
    from cachesync.slots.clients import WorkerRedis

dead_letters: Final = typer.Typer(
    no_args_is_help=True, help="What could not be applied to a cache: look at it, try it again, close it."
)

_output: Final = Console(highlight=False, markup=False)
_LEFT: Final = 3

Letters = Annotated[list[str] | None, typer.Argument(metavar="[LETTER]...", help="Such as parking-lot:0:17.")]
Topic = Annotated[
    LetterTopic | None, typer.Option(help="Those that wait, or those that are parked; both if left out.")
]
Services = Annotated[list[str] | None, typer.Option("--service", help="Those of this service's cache.")]
Entities = Annotated[list[str] | None, typer.Option("--entity", help="Those about this entity.")]
Keys = Annotated[list[str] | None, typer.Option("--key", help="Those about the row with this key.")]
All = Annotated[bool, typer.Option("--all", help="All of them, where nothing else is said.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Tell what would be done, and do nothing.")]
Json = Annotated[bool, typer.Option("--json", help="As JSON.")]


@dead_letters.command("list")
def list_letters(
    *,
    bootstrap_servers: BootstrapServers,
    letters: Letters = None,
    topic: Topic = None,
    services: Services = None,
    entities: Entities = None,
    keys: Keys = None,
    limit: Annotated[int, typer.Option(min=1, help="The most letters to show.")] = 100,
    as_json: Json = False,
    dsn: Dsn = None,
) -> None:
    """Show the letters that wait or are parked."""
    request = _request(
        RequestAction.LIST, letters, topic=topic, services=services, entities=entities, keys=keys, limit=limit
    )
    answer = _carry_out(request, dsn, bootstrap_servers)
    if as_json:
        return _print_json(answer)
    columns = ("letter", "service", "entity", "key", "version", "stage", "attempt", "not before", "error")
    # A name is there to be copied, whatever the terminal's width.
    table = Table(Column(columns[0], no_wrap=True), *columns[1:], box=None)
    for letter in answer["letters"]:
        attempt = f"{letter['attempt']}/{letter['maximum']}"
        cells = (*(letter[name] for name in columns[:6]), attempt, letter["not_before"][:19], letter["error"])
        table.add_row(*("" if cell is None else str(cell) for cell in cells))
    _output.print(table)
    console.print(f"{answer['open']} open", markup=False)
    return None


@dead_letters.command()
def show(
    letter: Annotated[str, typer.Argument(help="Such as parking-lot:0:17.")],
    *,
    bootstrap_servers: BootstrapServers,
    dsn: Dsn = None,
) -> None:
    """Show one letter with its headers, its value, and what was done about its message, as JSON."""
    _print_json(_carry_out(_request(RequestAction.SHOW, [letter]), dsn, bootstrap_servers))


@dead_letters.command()
def stats(*, bootstrap_servers: BootstrapServers, as_json: Json = False, dsn: Dsn = None) -> None:
    """Count the open letters, and what was done with others in the last day."""
    answer = _carry_out(_request(RequestAction.STATS, None), dsn, bootstrap_servers)
    if as_json:
        return _print_json(answer)
    columns = ("topic", "service", "entity", "stage", "letters", "due", "first failed at")
    table = Table(*columns, box=None)
    for group in answer["open"]:
        table.add_row(*(str(group[name.replace(" ", "_")]) for name in columns))
    _output.print(table)
    for done in answer["last_day"]:
        _output.print(f"last day: {done['letters']} {done['action']} by {done['actor']}")
    return None


@dead_letters.command()
def replay(
    *,
    bootstrap_servers: BootstrapServers,
    letters: Letters = None,
    topic: Topic = None,
    services: Services = None,
    entities: Entities = None,
    keys: Keys = None,
    everything: All = False,
    dry_run: DryRun = False,
    rate: Annotated[float | None, typer.Option(min=0.01, help="The most letters per second.")] = None,
    redis: RedisUrls = None,
    dsn: Dsn = None,
    entities_file: EntitiesFile = Path("entities.toml"),
) -> None:
    """Try letters at once, parked ones too: each brings its row as it is now to the cache.

    Those that fail stay as they are. Exit status: 0 all are closed; 1 it could not run; 3 some are left.
    """
    request = _request(
        RequestAction.REPLAY,
        letters,
        topic=topic,
        services=services,
        entities=entities,
        keys=keys,
        all=everything,
        dry_run=dry_run,
        rate=rate,
    )
    _tell(_carry_out(request, dsn, bootstrap_servers, redis, entities_file))


@dead_letters.command()
def discard(
    *,
    bootstrap_servers: BootstrapServers,
    reason: Annotated[str, typer.Option(help="Why; it is kept with the record.")],
    letters: Letters = None,
    topic: Topic = None,
    services: Services = None,
    entities: Entities = None,
    keys: Keys = None,
    everything: All = False,
    dry_run: DryRun = False,
    dsn: Dsn = None,
) -> None:
    """Close letters without trying them. A reconciliation still finds what they leave wrong."""
    request = _request(
        RequestAction.DISCARD,
        letters,
        topic=topic,
        services=services,
        entities=entities,
        keys=keys,
        all=everything,
        dry_run=dry_run,
        reason=reason,
    )
    _tell(_carry_out(request, dsn, bootstrap_servers))


def _request(action: RequestAction, letters: list[str] | None, **said: Any) -> Request:
    given = {name: value for name, value in said.items() if value is not None}
    try:
        return Request(action=action, letters=tuple(letters or ()), **given)
    except ValidationError as error:
        reasons = (str(one["msg"]).removeprefix("Value error, ") for one in error.errors())
        raise failed("; ".join(reasons)) from error


def _carry_out(
    request: Request,
    dsn: str | None,
    bootstrap_servers: str,
    redis: list[str] | None = None,
    entities_file: Path | None = None,
) -> dict[str, Any]:
    """The answer; all that goes wrong ends the command."""
    answer: dict[str, Any] = {}

    async def work() -> None:
        with (
            redis_clients(redis) as clients,
            _Bar(shown=request.action in {RequestAction.REPLAY, RequestAction.DISCARD}) as bar,
        ):
            answer.update(
                await _office(dsn, bootstrap_servers, clients, entities_file).carry_out(request, bar)
            )

    run(work())
    return answer


def _office(
    dsn: str | None, bootstrap_servers: str, clients: Mapping[str, WorkerRedis], entities_file: Path | None
) -> DeadLetterService:
    entities = {} if entities_file is None else load_entities(entities_file)
    return DeadLetterService(dsn, kafka_client(bootstrap_servers), clients, entities, f"{getuser()}@{node()}")


class _Bar:
    """Shows how far a command has come, and what it does with each letter that it cannot close."""

    def __init__(self, *, shown: bool) -> None:
        self._progress = Progress(
            TextColumn("letters looked at"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not shown,
        )
        self._bar = self._progress.add_task("", total=None)

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def expect(self, messages: int) -> None:
        """So many messages will be looked at."""
        self._progress.update(self._bar, total=messages)

    def pass_by(self, messages: int) -> None:
        """So many more were looked at."""
        self._progress.advance(self._bar, messages)

    def end(self, ending: AuditEntry) -> None:
        """Something was done with a letter, or would be."""
        if not ending.action.closes:
            console.print(f"{ending.letter.id} fails: {ending.error}", markup=False, soft_wrap=True)


def _tell(answer: dict[str, Any]) -> None:
    counts = answer["letters"]
    left = counts.pop("replayed", 0) + len(answer["not_open"]) + sum(answer["without_redis"].values())
    done = ", ".join(f"{count} {action}" for action, count in counts.items()) or "no letter closed"
    _output.print(f"{'would be: ' if answer['dry_run'] else ''}{done}")
    for service, count in answer["without_redis"].items():
        console.print(f"{count} of {service}, whose Redis is not named: --redis {service}=...", markup=False)
    if answer["not_open"]:
        console.print(f"not open: {', '.join(answer['not_open'])}", markup=False)
    if left:
        console.print(f"{left} left as they are", markup=False)
        raise typer.Exit(_LEFT)


def _print_json(answer: dict[str, Any]) -> None:
    typer.echo(json.dumps(answer, ensure_ascii=False, indent=2))
