"""Checks before an installation: whether each entity can be installed on its table and in this database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cachesync.errors import InstallError
from cachesync.mistakes import did_you_mean
from cachesync.postgres.canonical import KEY_TYPES, refusal
from cachesync.postgres.catalog import VERSION_COLUMN, describe_relation
from cachesync.postgres.requirements import unmet_requirement
from cachesync.postgres.statements import statement

if TYPE_CHECKING:
    from collections.abc import Mapping

    import asyncpg

    from cachesync.entity import Entity
    from cachesync.postgres.catalog import Properties, Relation

# Other relations in the schema cachesync, in which each entity has a view with its name.
_RESERVED_NAMES: Final = frozenset(
    {
        "change_log",
        "dead_letter_action",
        "entity",
        "reconciliation",
        "reconciliation_chunk",
        "row_version",
    }
)


async def checked_relation(connection: asyncpg.Connection, entity: Entity) -> Relation:
    """Return the table of an entity as the catalog describes it.

    Raises:
        InstallError: there is no such table, or it cannot be registered as declared.
    """
    relation = await describe_relation(connection, entity)
    if relation is None:
        tables = [record["name"] for record in await connection.fetch(statement("install/tables"))]
        declared = entity.table.removeprefix("public.")
        problem: str | None = f"no such table in this database{did_you_mean(declared, tables)}"
    else:
        problem = _table_problem(entity, relation)
    if relation is not None and problem is None and relation.has_version:
        versioned = await connection.fetchval(statement("install/versioned"), *entity.schema_and_table)
        if not versioned:
            problem = f"it has its own column {VERSION_COLUMN!r}; rename that column first"
    if problem is not None or relation is None:
        message = f"entity {entity.name!r}, table {entity.table}: {problem}"
        raise InstallError(message)
    return relation


def _table_problem(entity: Entity, relation: Relation) -> str | None:
    """Return why a table cannot be registered; None if it can."""
    if entity.name in _RESERVED_NAMES:
        return f"the name {entity.name!r} is reserved for db-cache-sync's own tables; rename the entity"
    return (
        _column_problem(entity, relation)
        or unmet_requirement(entity.table, entity.key, relation.properties)
        or _row_security_problem(entity, relation.properties)
    )


def _row_security_problem(entity: Entity, properties: Properties) -> str | None:
    """Return why the policies of the table contradict the declaration; None if they do not."""
    if properties.row_security and entity.row_security is None:
        return (
            "it has row security, which a cache cannot apply: every client of a service would see every row. "
            'If that is intended, declare row_security = "bypass"; otherwise do not cache the table'
        )
    if entity.row_security == "bypass" and properties.restrictive_policies:
        policies = ", ".join(map(repr, properties.restrictive_policies))
        return (
            f"its restrictive policy {policies} would hide rows from the services; make it apply only to "
            "other roles (ALTER POLICY ... TO ...)"
        )
    return None


def _column_problem(entity: Entity, relation: Relation) -> str | None:
    names = [column.name for column in relation.columns]
    missing = [name for name in dict.fromkeys((*entity.key, *(entity.columns or ()))) if name not in names]
    if missing:
        nearest = "".join(did_you_mean(name, names) for name in missing)
        return f"it has no column {', '.join(map(repr, missing))}{nearest}; its columns: {', '.join(names)}"
    virtual = [name for name in entity.columns or names if name in relation.properties.virtual_columns]
    if virtual:
        return (
            f"its generated column {', '.join(map(repr, virtual))} is virtual, so its triggers do not see "
            "the value; make it STORED, or declare columns without it"
        )
    for column in relation.columns:
        if column.own_cast is not None and column.name in (entity.columns or names):
            return (
                f"its column {column.name!r} is converted to JSON by {column.own_cast}, the cast function "
                "of a type, which would run in the sessions of all writers with the privileges of the owner; "
                "drop the cast, or declare columns without it"
            )
    for column in relation.columns:
        if column.name in entity.key and not column.can_be_key:
            return (
                f"its key column {column.name!r} has the type {column.declared_type}, {refusal(column)}; "
                f"supported types: {', '.join(sorted(KEY_TYPES))}, and enums"
            )
        if column.name in entity.key and not column.deterministic:
            return (
                f"its key column {column.name!r} has a nondeterministic collation, so different texts can be "
                "the same key"
            )
    return None


async def refuse_foreign_schema(connection: asyncpg.Connection) -> None:
    """Reject a database that has a schema `cachesync` of another program.

    Raises:
        InstallError: the schema belongs to another program.
    """
    if await connection.fetchval(statement("install/foreign_schema")):
        message = "the database has a schema 'cachesync' that does not belong to db-cache-sync; rename it"
        raise InstallError(message)


async def refuse_encoding(connection: asyncpg.Connection) -> None:
    """Reject a database that stores bytes of no known encoding, which cannot be sent as text.

    Raises:
        InstallError: the encoding of the database is SQL_ASCII.
    """
    if await connection.fetchval("SELECT current_setting('server_encoding')") == "SQL_ASCII":
        message = (
            "the database has the encoding SQL_ASCII, so its texts can be bytes of any encoding; dump it and "
            "restore it into a database with the encoding UTF8"
        )
        raise InstallError(message)


def refuse_moved_entities(registered: list[asyncpg.Record], entities: Mapping[str, Entity]) -> None:
    """Refuse to install an entity on another table or key.

    A renamed table is still the same table, and a dropped table is no obstacle.

    Args:
        registered: the result of `registered.sql`.
        entities: the declared entities, by name.

    Raises:
        InstallError: an entity is installed on another table, or with another key.
    """
    for record in registered:
        if record["table_name"] is None:
            continue
        table = (record["schema_name"], record["table_name"])
        for entity in entities.values():
            same_name = entity.name == record["name"]
            same_table = entity.schema_and_table == table
            key = tuple(record["key_columns"])
            if same_name != same_table or (same_name and entity.key != key):
                message = (
                    f"entity {entity.name!r}: {record['name']!r} is installed on {'.'.join(table)} with key "
                    f"{', '.join(map(repr, key))}; run `cachesync uninstall {record['name']}` first"
                )
                raise InstallError(message)
