"""Checks before an installation: whether each entity can be installed on its table and in this database.

`cachesync install` refuses what they find, `cachesync check` lists it, and `cachesync init` leaves it out.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cachesync.entity import with_canary
from cachesync.errors import InstallError, NotInstalledError
from cachesync.mistakes import did_you_mean
from cachesync.postgres.canonical import KEY_TYPES, refusal
from cachesync.postgres.catalog import VERSION_COLUMN, describe_relation
from cachesync.postgres.lookup import lookup_problems
from cachesync.postgres.registry import problem_of, read_registry
from cachesync.postgres.requirements import unmet_requirements
from cachesync.postgres.statements import ends_body, statement

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    import asyncpg

    from cachesync.entity import Entity
    from cachesync.postgres.catalog import Column, Properties, Relation

# Tables, sequences and indexes in the schema cachesync, in which each entity has a view with its name.
RESERVED_NAMES: Final = frozenset(
    {
        "cache_state",
        "cache_state_pkey",
        "canary",
        "canary_pkey",
        "capture_state",
        "capture_state_pkey",
        "change_log",
        "change_log_pkey",
        "change_log_published",
        "change_log_unpublished",
        "consistency",
        "consistency_pkey",
        "dead_letter_action",
        "dead_letter_action_at",
        "dead_letter_action_end",
        "dead_letter_action_id_seq",
        "dead_letter_action_origin",
        "dead_letter_action_pkey",
        "entity",
        "entity_pkey",
        "entity_schema_name_table_name_key",
        "reconciliation",
        "reconciliation_chunk",
        "reconciliation_chunk_pkey",
        "reconciliation_pkey",
        "row_version",
        "violation",
        "violation_id_seq",
        "violation_pkey",
    }
)
_OWN_SCHEMA: Final = "cachesync"
_FOREIGN_SCHEMA: Final = (
    "the database has a schema 'cachesync' that does not belong to db-cache-sync; rename it"
)


async def check_tables(
    connection: asyncpg.Connection, entities: Mapping[str, Entity]
) -> tuple[dict[str, Relation], list[str]]:
    """Check whether the entities can be registered as declared; nothing is written.

    Args:
        connection: a connection of a user who may read the catalog.
        entities: the declared entities, by name.

    Returns:
        The tables of the entities that can, by the name of the entity; and the problems of the others, one
        line for each.
    """
    relations = {}
    problems = []
    registered = await _registered_tables(connection)
    declared = {entity.schema_and_table: entity.name for entity in entities.values()}
    for entity in entities.values():
        relation = await describe_relation(connection, entity)
        family = await connection.fetch(statement("install/family"), *entity.schema_and_table)
        found = await _problems(connection, entity, relation, family)
        found += _relative_problems(family, declared, registered)
        problems += [f"entity {entity.name!r}, table {entity.table}: {problem}" for problem in found]
        if relation is not None and not found:
            relations[entity.name] = relation
    return relations, problems


async def _problems(
    connection: asyncpg.Connection,
    entity: Entity,
    relation: Relation | None,
    family: Iterable[asyncpg.Record],
) -> list[str]:
    if relation is None:
        tables = [record["name"] for record in await connection.fetch(statement("install/tables"))]
        declared = entity.table.removeprefix("public.")
        return [f"no such table in this database{did_you_mean(declared, tables)}"]
    problems = await table_problems(connection, entity, relation)
    # Not a reason for `cachesync init` to leave the table out: another user can install.
    owner = next((record["other_owner"] for record in family if record["other_owner"] is not None), None)
    if owner is not None:
        problems.append(
            f"its owner is {owner!r}; connect as the owner of the tables, or as a member of that role"
        )
    return problems


async def _registered_tables(connection: asyncpg.Connection) -> dict[tuple[str, str], str]:
    """Return the registered entities by their tables; none if nothing is installed."""
    if await connection.fetchval("SELECT to_regclass('cachesync.entity')") is None:
        return {}
    if await _has_foreign_schema(connection):
        return {}
    return {
        (record["schema_name"], record["table_name"]): record["name"]
        for record in await connection.fetch(statement("install/registered_tables"))
    }


def _relative_problems(
    family: Iterable[asyncpg.Record],
    declared: Mapping[tuple[str, str], str],
    registered: Mapping[tuple[str, str], str],
) -> list[str]:
    """Return the entities on partitions of the table, or on the tables above it, whose rows it shares."""
    problems = []
    for record in family:
        if not record["shares_rows"]:
            continue
        table = (record["schema_name"], record["table_name"])
        relative = f"it shares rows with {'.'.join(table)}"
        if table in declared:
            problems.append(f"{relative}, the table of entity {declared[table]!r}; declare only one of them")
        elif table in registered:
            name = registered[table]
            problems.append(
                f"{relative}, on which entity {name!r} is installed; run `cachesync uninstall {name}` first"
            )
    return problems


async def table_problems(connection: asyncpg.Connection, entity: Entity, relation: Relation) -> list[str]:
    """Return why a table cannot be registered as declared."""
    problems = [
        *_name_problems(entity, relation),
        *_column_problems(entity, relation),
        *unmet_requirements(entity.table, entity.key, relation.properties),
        *_row_security_problems(entity, relation.properties),
        *lookup_problems(
            entity, {column.name: column for column in relation.columns}, relation.properties.unique
        ),
    ]
    if relation.properties.typed and not relation.has_version:
        problems.append(
            f"its columns are those of a type, so it cannot get the column {VERSION_COLUMN!r}; run "
            f"ALTER TABLE {entity.table} NOT OF"
        )
    if relation.has_version:
        versioned = await connection.fetchval(statement("install/versioned"), *entity.schema_and_table)
        if not versioned:
            problems.append(f"it has its own column {VERSION_COLUMN!r}; rename that column first")
    return problems


def _name_problems(entity: Entity, relation: Relation) -> Iterator[str]:
    served = [column for column in relation.columns if column.name in (entity.columns or (column.name,))]
    names = [name for column in served for name in (column.name, column.type_schema, column.base_type)]
    for name in dict.fromkeys((*entity.schema_and_table, *names)):
        if ends_body(name):
            yield f"the name {name!r} of the table, a column or a type could end a function's body; rename it"
    if entity.name in RESERVED_NAMES:
        yield f"the name {entity.name!r} is reserved for a table or index of db-cache-sync; rename the entity"
    if entity.schema_and_table[0] == _OWN_SCHEMA:
        yield "it is one of db-cache-sync's own tables, whose changes it cannot log"


def _row_security_problems(entity: Entity, properties: Properties) -> Iterator[str]:
    """Yield why the policies of the table contradict the declaration."""
    if properties.row_security and entity.row_security is None:
        yield (
            "it has row security, which a cache cannot apply: every client of a service would see every row. "
            'If that is intended, declare row_security = "bypass"; otherwise do not cache the table'
        )
    if entity.row_security == "bypass" and properties.restrictive_policies:
        policies = ", ".join(map(repr, properties.restrictive_policies))
        yield (
            f"its restrictive policy {policies} would hide rows from the services; make it apply only to "
            "other roles (ALTER POLICY ... TO ...)"
        )


def _column_problems(entity: Entity, relation: Relation) -> Iterator[str]:
    names = [column.name for column in relation.columns]
    missing = [name for name in dict.fromkeys((*entity.key, *(entity.columns or ()))) if name not in names]
    if missing:
        nearest = "".join(did_you_mean(name, names) for name in missing)
        yield f"it has no column {', '.join(map(repr, missing))}{nearest}; its columns: {', '.join(names)}"
    for column in relation.columns:
        if column.name in (entity.columns or names):
            yield from unserved(column, relation.properties)
        if column.name in entity.key:
            yield from _key_type_problems(column)


def unserved(column: Column, properties: Properties) -> Iterator[str]:
    """Yield why a column cannot be served, so that `columns` must be declared without it."""
    if column.name in properties.virtual_columns:
        yield (
            f"its generated column {column.name!r} is virtual, so its triggers do not see the value; make it "
            "STORED, or declare columns without it"
        )
    if column.own_cast is not None:
        yield (
            f"its column {column.name!r} is converted to JSON by {column.own_cast}, the cast function of a "
            "type, which would run in the sessions of all writers with the privileges of the owner; drop the "
            "cast, or declare columns without it"
        )


def _key_type_problems(column: Column) -> Iterator[str]:
    if not column.can_be_key:
        yield (
            f"its key column {column.name!r} has the type {column.declared_type}, {refusal(column)}; "
            f"supported types: {', '.join(sorted(KEY_TYPES))}, and enums"
        )
    elif not column.deterministic:
        yield (
            f"its key column {column.name!r} has a nondeterministic collation, so different texts can be the "
            "same key"
        )


async def database_problems(connection: asyncpg.Connection) -> list[str]:
    """Return why nothing can be installed in a database."""
    problems = []
    if await _has_foreign_schema(connection):
        problems.append(_FOREIGN_SCHEMA)
    if await connection.fetchval("SELECT current_setting('server_encoding')") == "SQL_ASCII":
        problems.append(
            "the database has the encoding SQL_ASCII, so its texts can be bytes of any encoding; dump it and "
            "restore it into a database with the encoding UTF8"
        )
    return problems


async def refuse_foreign_schema(connection: asyncpg.Connection) -> None:
    """Reject a database that has a schema `cachesync` of another program.

    Raises:
        InstallError: the schema belongs to another program.
    """
    if await _has_foreign_schema(connection):
        raise InstallError(_FOREIGN_SCHEMA)


async def _has_foreign_schema(connection: asyncpg.Connection) -> bool:
    foreign: bool = await connection.fetchval(statement("install/foreign_schema"))
    return foreign


def moved_entities(registered: list[asyncpg.Record], entities: Mapping[str, Entity]) -> Iterator[str]:
    """Yield each entity that is installed on another table or key, and must not be moved silently.

    A renamed table is still the same table, and a dropped table is no obstacle.

    Args:
        registered: the result of `registered.sql`.
        entities: the declared entities, by name.
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
                yield (
                    f"entity {entity.name!r}: {record['name']!r} is installed on {'.'.join(table)} with key "
                    f"{', '.join(map(repr, key))}; run `cachesync uninstall {record['name']}` first"
                )


def refuse(problems: list[str]) -> None:
    """Reject an installation if there are problems.

    Raises:
        InstallError: there are; the text has one line for each.
    """
    if problems:
        raise InstallError("\n".join(problems))


async def check(
    connection: asyncpg.Connection, entities: Mapping[str, Entity]
) -> tuple[list[str], list[str]]:
    """Compare the entities with a database; nothing is written.

    Args:
        connection: a connection of the user who will install.
        entities: the declared entities, by name.

    Returns:
        Everything for which `cachesync install` would refuse them; and what it would change.

    Raises:
        DeclarationError: an entity has the name of the live check's own.
    """
    declared = with_canary(entities)
    _, problems = await check_tables(connection, entities)
    if unfit := await database_problems(connection):
        return problems + unfit, []
    try:
        registry = await read_registry(connection)
    except NotInstalledError as error:
        return problems, [str(error)]
    if discarding := await connection.fetchval(statement("install/discarding")):
        problems.append(f"{discarding} of cachesync.change_log can discard changes; drop it first")
    problems += moved_entities(await connection.fetch(statement("install/registered")), entities)
    notes = []
    for name, entity in entities.items():
        registration = registry.get(name)
        problem = problem_of(entity, registration)
        # That of a unique index is among those of the table.
        if problem is not None and (registration is None or registration.problem is not None):
            notes.append(problem)
    return problems, notes + [undeclared(name) for name in registry if name not in declared]


def undeclared(name: str) -> str:
    """Return what to say of an entity that is installed but no longer declared."""
    return f"{name} is installed but not declared; `cachesync uninstall {name}` removes it"
