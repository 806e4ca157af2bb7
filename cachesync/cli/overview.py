"""The commands `cachesync status`, `show` and `watch`."""

from __future__ import annotations

import asyncio
import sys
import termios
import tty
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from cachesync.cli.options import (
    BootstrapServers,
    Dsn,
    EntitiesFile,
    Groups,
    Json,
    RedisUrls,
    consumer_groups,
    kafka_settings,
    redis_clients,
    run,
)
from cachesync.cli.rows import print_rows, printable
from cachesync.entity import load_entities
from cachesync.errors import SettingsError
from cachesync.overview.overview import Overview
from cachesync.overview.words import ago, counted, duration

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from cachesync.overview.models import CacheStatus, Consistency, KeyReport, Status

_REDIS_SECONDS: Final = 1.0
_CRITICAL: Final = 3
_WARNING: Final = 4
_MIN_SECONDS: Final = 0.5
_SHOWN_CHARACTERS: Final = 1000
_STYLES: Final = {
    "critical": "bold red",
    "warning": "yellow",
    "wrong": "bold red",
    "unknown": "yellow",
    "on its way": "yellow",
    "not cached": "",
    "right": "green",
}
# Of `HORIZONS`: one second.
_SECOND: Final = 1


def status(
    *,
    bootstrap_servers: BootstrapServers,
    as_json: Json = False,
    groups: Groups = None,
    redis: RedisUrls = None,
    dsn: Dsn = None,
    entities: EntitiesFile = Path("entities.toml"),
) -> None:
    """Show whether the caches are right, how far behind they are, and what to do.

    Servers that do not respond are named, and the rest is shown.

    Exit status: 0 if nothing is wrong, 1 if the command could not run, 3 if something is critical, 4 if there
    are only warnings.
    """

    async def work() -> None:
        async with _overview(dsn, bootstrap_servers, redis, groups, entities) as overview:
            taken = await overview.status()
        if as_json:
            typer.echo(taken.model_dump_json(indent=2))
        else:
            _print_status(taken)
        if taken.problems:
            critical = any(problem.severity == "critical" for problem in taken.problems)
            raise typer.Exit(_CRITICAL if critical else _WARNING)

    run(work())


def show(
    entity: Annotated[str, typer.Argument(metavar="ENTITY", help="The entity, such as student.")],
    key: Annotated[
        list[str],
        typer.Argument(
            metavar="KEY...",
            help="The key, in any spelling; one of several columns also as its parts: 7 2. After --, it can "
            "begin with a hyphen.",
        ),
    ],
    *,
    bootstrap_servers: BootstrapServers,
    as_json: Json = False,
    groups: Groups = None,
    redis: RedisUrls = None,
    dsn: Dsn = None,
    entities: EntitiesFile = Path("entities.toml"),
) -> None:
    """Show one row, what each cache holds of it, and if a cache is wrong, why, and what to do.

    Exit status: 0 if no cache is wrong, 1 if the command could not run, 3 if one is wrong, 4 if one could not
    be looked at.
    """

    async def work() -> None:
        async with _overview(dsn, bootstrap_servers, redis, groups, entities) as overview:
            report = await overview.show(entity, key[0] if len(key) == 1 else key)
        if as_json:
            typer.echo(report.model_dump_json(indent=2))
        else:
            _print_report(report)
        if report.assessment in {"wrong", "unknown"}:
            raise typer.Exit(_CRITICAL if report.assessment == "wrong" else _WARNING)

    run(work())


def watch(
    *,
    bootstrap_servers: BootstrapServers,
    interval: Annotated[float, typer.Option(min=_MIN_SECONDS, help="Seconds between two looks.")] = 2.0,
    groups: Groups = None,
    redis: RedisUrls = None,
    dsn: Dsn = None,
    entities: EntitiesFile = Path("entities.toml"),
) -> None:
    """Show the status again and again, until q or Ctrl-C; in a pipe, one line for each cache and look.

    Exit status: 0 after q, 130 after Ctrl-C, 1 if the command could not run.
    """

    async def work() -> None:
        output = _output()
        async with _overview(dsn, bootstrap_servers, redis, groups, entities) as overview:
            if not output.is_terminal:
                while True:
                    for line in _lines(await overview.status()):
                        typer.echo(line)
                    await asyncio.sleep(interval)
            ended = asyncio.Event()
            with Live(console=output, screen=True, auto_refresh=False) as live, _ending_at_q(ended):
                while not ended.is_set():
                    live.update(_view(await overview.status()), refresh=True)
                    try:
                        await asyncio.wait_for(ended.wait(), interval)
                    except TimeoutError:
                        continue

    run(work())


@asynccontextmanager
async def _overview(
    dsn: str | None, bootstrap_servers: str, redis: list[str] | None, groups: list[str] | None, entities: Path
) -> AsyncIterator[Overview]:
    declared = load_entities(entities)
    kafka = kafka_settings(bootstrap_servers)
    with redis_clients(redis, _REDIS_SECONDS) as clients:
        if not clients:
            message = "no Redis given; add one for each service, such as --redis sb=redis://host:6379/0"
            raise SettingsError(message)
        overview = Overview(dsn, kafka, clients, declared, consumer_groups(groups, clients))
        try:
            yield overview
        finally:
            overview.close()


@contextmanager
def _ending_at_q(ended: asyncio.Event) -> Iterator[None]:
    """Set the event when q is typed; the terminal passes keys on as they are typed."""
    if not sys.stdin.isatty():
        yield
        return
    terminal = sys.stdin.fileno()
    before = termios.tcgetattr(terminal)
    loop = asyncio.get_running_loop()

    def read() -> None:
        if sys.stdin.read(1) in {"q", "Q", ""}:
            ended.set()

    tty.setcbreak(terminal)
    loop.add_reader(terminal, read)
    try:
        yield
    finally:
        loop.remove_reader(terminal)
        termios.tcsetattr(terminal, termios.TCSADRAIN, before)


def _output() -> Console:
    return Console(highlight=False, markup=False)


def _print_status(taken: Status) -> None:
    output = _output()
    for text in _problem_texts(taken):
        output.print(text, soft_wrap=True)
    print_rows(_entity_rows(taken), title="cache")
    for line in _facts(taken):
        output.print(line, soft_wrap=True)


def _view(taken: Status) -> Group:
    """Return the status for one screen."""
    rows = _entity_rows(taken)
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in rows[0]:
        table.add_column(name, no_wrap=True)
    for row in rows:
        table.add_row(*(printable(value) for value in row.values()))
    title = Text(f"{taken.taken_at:%Y-%m-%d %H:%M:%S} UTC   q ends", style="dim")
    return Group(title, *_problem_texts(taken), Text(), table, Text(), *map(Text, _facts(taken)))


def _problem_texts(taken: Status) -> list[Text]:
    if not taken.problems:
        return [Text("Nothing is wrong.", style="green")]
    return [
        Text.assemble(
            (one.severity, _STYLES[one.severity]), f"  {printable(one.text)} {printable(one.action)}"
        )
        for one in taken.problems
    ]


def _entity_rows(taken: Status) -> list[dict[str, Any]]:
    return [
        {
            "cache": cache.service,
            "entity": one.entity,
            "lag p50": _seconds(one.hour.lag_p50_s),
            "lag p99": _seconds(one.hour.lag_p99_s),
            "nines": None if one.day is None else _nines(one.day),
            "hits": None if one.hour.hit_rate is None else f"{one.hour.hit_rate:.1%}",
            "entries": _number(one.entries),
            "waiting": _number(one.consumer_lag),
            "letters": _number(one.open_letters),
            "parked": _number(one.parked_letters),
        }
        for cache in taken.caches
        for one in cache.entities
    ]


def _facts(taken: Status) -> Iterator[str]:
    """Yield a line for each cache, the backlog, the letters, and each last reconciliation."""
    for cache in taken.caches:
        yield _cache_line(cache)
    if taken.backlog is not None:
        oldest = f", the oldest for {duration(taken.backlog.age_s)}" if taken.backlog.changes else ""
        yield (
            f"backlog: {counted(taken.backlog.changes, 'change')}{oldest}; "
            f"{counted(taken.backlog.relays, 'relay')} connected"
        )
    if taken.letters is not None:
        yield f"letters: {taken.letters.open} open, {taken.letters.due} due, {taken.letters.parked} parked"
    newest = {one.service: one for one in reversed(taken.reconciliations or ())}
    for service, one in newest.items():
        found = ", ".join(f"{count:,} {kind.replace('_', ' ')}" for kind, count in one.found.items())
        dry = " (dry run)" if one.dry_run else ""
        yield (
            f"reconciled: {service} {ago(taken.taken_at, one.started_at)}, {one.mode}{dry}, "
            f"{one.outcome or 'not finished'}: {counted(one.examined, 'slot')}{', ' * bool(found)}{found}"
            f"{f', {one.link}' if one.link else ''}"
        )
    if taken.live_check_at is not None:
        yield f"live check: looked {ago(taken.taken_at, taken.live_check_at)}"


def _cache_line(cache: CacheStatus) -> str:
    parts = [f"Redis {cache.redis}"]
    if cache.keys is not None:
        parts.append(counted(cache.keys, "key"))
    if cache.memory_bytes is not None:
        parts.append(f"{cache.memory_bytes / 2**20:,.1f} MiB")
    if cache.consumers is not None:
        hosts = ", ".join(sorted({printable(one.host) for one in cache.consumers}))
        parts.append(f"{counted(len(cache.consumers), 'consumer')}{f' at {hosts}' if hosts else ''}")
        parts.append(f"{counted(cache.consumer_lag or 0, 'message')} waiting")
    if cache.oldest_unseen is not None:
        parts.append(f"behind by {duration(cache.oldest_unseen.age_s)}")
    return f"{cache.service}: {', '.join(parts)}"


def _lines(taken: Status) -> Iterator[str]:
    at = f"{taken.taken_at:%Y-%m-%dT%H:%M:%SZ}"
    for cache in taken.caches:
        problems = [printable(one.text) for one in taken.problems if one.service in {None, cache.service}]
        yield f"{at} {_cache_line(cache)}{'; ' if problems else ''}{' '.join(problems)}"


def _print_report(report: KeyReport) -> None:
    output = _output()
    output.print(Text(printable(report.verdict), style=_STYLES[report.assessment]), soft_wrap=True)
    row = "no row"
    if report.row is not None:
        row = f"version {report.row.version}: {printable(_shortened(report.row.payload))}"
    output.print(f"{report.entity} {printable(report.key)}, {row}", soft_wrap=True)
    print_rows(
        [
            {
                "cache": one.service,
                "slot": one.kind,
                "version": one.version,
                "ttl": None if one.ttl_s is None else duration(one.ttl_s),
                "waiting": _number(one.consumer_lag),
                "is": one.assessment,
                "payload": _shortened(one.payload),
            }
            for one in report.caches
        ],
        title="cache",
    )
    print_rows(
        [
            {
                "change": one.version,
                "operation": one.operation,
                "by": one.source,
                "made": ago(report.taken_at, one.changed_at),
                "published": "no" if one.published_at is None else ago(report.taken_at, one.published_at),
            }
            for one in report.changes
        ],
        title="change",
    )
    print_rows(
        [{"letter": one.letter, "cache": one.service, "error": one.error} for one in report.letters or ()],
        title="letter",
    )
    print_rows(
        [
            {
                "seen wrong": ago(report.taken_at, one.noticed_at),
                "cache": one.service,
                "kind": one.kind,
                "version": one.version,
                "right again": "no" if one.seen_at is None else ago(report.taken_at, one.seen_at),
            }
            for one in report.violations or ()
        ],
        title="seen wrong",
    )
    for part, reason in report.unavailable.items():
        output.print(f"not known: {part}: {printable(reason)}", style="yellow", soft_wrap=True)


def _shortened(payload: str | None) -> str | None:
    if payload is None or len(payload) <= _SHOWN_CHARACTERS:
        return payload
    return f"{payload[:_SHOWN_CHARACTERS]}... ({len(payload):,} characters, which --json shows)"


def _seconds(seconds: float | None) -> str | None:
    if seconds is None:
        return None
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _nines(seen: Consistency) -> str | None:
    nines = seen.nines[_SECOND]
    return None if nines is None else f"{nines:.1f}"


def _number(number: int | None) -> str | None:
    return None if number is None else f"{number:,}"
