"""The database side: made, upgraded and taken away."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, Protocol

import asyncpg

from cachesync.catalogue import KEY_TYPES, VERSION_COLUMN, Relation, describe_relation, fingerprint
from cachesync.errors import InstallError
from cachesync.statements import identifier, literal, statement

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from cachesync.entity import Entity

# Long enough for a transaction in flight to end, short enough that those who queue behind it hardly wait.
_LOCK_TIMEOUT: Final = "2s"
_LOCK_ATTEMPTS: Final = 15
_BATCH_ROWS: Final = 5000
# Any number, the same for all installs: two at once would stand in each other's way.
_ADVISORY_LOCK: Final = 0x64_62_63_73

_KINDS: Final = {
    "f": "a foreign table",
    "m": "a materialized view",
    "p": "a partitioned table",
    "v": "a view",
}


class Progress(Protocol):
    """Told what is being done."""

    def step(self, text: str) -> None:
        """A step begins."""

    def rows(self, done: int, total: int) -> None:
        """So many rows of about so many have their version."""


async def install(
    connection: asyncpg.Connection, entities: Mapping[str, Entity], progress: Progress
) -> tuple[str, ...]:
    """Make the database side of the entities, or bring it up to date; safe to repeat.

    Tables may hold rows and be in use: locks are brief, and rows get their first version in batches.

    Args:
        connection: one of a user who owns the tables and may create a schema and a role.
        entities: the declared entities.
        progress: told of each step.

    Returns:
        The names of entities that are installed although they are declared no more.

    Raises:
        InstallError: an entity does not fit its table, or the user lacks a right.
    """
    await connection.execute("SELECT pg_advisory_lock($1)", _ADVISORY_LOCK)
    try:
        relations = {entity.name: await _checked_relation(connection, entity) for entity in entities.values()}
        await _refuse_foreign_schema(connection)
        progress.step("schema cachesync")
        await _execute(connection, statement("schema"))
        await _refuse_moved_entities(connection, entities)
        for entity in entities.values():
            await _install_entity(connection, entity, relations[entity.name], progress)
        names = await connection.fetch("SELECT name FROM cachesync.entity ORDER BY name")
    except asyncpg.InsufficientPrivilegeError as error:
        message = (
            f"{error}; connect as the owner of the tables, with the right to create a schema in the "
            "database (CREATE ON DATABASE) and the role cachesync_service (CREATEROLE)"
        )
        raise InstallError(message) from error
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _ADVISORY_LOCK)
    return tuple(record["name"] for record in names if record["name"] not in entities)


async def uninstall(connection: asyncpg.Connection, names: Collection[str] | None = None) -> tuple[str, ...]:
    """Take the database side away: of the named entities, or all of it with its schema and role.

    Returns:
        The names of the entities that were taken away.

    Raises:
        InstallError: a named entity is not installed.
    """
    if await connection.fetchval("SELECT to_regclass('cachesync.entity')") is None:
        if names:
            message = f"{', '.join(sorted(names))}: nothing is installed in this database"
            raise InstallError(message)
        return ()
    registered = {
        record["name"]: (record["schema_name"], record["table_name"])
        for record in await connection.fetch("SELECT name, schema_name, table_name FROM cachesync.entity")
    }
    unknown = sorted(set(names or ()) - registered.keys())
    if unknown:
        message = f"{', '.join(unknown)}: not installed; installed are {', '.join(registered) or 'none'}"
        raise InstallError(message)
    removed = tuple(names) if names is not None else tuple(registered)
    for name in removed:
        await _execute(
            connection,
            statement(
                "drop_entity",
                entity=literal(name),
                table=identifier(*registered[name]),
                view=identifier("cachesync", name),
                **_functions(name),
            ),
        )
    if names is None:
        await _execute(connection, statement("uninstall"))
    return removed


async def _checked_relation(connection: asyncpg.Connection, entity: Entity) -> Relation:
    relation = await describe_relation(connection, entity)
    problem = "no such table in this database" if relation is None else _problem(entity, relation)
    if relation is not None and problem is None and relation.has_version:
        state = await _only_row(connection, statement("installed"), *entity.schema_and_table)
        if not state["versioning"]:
            problem = f"it has a column {VERSION_COLUMN!r} of its own; rename that one first"
    if problem is not None or relation is None:
        message = f"entity {entity.name!r}, table {entity.table}: {problem}"
        raise InstallError(message)
    return relation


def _problem(entity: Entity, relation: Relation) -> str | None:
    """What keeps a table from being registered, None where nothing does."""
    if relation.kind != "r":
        return f"it is {_KINDS.get(relation.kind, 'no table')}; only ordinary tables can be registered"
    if relation.inherits:
        return "it is a partition or inherits; writes to a part of it would not pass its triggers"
    names = [column.name for column in relation.columns]
    missing = [name for name in (entity.key, *(entity.columns or ())) if name not in names]
    if missing:
        return f"it has no column {', '.join(map(repr, missing))}; it has {', '.join(names)}"
    return _key_problem(entity, relation)


def _key_problem(entity: Entity, relation: Relation) -> str | None:
    if not relation.key_columns:
        return (
            f"it has no primary key; ALTER TABLE {entity.table} ADD PRIMARY KEY ({entity.key}) gives it one"
        )
    if relation.key_columns != (entity.key,):
        key = ", ".join(relation.key_columns)
        return f"its primary key is ({key}), the entity's is {entity.key!r}; it must be that one column"
    if relation.key_deferrable:
        return "its primary key is DEFERRABLE, so two rows may have one key for a while; make it immediate"
    column = next(column for column in relation.columns if column.name == entity.key)
    if column.base_type not in KEY_TYPES:
        return f"its key is of type {column.declared_type}; a key is one of {', '.join(sorted(KEY_TYPES))}"
    if not column.deterministic:
        return "its key has a nondeterministic collation, so unlike texts would be one key"
    return None


async def _refuse_foreign_schema(connection: asyncpg.Connection) -> None:
    ours = await connection.fetchval(
        "SELECT to_regclass('cachesync.change_log') IS NOT NULL OR to_regnamespace('cachesync') IS NULL"
    )
    if not ours:
        message = "the database has a schema 'cachesync' that is not db-cache-sync's; rename it first"
        raise InstallError(message)


async def _refuse_moved_entities(connection: asyncpg.Connection, entities: Mapping[str, Entity]) -> None:
    for record in await connection.fetch(
        "SELECT name, schema_name, table_name, key_column FROM cachesync.entity"
    ):
        table = (record["schema_name"], record["table_name"])
        for entity in entities.values():
            same_name = entity.name == record["name"]
            same_table = entity.schema_and_table == table
            if same_name != same_table or (same_name and entity.key != record["key_column"]):
                message = (
                    f"entity {entity.name!r}: installed is {record['name']!r} on {'.'.join(table)} with key "
                    f"{record['key_column']!r}; run `cachesync uninstall {record['name']}` first"
                )
                raise InstallError(message)


async def _install_entity(
    connection: asyncpg.Connection, entity: Entity, relation: Relation, progress: Progress
) -> None:
    table = identifier(*entity.schema_and_table)
    columns = relation.served(entity)
    key = next(column for column in columns if column.name == entity.key)
    state = await _only_row(connection, statement("installed"), *entity.schema_and_table)
    if not state["versioned"]:
        progress.step(f"{entity.name}: numbering the rows of {entity.table}")
        await _execute(connection, statement("version_column", table=table))
        await _execute(connection, statement("require_version", table=table))
        backfill = statement("backfill", table=table, key=identifier(key.name), key_type=key.declared_type)
        await _backfill(connection, backfill, state["rows"], progress)
        await connection.execute(statement("validate_version", table=table))
        await _execute(connection, statement("version_not_null", table=table))
    progress.step(f"{entity.name}: triggers on {entity.table}")
    schema, name = entity.schema_and_table
    names = [column.name for column in columns]
    # Part of the fingerprint, so that a cache holds nothing valid of an earlier installation.
    started = await connection.fetchval(
        "SELECT seqstart FROM pg_sequence WHERE seqrelid = 'cachesync.row_version'::regclass"
    )
    await _execute(
        connection,
        statement(
            "entity",
            entity=literal(entity.name),
            table=table,
            schema=identifier(schema),
            schema_name=literal(schema),
            table_name=literal(name),
            key=identifier(key.name),
            key_name=literal(key.name),
            key_type=key.declared_type,
            columns=", ".join(map(identifier, names)),
            readable=", ".join(map(identifier, [*names, VERSION_COLUMN])),
            column_names=f"ARRAY[{', '.join(map(literal, names))}]",
            fingerprint=literal(fingerprint(entity, columns, started)),
            payload=payload_expression("t", names),
            new_payload=payload_expression("n", names),
            view=identifier("cachesync", entity.name),
            **_functions(entity.name),
        ),
    )


async def _backfill(connection: asyncpg.Connection, batch: str, expected: int, progress: Progress) -> None:
    done = 0
    skipped = 1
    while skipped:
        skipped = 0
        last_key: str | None = None
        while True:
            record = await _only_row(connection, batch, last_key, _BATCH_ROWS)
            if record["last_key"] is None:
                break
            last_key = record["last_key"]
            done += record["versioned"]
            skipped += record["skipped"]
            progress.rows(done, max(expected, done))
        if skipped:
            progress.step(f"{skipped} rows are locked by others; trying again")
            await asyncio.sleep(1)


def payload_expression(row: str, columns: Collection[str]) -> str:
    """The SQL expression for the payload of a row that goes by the name `row`."""
    members = ", ".join(f"{row}.{identifier(column)}" for column in columns)
    return statement("payload", columns=members).strip()


def _functions(entity: str) -> dict[str, str]:
    return {
        f"log_{event}": identifier("cachesync", f"{entity}_log_{event}")
        for event in ("insert", "update", "delete", "truncate")
    }


async def _only_row(connection: asyncpg.Connection, query: str, *arguments: object) -> asyncpg.Record:
    (row,) = await connection.fetch(query, *arguments)
    return row


async def _execute(connection: asyncpg.Connection, script: str) -> None:
    """Run a script in one transaction that gives way where its locks are not to be had soon."""
    for attempt in range(1, _LOCK_ATTEMPTS + 1):
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
                await connection.execute(script)
        except asyncpg.LockNotAvailableError as error:
            if attempt == _LOCK_ATTEMPTS:
                message = (
                    f"{error}: a long transaction holds the table; see pg_stat_activity for who "
                    "(state, xact_start), end it or wait, and run the same command again"
                )
                raise InstallError(message) from error
            await asyncio.sleep(attempt * 0.2)
        else:
            return
