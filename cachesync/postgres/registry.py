"""The registered entities, compared with the catalog: whether the triggers still capture every change.

The installation remembers each table and the objects that it made. Whatever changes them later, such as a
disabled trigger, a table swap by renames or a renamed enum label, is a finding until the entity is installed
again.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import asyncpg

from cachesync.errors import NotInstalledError
from cachesync.postgres.catalog import describe_tables
from cachesync.postgres.requirements import unmet_requirements
from cachesync.postgres.statements import statement

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from datetime import datetime

    from cachesync.entity import Entity
    from cachesync.postgres.catalog import Properties
    from cachesync.postgres.connect import Connection

_ENABLED: Final = {
    "D": "is disabled",
    "O": "does not fire if session_replication_role is replica (it was enabled without ALWAYS)",
    "R": "fires only if session_replication_role is replica",
}
# Of the findings, and of the objects with the same finding, so that the text stays readable.
_MAX_NAMES: Final = 2
# For the statement alone, unless there is a transaction around it: there is nothing to undo at its end.
_GIVES_WAY: Final = "set_config('lock_timeout', '100ms', true) IS NOT NULL"


@dataclass(frozen=True, slots=True)
class Registration:
    """A registered entity.

    Attributes:
        name: the entity.
        schema_and_table: its table.
        key: its key columns.
        columns: its served columns.
        fingerprint: the schema fingerprint of its payloads.
        definition: a digest of the installed objects' definitions.
        installation: the number of its installation.
        shape: everything that determined the payload of a row when the entity was installed.
        details: a digest of the table as it is now; it changes with everything that a service knows of it.
        unique: the sets of columns on which its table has a unique index; see `Properties.unique`.
        findings: why changes may not be captured, or may have been missed.
        partitions_changed: whether partitions were attached or detached, which the relay follows.
        denied: the privileges that the login of the service lacks, and what to run; None if it lacks none.
    """

    name: str
    schema_and_table: tuple[str, str]
    key: tuple[str, ...]
    columns: tuple[str, ...]
    fingerprint: str
    definition: str
    installation: int
    shape: Any
    details: str
    unique: frozenset[frozenset[str]]
    findings: tuple[str, ...]
    partitions_changed: bool
    denied: str | None = None

    @property
    def problem(self) -> str | None:
        """Why the entity cannot be used, and what to run; None if it can."""
        if not self.findings:
            return self.denied
        findings = "; ".join(self.findings[:_MAX_NAMES])
        more = "; and more" * (len(self.findings) > _MAX_NAMES)
        return f"entity {self.name!r}: {findings}{more}; run `cachesync install`"


async def read_registry(
    connection: Connection, *, of_service: bool = False, waits: bool = True
) -> dict[str, Registration]:
    """Read the registered entities and compare them with the catalog.

    Args:
        connection: a connection with the role `cachesync_service` or `cachesync_worker`, or of the owner.
        of_service: whether to find out which privileges of a service the login lacks.
        waits: whether to wait for a table that is locked, as long as the session waits for locks. What looks
            again anyway should not wait for somebody's long `ALTER TABLE`.

    Returns:
        The registered entities by name.

    Raises:
        asyncpg.LockNotAvailableError: a table is locked.
        NotInstalledError: there is no registry, or it was installed by an earlier version.
    """
    query = statement("postgres/registry", condition="true" if waits else _GIVES_WAY)
    registry = await _read_once(connection, query)
    if any(one.findings for one in registry.values()):
        # The catalog's functions do not all use the statement's snapshot, so a concurrent change of the
        # schema can look like a finding.
        registry = await _read_once(connection, query)
    if of_service:
        query = statement("postgres/denied")
        # For the same reason, privileges that `install` has just changed can seem to be missing.
        lacking = await connection.fetch(query) and await connection.fetch(query)
        for record in lacking:
            name, login = record["name"], record["login"]
            denied = (
                f"entity {name!r}: the login {login} lacks {record['denied']}; run `cachesync install`, or "
                f"GRANT cachesync_service TO {login} if it no longer has that role"
            )
            registry[name] = replace(registry[name], denied=denied)
    return registry


def problem_of(entity: Entity, registration: Registration | None) -> str | None:
    """Return why a declared entity cannot be used as it is installed, and what to run; None if it can.

    Args:
        entity: the entity as declared.
        registration: the entity as registered; None if it is not.
    """
    if registration is None:
        return f"entity {entity.name!r} is not installed; run `cachesync install`"
    if registration.problem is not None:
        return registration.problem
    missing = next((one for one in entity.unique if frozenset(one) not in registration.unique), None)
    if missing is None:
        return None
    return f"entity {entity.name!r}: the unique index on ({', '.join(missing)}) is missing"


async def _read_once(connection: Connection, query: str) -> dict[str, Registration]:
    try:
        records = await connection.fetch(query)
    except (asyncpg.InvalidSchemaNameError, asyncpg.UndefinedTableError) as error:
        message = "the database has no schema 'cachesync'; run `cachesync install`"
        raise NotInstalledError(message) from error
    except (asyncpg.UndefinedColumnError, asyncpg.UndefinedFunctionError) as error:
        message = "the database side was installed by an earlier version; run `cachesync install`"
        raise NotInstalledError(message) from error
    tables = await describe_tables(
        connection, [(record["schema_name"], record["table_name"]) for record in records]
    )
    return {record["name"]: _registration(record, tables) for record in records}


def fingerprint(entity: str, shape: str, installation: int) -> str:
    """Return the schema fingerprint of an entity: eight hexadecimal digits.

    Args:
        entity: the name of the entity.
        shape: the result of `cachesync.shape` for its served columns.
        installation: the number of the entity's installation.
    """
    return hashlib.sha256(f"{installation} {entity} {shape}".encode()).hexdigest()[:8]


def _registration(record: asyncpg.Record, tables: Mapping[tuple[str, str], Properties]) -> Registration:
    table = (record["schema_name"], record["table_name"])
    findings = tuple(_findings(record, tables.get(table)))
    if not findings and record["lost_at"] is not None:
        findings = (_missed(record["lost_at"]),)
    # The live shape, not the registered one: a service must know the labels that were added since.
    details = f"{record['shape']} {record['details']}"
    return Registration(
        name=record["name"],
        schema_and_table=table,
        key=tuple(record["key_columns"]),
        columns=tuple(record["columns"]),
        fingerprint=record["fingerprint"],
        definition=record["definition"],
        installation=record["installation"],
        shape=None if record["registered_shape"] is None else json.loads(record["registered_shape"]),
        details=hashlib.sha256(details.encode()).hexdigest(),
        unique=tables[table].unique if table in tables else frozenset(),
        findings=findings,
        partitions_changed=record["partitions_changed"],
    )


def _missed(lost_at: datetime) -> str:
    return (
        f"changes may have been missed around {lost_at:%Y-%m-%d %H:%M:%S} UTC, when the schema was different"
    )


def _findings(record: asyncpg.Record, properties: Properties | None) -> Iterator[str]:
    if record["relation"] is None:
        yield "it was installed by an earlier version"
        return
    table = f"{record['schema_name']}.{record['table_name']}"
    if record["named"] != record["relation"]:
        yield _moved(record["name"], table, record["current_name"], exists=record["named"] is not None)
        return
    if properties is not None:
        for problem in unmet_requirements(table, record["key_columns"], properties):
            yield f"table {table}: {problem}"
    registered, live = json.loads(record["registered_objects"]), json.loads(record["objects"])
    if properties is not None and properties.has_relatives and "trigger cachesync_log_row" not in registered:
        yield f"table {table}: it became a partition; writes to the table above it do not fire its triggers"
    shapes = list(_shape_findings(json.loads(record["registered_shape"]), json.loads(record["shape"])))
    yield from shapes
    if not shapes and _renumbered(registered["column numbers"], live["column numbers"]):
        yield "its columns exchanged their names"
    yield from _row_security_findings(registered["row security"], live["row security"], properties)
    yield from _object_findings(registered, live)


def _moved(entity: str, table: str, current_name: str | None, *, exists: bool) -> str:
    """Describe a table that no longer has its name."""
    if current_name is None:
        return f"table {table} was dropped{', and another table has its name' if exists else ''}"
    if not exists:
        return f"table {table} was renamed to {current_name}; rename it back, or declare the new name"
    return (
        f"another table is now named {table}, and the installed one {current_name}; if that is intended, run "
        f"`cachesync uninstall {entity}` first"
    )


def _shape_findings(registered: list[Any], live: list[Any]) -> Iterator[str]:
    for before, now in zip(registered, live, strict=True):
        name = before["name"]
        if "type" not in now:
            yield f"column {name!r} no longer exists"
        elif not _includes(now["type"], before["type"]):
            yield f"the type of column {name!r} has changed"
        elif now.get("expression") != before.get("expression"):
            yield f"the expression of the generated column {name!r} has changed"


def _includes(live: Any, registered: Any) -> bool:
    """Return whether a type is the registered one; labels may have been added, which changes no value."""
    if isinstance(live, dict) and isinstance(registered, dict):
        if live.keys() != registered.keys():
            return False
        return all(
            registered[member].items() <= live[member].items()
            if member == "labels"
            else _includes(live[member], registered[member])
            for member in registered
        )
    if isinstance(live, list) and isinstance(registered, list):
        return len(live) == len(registered) and all(map(_includes, live, registered))
    return bool(live == registered)


def _renumbered(registered: Mapping[str, Any], live: Mapping[str, Any]) -> bool:
    return bool(live["relation"] == registered["relation"] and live["numbers"] != registered["numbers"])


def _row_security_findings(
    registered: Mapping[str, Any], live: Mapping[str, Any], properties: Properties | None
) -> Iterator[str]:
    if not live["on"]:
        return
    if not registered["on"]:
        yield "row security was enabled on its table"
    elif registered["bypassed"] and not live["bypassed"]:
        yield "policy cachesync_bypass is missing"
    if properties is not None and properties.restrictive_policies:
        yield f"policy {properties.restrictive_policies[0]} can hide rows from the services"


def _object_findings(registered: Mapping[str, Any], live: Mapping[str, Any]) -> Iterator[str]:
    """Describe the objects that are not as they were installed, those with the same change together."""
    changes: dict[str, list[str]] = {}
    for name, before in registered.items():
        if name in {"column numbers", "row security"}:
            continue
        now = live.get(name)
        if now is None:
            change = "is missing"
        elif now.get("enabled") != before.get("enabled"):
            change = _ENABLED.get(now["enabled"], "was changed")
        elif now.get("does") != before.get("does"):
            change = "was changed"
        elif before.get("able") and not now.get("able"):
            change = "belongs to a role without the privileges that it needs"
        else:
            continue
        changes.setdefault(change, []).append(name)
    for name, now in live.items():
        if name.startswith("trigger ") and name not in registered:
            # Of a partition, only a trigger that does not fire as it was installed is an object.
            change = _ENABLED.get(now["enabled"], "was added") if " of partition " in name else "was added"
            changes.setdefault(change, []).append(name)
    for change, names in changes.items():
        more = len(names) - _MAX_NAMES
        yield f"{', '.join(names[:_MAX_NAMES])}{f' and {more} more' if more > 0 else ''} {change}"
