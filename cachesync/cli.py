"""The command `cachesync`."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import asyncpg
import typer
from rich.console import Console

from cachesync import install as database_side
from cachesync import topics
from cachesync.database import connect
from cachesync.entity import load_entities
from cachesync.errors import CacheSyncError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Coroutine

app = typer.Typer(no_args_is_help=True, add_completion=False, help="Caches that follow the database.")
_console = Console(stderr=True)

Dsn = Annotated[
    str | None,
    typer.Option(
        envvar="CACHESYNC_DSN",
        show_default="PGHOST, PGUSER, ... as for psql",
        help="The database, such as postgresql://owner@host/name.",
    ),
]
EntitiesFile = Annotated[
    Path, typer.Option("--entities", envvar="CACHESYNC_ENTITIES", help="The entities file.")
]


class _Steps:
    """Prints the steps of an installation."""

    def step(self, text: str) -> None:
        _console.print(text, style="dim", markup=False)


@app.command()
def install(dsn: Dsn = None, entities: EntitiesFile = Path("entities.toml")) -> None:
    """Make or upgrade the database side of the declared entities."""

    async def work() -> None:
        declared = load_entities(entities)
        async with _connection(dsn) as connection:
            undeclared = await database_side.install(connection, declared, _Steps())
        for name in undeclared:
            _console.print(f"{name} is installed but not declared; `cachesync uninstall {name}` removes it")
        _console.print(f"installed: {', '.join(declared)}")

    _run(work())


@app.command()
def uninstall(names: Annotated[list[str] | None, typer.Argument()] = None, dsn: Dsn = None) -> None:
    """Take the database side away: of the named entities, or all of it."""

    async def work() -> None:
        async with _connection(dsn) as connection:
            removed = await database_side.uninstall(connection, names or None)
        _console.print(f"uninstalled: {', '.join(removed) or 'nothing was installed'}")

    _run(work())


@app.command("create-topics")
def create_topics(
    bootstrap_servers: Annotated[str, typer.Option(envvar="KAFKA_BOOTSTRAP_SERVERS", help="The brokers.")],
    entities: EntitiesFile = Path("entities.toml"),
    partitions: Annotated[int, typer.Option(min=1, help="Of each entity's topic.")] = 6,
    replication: Annotated[int, typer.Option(min=1, help="Brokers that keep each message.")] = 1,
) -> None:
    """Make the Kafka topics that are missing."""

    async def work() -> None:
        declared = load_entities(entities).values()
        made = topics.create_topics(
            bootstrap_servers, declared, partitions=partitions, replication=replication
        )
        _console.print(f"created: {', '.join(made) or 'none, all are there'}")

    _run(work())


@asynccontextmanager
async def _connection(dsn: str | None) -> AsyncIterator[asyncpg.Connection]:
    connection = await connect(dsn, "cachesync")
    try:
        yield connection
    finally:
        await connection.close()


def _run(work: Coroutine[None, None, None]) -> None:
    try:
        asyncio.run(work)
    except (CacheSyncError, asyncpg.PostgresError, OSError, ValueError) as error:
        _console.print(f"cachesync: {error}", style="red", markup=False)
        raise typer.Exit(1) from error
    except KeyboardInterrupt:
        _console.print("stopped; what is done stays, run the same command again to go on")
        raise typer.Exit(130) from None
