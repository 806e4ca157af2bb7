"""The database side: made, upgraded and taken away."""

from __future__ import annotations

import asyncio
import hashlib
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

import asyncpg

from cachesync.errors import InstallError
from cachesync.postgres.catalog import KEY_TYPES, VERSION_COLUMN, Relation, describe_relation, fingerprint
from cachesync.postgres.payload import PAYLOAD_SETTINGS, payload_expression
from cachesync.postgres.statements import identifier, literal, statement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Mapping

    from cachesync.entity import Entity

# Long enough for a transaction in flight to end and for a vacuum to give way (after deadlock_timeout, 1 s),
# short enough that those who queue behind it hardly wait.
_LOCK_TIMEOUT: Final = "2s"
_LOCK_ATTEMPTS: Final = 15
# Any number, the same for all installs: two at once would stand in each other's way.
_ADVISORY_LOCK: Final = 0x64_62_63_73

_KINDS: Final = {
    "f": "a foreign table",
    "m": "a materialized view",
    "p": "a partitioned table",
    "v": "a view",
}

# Relations in the schema cachesync, where each entity has a view of its name.
_TAKEN: Final = frozenset(
    {
        "change_log",
        "dead_letter_action",
        "entity",
        "reconciliation",
        "reconciliation_chunk",
        "row_version",
    }
)


class Progress(Protocol):
    """Told what is being done."""

    def step(self, text: str) -> None:
        """A step begins."""


async def install(
    connection: asyncpg.Connection,
    entities: Mapping[str, Entity],
    progress: Progress,
    *,
    lock_attempts: int = _LOCK_ATTEMPTS,
) -> tuple[str, ...]:
    """Make the database side of the entities, or bring it up to date; safe to repeat.

    Tables may hold rows and be in use: no row is written, and locks are brief.

    Args:
        connection: one of a user who owns the tables and may create a schema and a role.
        entities: the declared entities.
        progress: told of each step.
        lock_attempts: how often to try for a table that others hold, for 2 s each.

    Returns:
        The names of entities that are installed although they are declared no more.

    Raises:
        InstallError: an entity does not fit its table, or the user lacks a right.
    """
    async with _alone(connection):
        relations = {entity.name: await _checked_relation(connection, entity) for entity in entities.values()}
        await _refuse_foreign_schema(connection)
        progress.step("schema cachesync")
        await _execute(connection, statement("install/schema"), "cachesync.change_log", lock_attempts)
        await _execute(
            connection, statement("install/dead_letters"), "cachesync.dead_letter_action", lock_attempts
        )
        await _execute(connection, statement("install/reconciliation"), "cachesync.change_log", lock_attempts)
        registered = await connection.fetch(statement("install/registered"))
        _refuse_moved_entities(registered, entities)
        for entity in entities.values():
            progress.step(f"entity {entity.name}, table {entity.table}")
            await _install_entity(connection, entity, relations[entity.name], lock_attempts)
            await _grant(connection, entity, relations[entity.name])
    return tuple(record["name"] for record in registered if record["name"] not in entities)


async def uninstall(
    connection: asyncpg.Connection,
    names: Collection[str] | None = None,
    *,
    lock_attempts: int = _LOCK_ATTEMPTS,
) -> tuple[str, ...]:
    """Take the database side away: of the named entities, or all of it with its schema and role.

    Returns:
        The names of the entities that were taken away.

    Raises:
        InstallError: a named entity is not installed, somebody's views depend on what is to be dropped, or
            the user lacks a right.
    """
    async with _alone(connection):
        await _refuse_foreign_schema(connection)
        if await connection.fetchval("SELECT to_regclass('cachesync.entity')") is None:
            if names:
                message = f"{', '.join(sorted(names))}: nothing is installed in this database"
                raise InstallError(message)
            return ()
        registered = {
            record["name"]: record for record in await connection.fetch(statement("install/registered"))
        }
        unknown = sorted(set(names or ()) - registered.keys())
        if unknown:
            message = f"{', '.join(unknown)}: not installed; installed are {', '.join(registered) or 'none'}"
            raise InstallError(message)
        removed = tuple(names) if names is not None else tuple(registered)
        for name in removed:
            await _uninstall_entity(connection, name, registered, lock_attempts)
        if names is None:
            await _execute(connection, statement("install/uninstall"), "cachesync.change_log", lock_attempts)
    return removed


@asynccontextmanager
async def _alone(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """One installation at a time; what the user may not do is told with what to do about it."""
    await connection.execute("SELECT pg_advisory_lock($1)", _ADVISORY_LOCK)
    try:
        yield
    except asyncpg.InsufficientPrivilegeError as error:
        message = (
            f"{error}; connect as the owner of the tables and of the schema cachesync. The first time takes "
            "the right to create a schema (CREATE ON DATABASE) and the roles cachesync_service and "
            "cachesync_worker (CREATEROLE)"
        )
        raise InstallError(message) from error
    except asyncpg.DependentObjectsStillExistError as error:
        message = f"{error.message}: {error.detail}; drop them first"
        raise InstallError(message) from error
    finally:
        await connection.execute("SELECT pg_advisory_unlock($1)", _ADVISORY_LOCK)


async def _checked_relation(connection: asyncpg.Connection, entity: Entity) -> Relation:
    relation = await describe_relation(connection, entity)
    problem = "no such table in this database" if relation is None else _problem(entity, relation)
    if relation is not None and problem is None and relation.has_version:
        versioned = await connection.fetchval(statement("install/versioned"), *entity.schema_and_table)
        if not versioned:
            problem = f"it has a column {VERSION_COLUMN!r} of its own; rename that one first"
    if problem is not None or relation is None:
        message = f"entity {entity.name!r}, table {entity.table}: {problem}"
        raise InstallError(message)
    return relation


def _problem(entity: Entity, relation: Relation) -> str | None:
    """What keeps a table from being registered, None where nothing does."""
    if relation.kind != "r":
        return f"it is {_KINDS.get(relation.kind, 'no table')}; only ordinary tables can be registered"
    if entity.name in _TAKEN:
        return f"the name {entity.name!r} is taken by what db-cache-sync makes; call the entity otherwise"
    return _trigger_problem(relation) or _column_problem(entity, relation) or _key_problem(entity, relation)


def _trigger_problem(relation: Relation) -> str | None:
    """How rows of it could change without its triggers, or they miss some."""
    if relation.unlogged:
        return "it is unlogged; a crash of the server would empty it without its triggers"
    if relation.inherits:
        return "it is a partition or inherits; writes to a part of it would not pass its triggers"
    if relation.subscribes:
        return "a subscription writes to it, which fires no statement triggers; register it at the publisher"
    if relation.hides_rows:
        return "its row security is forced on its owner, so its triggers would miss rows; NO FORCE lifts that"
    return None


def _column_problem(entity: Entity, relation: Relation) -> str | None:
    names = [column.name for column in relation.columns]
    missing = [name for name in (entity.key, *(entity.columns or ())) if name not in names]
    if missing:
        return f"it has no column {', '.join(map(repr, missing))}; it has {', '.join(names)}"
    virtual = [name for name in entity.columns or names if name in relation.virtual_columns]
    if virtual:
        return (
            f"its column {', '.join(map(repr, virtual))} is generated when it is read, which its triggers "
            "do not; make it STORED, or declare columns without it"
        )
    return None


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
    if await connection.fetchval(statement("install/foreign_schema")):
        message = "the database has a schema 'cachesync' that is not db-cache-sync's; rename it first"
        raise InstallError(message)


def _refuse_moved_entities(registered: list[asyncpg.Record], entities: Mapping[str, Entity]) -> None:
    """A table that was merely renamed is the same table; one that is gone is in nobody's way."""
    for record in registered:
        if record["table_name"] is None:
            continue
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
    connection: asyncpg.Connection, entity: Entity, relation: Relation, lock_attempts: int
) -> None:
    columns = relation.served(entity)
    key = next(column for column in columns if column.name == entity.key)
    names = [column.name for column in columns]
    schema, table = entity.schema_and_table
    # Part of the fingerprint, so that a cache holds nothing valid of an earlier installation.
    installation = await connection.fetchval(statement("install/installation"), entity.name)
    shape = fingerprint(entity, columns, installation)
    script = statement(
        "install/entity",
        entity=literal(entity.name),
        table=identifier(schema, table),
        key=identifier(key.name),
        key_type=key.declared_type,
        fingerprint=literal(shape),
        payload=payload_expression("t", names),
        new_payload=payload_expression("n", names),
        settings=" ".join(f"SET {name} = {literal(value)}" for name, value in PAYLOAD_SETTINGS.items()),
        view=identifier("cachesync", entity.name),
        **_functions(entity.name),
    )
    definition = hashlib.sha256(script.encode()).hexdigest()
    # No more than a look where there is nothing to do: the script's locks wait for every writer.
    if await connection.fetchval(
        statement("install/installed"), entity.name, definition, identifier(schema, table)
    ):
        return
    if not relation.has_version:
        script = statement("install/version_column", table=identifier(schema, table)) + script
    script += statement(
        "install/register",
        entity=literal(entity.name),
        schema_name=literal(schema),
        table_name=literal(table),
        key_name=literal(entity.key),
        column_names=f"ARRAY[{', '.join(map(literal, names))}]",
        fingerprint=literal(shape),
        definition=literal(definition),
        installation=str(installation),
    )
    await _execute(connection, script, identifier(schema, table), lock_attempts)


async def _grant(connection: asyncpg.Connection, entity: Entity, relation: Relation) -> None:
    """Give the services what they need, which a table's owner may not be able to where others own a part."""
    names = [column.name for column in relation.served(entity)]
    await connection.execute(
        statement(
            "install/grant",
            table=identifier(*entity.schema_and_table),
            view=identifier("cachesync", entity.name),
            columns=", ".join(map(identifier, names)),
            readable=", ".join(map(identifier, [*names, VERSION_COLUMN])),
        )
    )
    for needed in await _lacking(connection, entity):
        await connection.execute(f"GRANT USAGE ON {needed} TO cachesync_service")
    lacking = await _lacking(connection, entity)
    if lacking:
        message = (
            f"entity {entity.name!r}: the role cachesync_service cannot be given the use of "
            f"{', '.join(lacking)}; have the owner run GRANT USAGE ON ... TO cachesync_service"
        )
        raise InstallError(message)


async def _lacking(connection: asyncpg.Connection, entity: Entity) -> list[str]:
    uses = await connection.fetch(statement("install/uses"), *entity.schema_and_table)
    return [record["object"] for record in uses if not record["granted"]]


async def _uninstall_entity(
    connection: asyncpg.Connection, name: str, registered: dict[str, asyncpg.Record], lock_attempts: int
) -> None:
    uses = {
        other: {
            use["object"]
            for use in await connection.fetch(
                statement("install/uses"), record["schema_name"], record["table_name"]
            )
        }
        for other, record in registered.items()
    }
    record = registered.pop(name)
    if record["table_name"] is not None:
        table = identifier(record["schema_name"], record["table_name"])
        needed_no_more = uses.pop(name).difference(*uses.values())
        script = statement("install/drop_entity", table=table, view=identifier("cachesync", name))
        for used in sorted(needed_no_more):
            script += f"REVOKE USAGE ON {used} FROM cachesync_service;"
        await _execute(connection, script, table, lock_attempts)
    await connection.execute(statement("install/drop_functions", **_functions(name)))
    # Only now, as it may take a while, which nobody has to wait for.
    await connection.execute("DELETE FROM cachesync.change_log WHERE entity = $1", name)
    await connection.execute("DELETE FROM cachesync.entity WHERE name = $1", name)


def _functions(entity: str) -> dict[str, str]:
    names = ("log_insert", "log_update", "log_move", "log_delete", "log_truncate", "redraw")
    return {name: identifier("cachesync", f"{entity}_{name}") for name in names}


async def _execute(connection: asyncpg.Connection, script: str, table: str, lock_attempts: int) -> None:
    """Run a script in one transaction that gives way where its lock on the table is not to be had soon."""
    for attempt in range(1, lock_attempts + 1):
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
                await connection.execute(script)
        except asyncpg.LockNotAvailableError as error:
            if attempt == lock_attempts:
                holders = await connection.fetch(statement("install/lock_holders"), table)
                message = (
                    f"{table} was in use each of {attempt} times, now by the session "
                    f"{', '.join(record['session'] for record in holders) or 'of nobody'}; end what "
                    "holds it (pg_terminate_backend) or wait, and run the same command again"
                )
                raise InstallError(message) from error
            await asyncio.sleep(attempt * 0.2)
        else:
            return
