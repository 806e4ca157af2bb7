"""The commands `cachesync dead-letters`."""

from __future__ import annotations

from getpass import getuser
from pathlib import Path
from platform import node
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from pydantic import ValidationError
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from cachesync.cli.options import (
    BootstrapServers,
    Dsn,
    EntitiesFile,
    Json,
    RedisUrls,
    console,
    failed,
    kafka_client,
    print_json,
    redis_clients,
    run,
)
from cachesync.cli.rows import print_rows, printable
from cachesync.dead_letters.request import (
    MAX_LISTED,
    MAX_RATE,
    MIN_RATE,
    LetterTopic,
    Request,
    RequestAction,
)
from cachesync.dead_letters.service import DeadLetterService
from cachesync.entity import load_entities

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachesync.dead_letters.audit import AuditEntry
    from cachesync.slots.clients import BlockingRedis

dead_letters: Final = typer.Typer(
    no_args_is_help=True, help="Inspect, retry and close messages that could not be applied to a cache."
)

_NOT_CLOSED: Final = 3

Letters = Annotated[
    list[str] | None,
    typer.Argument(metavar="LETTER", help="Names of letters, such as parking-lot:0:17."),
]
Topic = Annotated[
    LetterTopic | None, typer.Option(help="Only letters in this topic.", show_default="both topics")
]
Services = Annotated[
    list[str] | None, typer.Option("--service", help="Only letters of this service's cache; can be repeated.")
]
Entities = Annotated[
    list[str] | None, typer.Option("--entity", help="Only letters of this entity; can be repeated.")
]
Keys = Annotated[
    list[str] | None, typer.Option("--key", help="Only letters of the row with this key; can be repeated.")
]
All = Annotated[bool, typer.Option("--all", help="Select every letter if no filter is given.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Print what would be done without doing it.")]


@dead_letters.command("list")
def list_letters(
    *,
    bootstrap_servers: BootstrapServers,
    letters: Letters = None,
    topic: Topic = None,
    services: Services = None,
    entities: Entities = None,
    keys: Keys = None,
    limit: Annotated[
        int, typer.Option(min=1, max=MAX_LISTED, help="Maximum number of letters to return.")
    ] = 100,
    as_json: Json = False,
    dsn: Dsn = None,
) -> None:
    """List the open letters, including parked ones."""
    request = _request(
        RequestAction.LIST, letters, topic=topic, services=services, entities=entities, keys=keys, limit=limit
    )
    answer = _carry_out(request, dsn, bootstrap_servers)
    if as_json:
        return print_json(answer)
    rows = [
        {
            **{name: letter[name] for name in ("letter", "service", "entity", "key", "version", "stage")},
            "attempt": f"{letter['attempt']}/{letter['maximum']}",
            "not before": f"{letter['not_before'][:19]}Z",
            "error": letter["error"],
        }
        for letter in answer["letters"]
    ]
    print_rows(rows, title="letter")
    shown = f", {len(rows)} shown; --limit shows more" if answer["open"] > len(rows) else ""
    console.print(f"{answer['open']} open{shown}")
    return None


@dead_letters.command()
def show(
    letter: Annotated[
        str, typer.Argument(metavar="LETTER", help="Name of the letter, such as parking-lot:0:17.")
    ],
    *,
    bootstrap_servers: BootstrapServers,
    dsn: Dsn = None,
) -> None:
    """Print one letter with its headers, its value, and the actions on its message, as JSON."""
    print_json(_carry_out(_request(RequestAction.SHOW, [letter]), dsn, bootstrap_servers))


@dead_letters.command()
def stats(*, bootstrap_servers: BootstrapServers, as_json: Json = False, dsn: Dsn = None) -> None:
    """Count the open letters and the actions of the last day."""
    answer = _carry_out(_request(RequestAction.STATS, None), dsn, bootstrap_servers)
    if as_json:
        return print_json(answer)
    columns = ("topic", "service", "entity", "stage", "letters", "due", "first failed at")
    print_rows([{name: group[name.replace(" ", "_")] for name in columns} for group in answer["open"]])
    for done in answer["last_day"]:
        typer.echo(f"last day: {done['letters']} {done['action']} by {done['actor']}")
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
    rate: Annotated[
        float | None, typer.Option(min=MIN_RATE, max=MAX_RATE, help="Maximum number of letters per second.")
    ] = None,
    redis: RedisUrls = None,
    as_json: Json = False,
    dsn: Dsn = None,
    entities_file: EntitiesFile = Path("entities.toml"),
) -> None:
    """Retry letters now, including parked ones: apply each letter's current row to the cache.

    Letters that fail stay as they are. Exit status: 0 if all selected letters are closed, 1 if the command
    could not run, 3 if some remain open.
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
    _print_result(_carry_out(request, dsn, bootstrap_servers, redis, entities_file), as_json=as_json)


@dead_letters.command()
def discard(
    *,
    bootstrap_servers: BootstrapServers,
    reason: Annotated[str, typer.Option(help="The reason, which is stored in the audit table.")],
    letters: Letters = None,
    topic: Topic = None,
    services: Services = None,
    entities: Entities = None,
    keys: Keys = None,
    everything: All = False,
    dry_run: DryRun = False,
    as_json: Json = False,
    dsn: Dsn = None,
) -> None:
    """Close letters without retrying them. Reconciliation still repairs the slots that they leave wrong.

    Exit status: 0 if all selected letters are closed, 1 if the command could not run, 3 if some remain open.
    """
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
    _print_result(_carry_out(request, dsn, bootstrap_servers), as_json=as_json)


def _request(action: RequestAction, letters: list[str] | None, **options: Any) -> Request:
    given = {name: value for name, value in options.items() if value is not None}
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
    """Return the result of a request; exit if it fails."""
    answer: dict[str, Any] = {}

    async def work() -> None:
        progress = _ProgressBar(shown=request.action in {RequestAction.REPLAY, RequestAction.DISCARD})
        with redis_clients(redis) as clients, progress.display:
            service = _service(dsn, bootstrap_servers, clients, entities_file)
            answer.update(await service.carry_out(request, progress))

    run(work())
    return answer


def _service(
    dsn: str | None, bootstrap_servers: str, clients: Mapping[str, BlockingRedis], entities_file: Path | None
) -> DeadLetterService:
    entities = {} if entities_file is None else load_entities(entities_file)
    return DeadLetterService(dsn, kafka_client(bootstrap_servers), clients, entities, f"{getuser()}@{node()}")


class _ProgressBar:
    """Shows a command's progress, and each letter that it could not close.

    Attributes:
        display: shows the progress bar as a context manager.
    """

    def __init__(self, *, shown: bool) -> None:
        self.display = Progress(
            TextColumn("letters read"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=console,
            disable=not shown,
        )
        self._bar = self.display.add_task("", total=None)

    def on_start(self, messages: int) -> None:
        self.display.update(self._bar, total=messages)

    def on_progress(self, messages: int) -> None:
        self.display.advance(self._bar, messages)

    def on_action(self, entry: AuditEntry) -> None:
        if not entry.action.closes:
            console.print(f"{entry.letter.id} failed: {printable(entry.error)}")


def _print_result(answer: dict[str, Any], *, as_json: bool) -> None:
    """Print what was done and what was not; exit with status 3 if letters remain open."""
    if as_json:
        print_json(answer)
    counts = dict(answer["letters"])
    remaining = counts.pop("replayed", 0) + len(answer["not_open"]) + sum(answer["without_redis"].values())
    done = ", ".join(f"{count} {action}" for action, count in counts.items()) or "no letters closed"
    if not as_json:
        typer.echo(f"{'dry run: ' if answer['dry_run'] else ''}{done}")
    for service, count in answer["without_redis"].items():
        console.print(f"{count} skipped: no Redis given for {service}; add --redis {service}=URL")
    if answer["not_open"]:
        console.print(f"no such open letter: {', '.join(answer['not_open'])}")
    if remaining:
        console.print(f"{remaining} not closed")
        raise typer.Exit(_NOT_CLOSED)
