"""The commands `cachesync init` and `cachesync check`, which write and check an entities file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from cachesync.cli.options import Dsn, EntitiesFile, Json, connection, console, print_json, run
from cachesync.cli.rows import printable
from cachesync.entity import read_entities
from cachesync.errors import InstallError
from cachesync.install import checks
from cachesync.install.proposal import ABSENT_TTL, TTL, propose

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cachesync.install.proposal import Proposal, Proposed

_PROBLEMS: Final = 3
_HEADER: Final = f"""\
# Written by `cachesync init`: a section for each table whose rows can be cached. Delete those that no service
# reads by key. Names and paths can be changed before `cachesync install`, which names objects after them.
#
# ttl: how long a row stays cached. A change reaches the caches within milliseconds, whatever the ttl is. It
#     limits how long a row takes up memory that nobody reads anymore. Here it is {TTL} for all tables.
# absent_ttl: how long a cache remembers that there is no row with a key. It is short, because requests for
#     keys that never existed could otherwise fill a cache. Here it is {ABSENT_TTL} for all tables.
# on_change: "refresh", the default, replaces a cached row when it changes. "invalidate" removes it, which is
#     better for large rows that change more often than they are read.
"""


def init(
    dsn: Dsn = None,
    schemas: Annotated[
        list[str] | None,
        typer.Option("--schema", help="Only tables in this schema; can be repeated.", show_default="all"),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option(help="File to write, which must not exist yet.", show_default="standard output"),
    ] = None,
) -> None:
    """Write an entities file for the tables of a database.

    It has a section for each table that can be registered, and a comment for each that cannot, with the
    reason. Nothing in the database is changed.
    """

    async def work() -> None:
        async with connection(dsn) as opened:
            proposal = await propose(opened, schemas or ())
        if not proposal.tables:
            lines = [f"{table}: {reason}" for table, reason in proposal.left_out.items()]
            raise InstallError("\n".join(["no table can be registered", *lines]))
        text = "\n".join(_file(proposal))
        if output is None:
            typer.echo(text, nl=False)
        else:
            with output.open("x", encoding="utf-8") as file:
                file.write(text)
        left_out = len(proposal.left_out)
        seen = " (the end of the file says why)" if left_out else ""
        console.print(f"entities: {len(proposal.tables)}; tables left out: {left_out}{seen}")

    run(work())


def _file(proposal: Proposal) -> Iterator[str]:
    """Yield the lines of the entities file; the last one is empty."""
    yield _HEADER
    for proposed in proposal.tables:
        yield from _section(proposed)
        yield ""
    if proposal.left_out:
        yield "# Left out:"
        for table, reason in proposal.left_out.items():
            yield _comment(f"{table}: {reason}")
        yield ""


def _section(proposed: Proposed) -> Iterator[str]:
    entity, unserved, unique = proposed
    yield f"[{entity.name}]"
    yield f"table = {_string(entity.table)}"
    yield f"key = {_string(entity.key[0]) if len(entity.key) == 1 else _list(entity.key)}"
    if entity.columns is not None:
        yield from map(_comment, unserved)
        yield f"columns = {_list(entity.columns)}"
    if unique:
        lookups = [_string(*names) if len(names) == 1 else _list(names) for names in unique]
        # Each one costs something at every change of a row.
        yield _comment(f"unique = [{', '.join(lookups)}]")
    yield f"ttl = {_string(TTL)}"
    yield f"absent_ttl = {_string(ABSENT_TTL)}"
    yield f"path = {_string(entity.path)}"


def _list(texts: Sequence[str]) -> str:
    return f"[{', '.join(map(_string, texts))}]"


def _string(text: str) -> str:
    """Return a text as a string in TOML, which has the escapes of JSON, but not a bare DEL."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str) -> str:
    return f"# {printable(text)}"


def check(dsn: Dsn = None, entities: EntitiesFile = Path("entities.toml"), *, as_json: Json = False) -> None:
    """Compare an entities file with a database, and list all problems at once.

    The problems are those for which `cachesync install` would refuse the file. Notes say what it would
    change. Nothing in the database is changed.

    Exit status: 0 if there are no problems, 1 if the command could not run, 3 if there are problems.
    """

    async def work() -> None:
        declared, mistakes = read_entities(entities)
        async with connection(dsn) as opened:
            problems, notes = await checks.check(opened, declared)
        # What is declared by mistake would seem to be undeclared.
        notes = [] if mistakes else notes
        if as_json:
            print_json({"problems": [*mistakes, *problems], "notes": notes})
        else:
            for line in (*mistakes, *problems):
                typer.echo(line)
            for note in notes:
                console.print(note)
        if mistakes or problems:
            raise typer.Exit(_PROBLEMS)
        console.print(f"no problems: {', '.join(declared)}")

    run(work())
