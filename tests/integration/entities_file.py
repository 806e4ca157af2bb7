"""Entities of a test's own tables."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg

from cachesync.entity import load_entities
from cachesync.install.installer import install
from local.silent import Silent

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from cachesync.entity import Entity


async def install_tables(
    admin: asyncpg.Connection, tables: str, names: Iterable[str], folder: Path
) -> tuple[Path, dict[str, Entity]]:
    """Create tables with the key `id`, declare an entity for each, and install them.

    Args:
        admin: a connection of the owner.
        tables: the statements that create the tables.
        names: their names, which are also those of the entities.
        folder: where to write the entities file.

    Returns:
        The entities file, and the entities in it.
    """
    file = folder / "entities.toml"
    file.write_text(
        "".join(
            f'[{name}]\ntable = "{name}"\nkey = "id"\nttl = "1h"\nabsent_ttl = "1m"\npath = "/{name}s"\n'
            for name in names
        )
    )
    entities = load_entities(file)
    await admin.execute(tables)
    await install(admin, entities, Silent())
    return file, entities


def install_tables_once(dsn: str, tables: str, names: Iterable[str], folder: Path) -> Path:
    """Do the same in a database that is to be copied, and return the entities file."""

    async def prepare() -> Path:
        connection = await asyncpg.connect(dsn)
        try:
            file, _ = await install_tables(connection, tables, names, folder)
        finally:
            await connection.close()
        return file

    return asyncio.run(prepare())
