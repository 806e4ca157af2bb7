"""Installation, upgrade and removal of the database side."""

from __future__ import annotations

import asyncio
import hashlib
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, Protocol

import asyncpg

from cachesync.entity import CANARY, with_canary
from cachesync.errors import InstallError, NotInstalledError
from cachesync.install.checks import (
    check_tables,
    database_problems,
    moved_entities,
    refuse,
    refuse_foreign_schema,
)
from cachesync.mistakes import did_you_mean
from cachesync.postgres.catalog import VERSION_COLUMN, Relation, describe_relation
from cachesync.postgres.connect import SEARCH_PATH, translate_postgres_errors
from cachesync.postgres.key import Key
from cachesync.postgres.lookup import view_columns
from cachesync.postgres.payload import PAYLOAD_SETTINGS, payload_expression
from cachesync.postgres.registry import Registration, fingerprint, read_registry
from cachesync.postgres.statements import identifier, literal, statement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Collection, Iterable, Mapping

    from cachesync.entity import Entity

# Long enough for running transactions to end and for a vacuum to give way (after deadlock_timeout, 1 s), but
# short enough that the sessions that queue behind the lock request hardly wait.
_LOCK_TIMEOUT: Final = "2s"
_LOCK_ATTEMPTS: Final = 15
# An arbitrary number, the same for every installation, so that two of them do not run concurrently.
_ADVISORY_LOCK: Final = 0x64_62_63_73
# Of a function, so that the texts that it makes do not depend on the session.
_SETTINGS: Final = " ".join(f"SET {name} = {literal(value)}" for name, value in PAYLOAD_SETTINGS.items())


class Progress(Protocol):
    """Reports the progress of an installation."""

    def step(self, text: str) -> None:
        """Report that a step begins."""


async def install(
    connection: asyncpg.Connection,
    entities: Mapping[str, Entity],
    progress: Progress,
    *,
    lock_attempts: int = _LOCK_ATTEMPTS,
    revoke_temporary: bool = False,
) -> tuple[str, ...]:
    """Install the database side of the entities, or upgrade it; safe to repeat.

    The tables can contain rows and be in use: no row is written, and locks are brief.

    Args:
        connection: a connection of a user who owns the tables and can create a schema and roles.
        entities: the declared entities, by name.
        progress: receives the name of each step.
        lock_attempts: how many times to request the lock of a table that is in use, for 2 s each time.
        revoke_temporary: whether to revoke the privilege to create temporary objects in the database from
            PUBLIC, on which all users have it by default.

    Returns:
        The names of the entities that are installed but no longer declared.

    Raises:
        InstallError: a table cannot be registered as declared, a table stayed in use, or the user lacks a
            privilege.
        DeclarationError: an entity has the name of the live check's own.
    """
    declared = with_canary(entities)
    async with _exclusive(connection):
        relations, problems = await check_tables(connection, entities)
        refuse(problems + await database_problems(connection))
        before = await _registry(connection)
        progress.step("schema cachesync")
        # In one transaction, so that nobody compares the new functions with the registry's old digests.
        script = statement("install/schema") + statement("install/snapshot", settings=_SETTINGS)
        script += statement("install/partitions") + statement("install/reading", settings=_SETTINGS)
        await _execute(connection, script, "cachesync.change_log", lock_attempts)
        await _execute(
            connection, statement("install/dead_letters"), "cachesync.dead_letter_action", lock_attempts
        )
        await _execute(connection, statement("install/reconciliation"), "cachesync.change_log", lock_attempts)
        await _execute(connection, statement("install/live_check"), "cachesync.canary", lock_attempts)
        relations[CANARY.name] = await _canary(connection)
        registered = await connection.fetch(statement("install/registered"))
        refuse(list(moved_entities(registered, entities)))
        set_back = bool(await connection.fetchval(statement("postgres/sequence_set_back")))
        if set_back:
            progress.step("sequence cachesync.row_version, which was set back")
            await connection.execute(statement("install/raise_sequence"))
        names = {record["name"] for record in registered}
        for entity in declared.values():
            if entity is not CANARY:
                progress.step(f"entity {entity.name}, table {entity.table}")
            if relations[entity.name].has_version and (set_back or entity.name not in names):
                table = identifier(*entity.schema_and_table)
                await connection.execute(statement("install/restored", table=table))
            await _bypass_row_security(connection, entity, lock_attempts)
            await _install_entity(
                connection, entity, relations[entity.name], before, lock_attempts, start_over=set_back
            )
            if relations[entity.name].properties.kind == "p":
                script = statement("install/follow_partitions", entity=literal(entity.name))
                await _execute(connection, script, identifier(*entity.schema_and_table), lock_attempts)
            if entity is CANARY:
                await connection.execute(statement("install/grant_canary", view=_view(entity.name)))
            else:
                await _grant(connection, entity, relations[entity.name])
        if revoke_temporary:
            progress.step("temporary objects")
            await _revoke_temporary(connection)
    return tuple(record["name"] for record in registered if record["name"] not in declared)


async def uninstall(
    connection: asyncpg.Connection,
    names: Collection[str] | None = None,
    *,
    lock_attempts: int = _LOCK_ATTEMPTS,
) -> tuple[str, ...]:
    """Remove the database side.

    Args:
        connection: a connection of a user who owns the tables and the schema.
        names: the names of the entities to remove; None to remove everything, with the schema and the roles.
        lock_attempts: how many times to request the lock of a table that is in use, for 2 s each time.

    Returns:
        The names of the removed entities.

    Raises:
        InstallError: a named entity is not installed, other views depend on the objects to remove, a table
            stayed in use, or the user lacks a privilege.
    """
    async with _exclusive(connection):
        await refuse_foreign_schema(connection)
        if await connection.fetchval("SELECT to_regclass('cachesync.entity')") is None:
            if names:
                message = f"{', '.join(sorted(names))}: nothing is installed in this database"
                raise InstallError(message)
            return ()
        registered = {
            record["name"]: record for record in await connection.fetch(statement("install/registered"))
        }
        declared = [name for name in registered if name != CANARY.name]
        unknown = sorted(set(names or ()).difference(declared))
        if unknown:
            installed = ", ".join(declared) or "none"
            raise InstallError(
                "\n".join(
                    f"{name}: not installed{did_you_mean(name, declared)}; installed entities: {installed}"
                    for name in unknown
                )
            )
        removed = tuple(declared if names is None else dict.fromkeys(names))
        uses = {name: await _uses(connection, registered[name]) for name in declared}
        for name in removed:
            no_longer_used = uses.pop(name).difference(*uses.values())
            await _uninstall_entity(connection, registered[name], no_longer_used, lock_attempts)
        if names is None:
            if CANARY.name in registered:
                await _uninstall_entity(connection, registered[CANARY.name], set(), lock_attempts)
            await _execute(connection, statement("install/uninstall"), "cachesync.change_log", lock_attempts)
    return removed


@asynccontextmanager
async def _exclusive(connection: asyncpg.Connection) -> AsyncIterator[None]:
    """Exclude concurrent installations, and translate errors that the user can fix.

    Until the end, names without a schema refer to PostgreSQL's own objects, not to those that other users can
    have created in a schema of the session's search_path.
    """
    with translate_postgres_errors():
        search_path = await connection.fetchval("SELECT pg_catalog.current_setting('search_path')")
        await connection.execute("SELECT pg_catalog.set_config('search_path', $1, false)", SEARCH_PATH)
        await connection.execute("SELECT pg_advisory_lock($1)", _ADVISORY_LOCK)
        try:
            yield
        except asyncpg.InsufficientPrivilegeError as error:
            message = (
                f"{error}; connect as the owner of the tables and of the schema cachesync. The first "
                "installation also needs the privileges to create the schema (CREATE ON DATABASE) and the "
                "roles cachesync_service and cachesync_worker (CREATEROLE)"
            )
            raise InstallError(message) from error
        except asyncpg.DependentObjectsStillExistError as error:
            message = f"{error.message}: {error.detail}; drop them first"
            raise InstallError(message) from error
        finally:
            await connection.execute("SELECT pg_advisory_unlock($1)", _ADVISORY_LOCK)
            await connection.execute("SELECT pg_catalog.set_config('search_path', $1, false)", search_path)


async def _canary(connection: asyncpg.Connection) -> Relation:
    """Return the table of the live check's hidden entity, which exists."""
    relation = await describe_relation(connection, CANARY)
    if relation is None:
        raise AssertionError
    return relation


async def _registry(connection: asyncpg.Connection) -> dict[str, Registration] | None:
    """Return the registered entities; None if nothing is installed, or only by an earlier version."""
    try:
        return await read_registry(connection)
    except NotInstalledError:
        return None


async def _install_entity(
    connection: asyncpg.Connection,
    entity: Entity,
    relation: Relation,
    before: dict[str, Registration] | None,
    lock_attempts: int,
    *,
    start_over: bool,
) -> None:
    columns = relation.served(entity)
    key = Key.of(entity, columns)
    names = [column.name for column in columns]
    session_text = any(column.session_text for column in columns)
    schema, table = entity.schema_and_table
    shape = await connection.fetchval(
        "SELECT cachesync.shape($1::regclass, $2)", identifier(schema, table), names
    )
    registered = (before or {}).get(entity.name)
    damaged = registered is not None and (start_over or bool(registered.findings))
    changed = registered is not None and (damaged or registered.shape != json.loads(shape))
    # Part of the fingerprint, so that what caches still hold from an earlier installation is not valid.
    installation = await connection.fetchval(statement("install/installation"), entity.name, changed)
    installed_fingerprint = fingerprint(entity.name, shape, installation)
    qualified = identifier(schema, table)
    view = _view(entity.name)
    readable = ", ".join([*map(identifier, key.names), VERSION_COLUMN])
    privileges = f"SELECT ({readable}) and UPDATE ({VERSION_COLUMN}) on {qualified}"
    by_row = relation.properties.has_relatives
    functions = _functions(entity.name)
    fragments = {
        "table": qualified,
        "table_name": literal(qualified),
        "entity": literal(entity.name),
        "key_names": _array(key.names),
        "key_changes": key.differs("NEW", "OLD"),
        "key_is_unknown": key.is_unknown("NEW"),
        "key_before": key.text("OLD"),
        "key_after": key.text("NEW"),
        "key_of_new": key.text("n"),
        "key_of_old": key.text("o"),
        "has_key": key.matches("t", "$1"),
        "has_key_of_old": key.same("t", "o"),
        "has_key_of_line": key.matches("t", "l.key"),
        "shown_key": key.view_columns("t"),
        "shown_lookups": view_columns(entity, "t"),
        "old_is_foreign": _other_types("OLD", [*key.names, VERSION_COLUMN]),
        "new_is_foreign": _other_types("NEW", dict.fromkeys([*names, *key.names, VERSION_COLUMN])),
        "overtaken": literal(f"cachesync.{entity.name}_overtaken"),
        # Of a row that is written to a partition, the version is in the table.
        "written": f"{literal(qualified)}::pg_catalog.regclass" if by_row else "TG_RELID",
        "hint": literal(f"Grant the role {privileges}."),
        "fingerprint": literal(installed_fingerprint),
        "payload": payload_expression("t", names, session_text=session_text),
        "json_schema": "cachesync" if session_text else "pg_catalog",
        "settings": _SETTINGS if any(column.settings_text for column in columns) else "",
        "view": view,
        **functions,
    }
    fragments["draw_again"] = statement(
        "install/draw_again", has_key_of_list=key.matches("t", "u.key"), **fragments
    )
    fragments["redraw_functions"] = statement("install/redraw", **fragments)
    fragments["shown"] = statement("install/shown", **fragments)
    if by_row:
        served = ", ".join(f"NEW.{identifier(name)} AS {identifier(name)}" for name in names)
        script = statement("install/entity_of_partitions", columns=served, **fragments)
    else:
        served = ", ".join(f"n.{identifier(name)}" for name in names)
        log_new_rows = statement("install/log_new_rows", columns=served, **fragments)
        script = statement("install/entity", log_new_rows=log_new_rows, **fragments)
    definition = hashlib.sha256(script.encode()).hexdigest()
    # If nothing has changed, skip the script, whose locks wait for every writer.
    if registered is not None and not changed and registered.definition == definition:
        return
    if await connection.fetchval(statement("install/shows_lookups"), view):
        # Such a view cannot be replaced by one without them.
        script = (
            f"DROP VIEW {view};\n{script}GRANT SELECT ON {view} TO cachesync_service, cachesync_worker;\n"
        )
    # A partition has the columns of the uppermost table, which another entity can have given it.
    root = await connection.fetchval(statement("install/without_version"), schema, table)
    if root is not None:
        script = statement("install/version_column", table=root, table_name=literal(root)) + script
    script += statement(
        "install/register",
        entity=literal(entity.name),
        schema_name=literal(schema),
        table_name=literal(table),
        key_names=_array(key.names),
        column_names=_array(names),
        fingerprint=literal(installed_fingerprint),
        definition=literal(definition),
        installation=str(installation),
        relation=literal(identifier(schema, table)),
    )
    if damaged:
        script += statement("install/start_over", entity=literal(entity.name))
    await _execute(connection, script, identifier(schema, table), lock_attempts)


def _other_types(row: str, names: Iterable[str]) -> str:
    """Return the condition that columns of a row have other types than those of the table."""
    unequal = "OPERATOR(pg_catalog.<>)"
    return " OR ".join(
        f"pg_catalog.pg_typeof({row}.{column}) {unequal} pg_catalog.pg_typeof(declared.{column})"
        for column in map(identifier, names)
    )


def _array(texts: Iterable[str]) -> str:
    return f"ARRAY[{', '.join(map(literal, texts))}]"


async def _bypass_row_security(connection: asyncpg.Connection, entity: Entity, lock_attempts: int) -> None:
    """Create or drop the policy that shows the services all rows, as declared."""
    table = identifier(*entity.schema_and_table)
    wanted = entity.row_security == "bypass"
    # Even IF NOT EXISTS and the like would wait for every reader before they look.
    if wanted != await connection.fetchval(statement("install/bypassed"), table):
        script = statement("install/bypass" if wanted else "install/drop_bypass", table=table)
        await _execute(connection, script, table, lock_attempts)


async def _grant(connection: asyncpg.Connection, entity: Entity, relation: Relation) -> None:
    """Grant the services and the background work their privileges.

    The owner of the table cannot grant all of them if others own schemas or sequences that it uses.
    """
    names = [column.name for column in relation.served(entity)]
    await connection.execute(
        statement(
            "install/grant",
            table=identifier(*entity.schema_and_table),
            view=_view(entity.name),
            columns=", ".join(map(identifier, names)),
            readable=", ".join(map(identifier, [*names, VERSION_COLUMN])),
            partition=", tableoid" if relation.properties.kind == "p" else "",
        )
    )
    for used, role in await _missing_privileges(connection, entity):
        await connection.execute(f"GRANT USAGE ON {used} TO {role}")
    missing = await _missing_privileges(connection, entity)
    if missing:
        role = missing[0][1]
        objects = ", ".join(used for used, lacking in missing if lacking == role)
        message = (
            f"entity {entity.name!r}: cannot grant USAGE on {objects} to the role {role}; have the owner run "
            f"GRANT USAGE ON ... TO {role}"
        )
        raise InstallError(message)
    if relation.properties.has_relatives:
        functions = _functions(entity.name)
        of_each_row = ", ".join(f"{functions[name]}()" for name in ("draw", "log_row", "redraw_as_writer"))
        qualified = literal(identifier(*entity.schema_and_table))
        await connection.execute(
            statement("install/grant_functions", table_name=qualified, of_each_row=literal(of_each_row))
        )


async def _revoke_temporary(connection: asyncpg.Connection) -> None:
    database = await connection.fetchval("SELECT current_database()")
    # Without the privilege to do so, REVOKE only warns.
    await connection.execute(f"REVOKE TEMPORARY ON DATABASE {identifier(database)} FROM public")
    if await connection.fetchval(
        "SELECT has_database_privilege('cachesync_service', current_database(), 'TEMPORARY')"
    ):
        message = (
            f"cannot revoke TEMPORARY on the database {database!r} from PUBLIC; connect as the owner of the "
            "database"
        )
        raise InstallError(message)
    logins = [record["rolname"] for record in await connection.fetch(statement("install/temporary"))]
    if logins:
        message = (
            f"TEMPORARY is revoked from PUBLIC, but {', '.join(logins)} can still create temporary objects; "
            f"run REVOKE TEMPORARY ON DATABASE {identifier(database)} FROM ... for the roles that grant it"
        )
        raise InstallError(message)


async def _missing_privileges(connection: asyncpg.Connection, entity: Entity) -> list[tuple[str, str]]:
    """Return the objects on which roles still need USAGE, each with the role."""
    uses = await connection.fetch(statement("install/uses"), *entity.schema_and_table)
    return [(record["object"], record["role"]) for record in uses if not record["granted"]]


async def _uses(connection: asyncpg.Connection, record: asyncpg.Record) -> set[tuple[str, str]]:
    """Return the objects on which roles need USAGE for a registered table, each with the role."""
    uses = await connection.fetch(statement("install/uses"), record["schema_name"], record["table_name"])
    return {(use["object"], use["role"]) for use in uses}


async def _uninstall_entity(
    connection: asyncpg.Connection,
    record: asyncpg.Record,
    no_longer_used: set[tuple[str, str]],
    lock_attempts: int,
) -> None:
    name = record["name"]
    if record["table_name"] is not None:
        table = identifier(record["schema_name"], record["table_name"])
        script = statement(
            "install/drop_entity",
            table=table,
            table_name=literal(table),
            entity=literal(name),
            view=_view(name),
        )
        for used, role in sorted(no_longer_used):
            script += f"REVOKE USAGE ON {used} FROM {role};"
        await _execute(connection, script, table, lock_attempts)
    await connection.execute(statement("install/drop_functions", **_functions(name)))
    # After the triggers are gone, so that nobody waits for these deletes, which can take a while.
    await connection.execute("DELETE FROM cachesync.change_log WHERE entity = $1", name)
    await connection.execute("DELETE FROM cachesync.entity WHERE name = $1", name)


def _view(entity: str) -> str:
    return identifier("cachesync", entity)


def _functions(entity: str) -> dict[str, str]:
    names = (
        "draw_update",
        "log_insert",
        "log_update",
        "log_move",
        "log_moves",
        "keep_moved",
        "log_delete",
        "log_truncate",
        "redraw",
        "redraw_as_writer",
        "draw",
        "log_row",
        "log_delete_of",
    )
    return {name: identifier("cachesync", f"{entity}_{name}") for name in names}


async def _execute(connection: asyncpg.Connection, script: str, table: str, lock_attempts: int) -> None:
    """Run a script in one transaction, and retry if it does not get its lock on the table in time."""
    for attempt in range(1, lock_attempts + 1):
        try:
            async with connection.transaction():
                await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
                await connection.execute(script)
        except asyncpg.LockNotAvailableError as error:
            if attempt == lock_attempts:
                holders = await connection.fetch(statement("install/lock_holders"), table)
                sessions = ", ".join(record["session"] for record in holders)
                message = (
                    f"{table} was in use at each of {attempt} attempts; it is now locked by "
                    f"{f'session {sessions}' if sessions else 'no session'}; wait for its transaction or "
                    "end the session (pg_terminate_backend), and run the same command again"
                )
                raise InstallError(message) from error
            await asyncio.sleep(attempt * 0.2)
        else:
            return
