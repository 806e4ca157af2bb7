"""The command `cachesync`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Final

import typer

from cachesync import __version__
from cachesync.cli.dead_letters import dead_letters
from cachesync.cli.doctor import doctor
from cachesync.cli.entities import check, init
from cachesync.cli.errors import OneLineErrors
from cachesync.cli.options import (
    BootstrapServers,
    Dsn,
    EntitiesFile,
    Json,
    connection,
    console,
    kafka_client,
    print_json,
    run,
)
from cachesync.cli.overview import show, status, watch
from cachesync.cli.processes import live_check, relay, stream
from cachesync.cli.reconcile import reconcile
from cachesync.cli.warm import warm
from cachesync.entity import load_entities
from cachesync.install import installer
from cachesync.install.checks import undeclared
from cachesync.kafka import topics

# librdkafka's limits, beyond which it rejects a topic without a reason.
_MAX_PARTITIONS: Final = 100_000
_MAX_REPLICATION: Final = 10_000

# The default markup keeps the line breaks of the docstrings; Markdown joins the lines of a paragraph.
app = typer.Typer(
    cls=OneLineErrors,
    no_args_is_help=True,
    rich_markup_mode="markdown",
    pretty_exceptions_enable=False,
)
app.command()(init)
app.command()(check)
app.command()(doctor)
app.command()(warm)
app.command()(status)
app.command()(show)
app.command()(watch)
app.command()(reconcile)
app.command()(stream)
app.command()(relay)
app.command("live-check")(live_check)
app.add_typer(dead_letters, name="dead-letters")


def _print_version(requested: bool) -> None:  # noqa: FBT001 - typer calls it by position
    if requested:
        typer.echo(f"cachesync {__version__}")
        raise typer.Exit


@app.callback()
def main(
    *,
    version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Keep Redis caches consistent with PostgreSQL."""


class _Steps:
    """Prints the steps of an installation."""

    def step(self, text: str) -> None:
        console.print(text, style="dim")


@app.command()
def install(
    dsn: Dsn = None,
    entities: EntitiesFile = Path("entities.toml"),
    *,
    revoke_temporary: Annotated[
        bool,
        typer.Option(
            "--revoke-temporary",
            help="Also revoke TEMPORARY on the database from PUBLIC, so that only users to whom you grant it "
            "can create temporary objects.",
        ),
    ] = False,
    as_json: Json = False,
) -> None:
    """Install or upgrade the database objects of the declared entities."""

    async def work() -> None:
        declared = load_entities(entities)
        async with connection(dsn) as opened:
            others = await installer.install(opened, declared, _Steps(), revoke_temporary=revoke_temporary)
        for name in others:
            console.print(undeclared(name))
        console.print(f"installed: {', '.join(declared)}")
        if as_json:
            print_json({"installed": list(declared), "undeclared": list(others)})

    run(work())


@app.command()
def uninstall(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="ENTITY", help="Entities to remove; all if omitted.")
    ] = None,
    dsn: Dsn = None,
    *,
    as_json: Json = False,
) -> None:
    """Remove the database objects of the given entities, or all of them."""

    async def work() -> None:
        async with connection(dsn) as opened:
            removed = await installer.uninstall(opened, names or None)
        console.print(f"uninstalled: {', '.join(removed) or 'nothing was installed'}")
        if as_json:
            print_json({"uninstalled": list(removed)})

    run(work())


@app.command("create-topics")
def create_topics(
    bootstrap_servers: BootstrapServers,
    entities: EntitiesFile = Path("entities.toml"),
    partitions: Annotated[
        int,
        typer.Option(
            min=1,
            max=_MAX_PARTITIONS,
            help="Partitions of each entity's topic: as many as a cache has consumers. More are slower.",
        ),
    ] = 1,
    replication: Annotated[
        int, typer.Option(min=1, max=_MAX_REPLICATION, help="Number of brokers that store each message.")
    ] = 1,
    *,
    as_json: Json = False,
) -> None:
    """Create the missing Kafka topics."""

    async def work() -> None:
        declared = load_entities(entities).values()
        created = topics.create_topics(
            kafka_client(bootstrap_servers), declared, partitions=partitions, replication=replication
        )
        console.print(f"created: {', '.join(created) or 'none; all topics already exist'}")
        if as_json:
            print_json({"created": created})

    run(work())
