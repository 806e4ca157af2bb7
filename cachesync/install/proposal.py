"""Proposes an entity for each table of a database that can be registered."""

from __future__ import annotations

import re
import unicodedata
from typing import TYPE_CHECKING, Final, NamedTuple

from pydantic import ValidationError

from cachesync.entity import MAX_NAME, Entity
from cachesync.errors import SettingsError
from cachesync.install.checks import RESERVED_NAMES, table_problems, unserved
from cachesync.mistakes import did_you_mean, in_words
from cachesync.postgres.catalog import describe_relation, describe_tables
from cachesync.postgres.lookup import possible_lookups
from cachesync.postgres.requirements import unmet_requirements
from cachesync.postgres.statements import statement

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    import asyncpg

    from cachesync.postgres.catalog import Properties

TTL: Final = "1h"
"""The `ttl` of a proposed entity."""
ABSENT_TTL: Final = "30s"
"""The `absent_ttl` of a proposed entity."""

# The services use the paths with these names themselves.
_TAKEN: Final = RESERVED_NAMES | {"health", "metrics"}
# Where a word begins in a name such as OrderLine or HTTPLog.
_WORD: Final = re.compile(r"(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


class Proposed(NamedTuple):
    """A table that can be registered.

    Attributes:
        entity: its declaration.
        unserved: why the declaration leaves out columns.
        unique: the columns by which rows could be looked up.
    """

    entity: Entity
    unserved: tuple[str, ...]
    unique: list[tuple[str, ...]]


class Proposal(NamedTuple):
    """What to declare for a database.

    Attributes:
        tables: the tables that can be registered.
        left_out: why the others cannot, by their names in an entities file.
    """

    tables: list[Proposed]
    left_out: dict[str, str]


async def propose(connection: asyncpg.Connection, schemas: Collection[str] = ()) -> Proposal:
    """Propose an entity for each table that can be registered; nothing is written.

    Args:
        connection: a connection of a user who may read the catalog.
        schemas: the schemas whose tables to propose; all if there are none.

    Raises:
        SettingsError: a schema has no tables.
    """
    candidates = await connection.fetch(statement("install/candidates"))
    known = {record["schema_name"] for record in candidates}
    if unknown := [name for name in schemas if name not in known]:
        raise SettingsError(
            "\n".join(f"schema {name!r} has no tables{did_you_mean(name, known)}" for name in unknown)
        )
    reasons = {
        (record["schema_name"], record["table_name"]): record["reason"]
        for record in candidates
        if record["schema_name"] in (schemas or known)
    }
    described = await describe_tables(connection, list(reasons))
    proposal = Proposal([], {})
    names = set(_TAKEN)
    for (schema, table), reason in reasons.items():
        properties = described.get((schema, table))
        if properties is None:  # It was dropped a moment ago.
            continue
        proposed = reason or await _proposed(connection, schema, table, properties, names)
        if isinstance(proposed, str):
            proposal.left_out[_declared(schema, table)] = proposed
        else:
            names.add(proposed.entity.name)
            proposal.tables.append(proposed)
    declared = {proposed.entity.table for proposed in proposal.tables}
    for record in candidates:
        name = _declared(record["schema_name"], record["table_name"])
        root = record["root_table"] and _declared(record["root_schema"], record["root_table"])
        if root in declared and name in proposal.left_out:
            proposal.left_out[name] += ", whose entity has its rows"
    return proposal


async def _proposed(
    connection: asyncpg.Connection, schema: str, table: str, properties: Properties, taken: Collection[str]
) -> Proposed | str:
    """Return the proposal for a table, or why there is none."""
    key = properties.key_columns
    if not key:
        return "; ".join(unmet_requirements(_declared(schema, table), ("...",), properties))
    name = next(name for name in _names(schema, table) if name not in taken)
    declaration = {
        "name": name,
        "table": _declared(schema, table),
        "key": key,
        "ttl": TTL,
        "absent_ttl": ABSENT_TTL,
        "path": f"/{name.replace('_', '-')}",
    }
    try:
        entity = Entity.model_validate(declaration)
    except ValidationError as error:
        # Such as a name with a dot, which cannot be declared.
        return "; ".join(
            f"its {one['loc'][0]} {in_words(one['type'], one['msg'], one.get('ctx', {}))}"
            for one in error.errors(include_url=False)
        )
    relation = await describe_relation(connection, entity)
    if relation is None:
        return "it was dropped a moment ago"
    reasons = {
        column.name: reason
        for column in relation.columns
        if column.name not in entity.key
        for reason in unserved(column, properties)
    }
    if reasons:
        served = tuple(column.name for column in relation.columns if column.name not in reasons)
        entity = Entity.model_validate({**declaration, "columns": served})
    problems = await table_problems(connection, entity, relation)
    unique = possible_lookups(entity, relation.served(entity), properties.unique)
    return "; ".join(problems) or Proposed(entity, tuple(reasons.values()), unique)


def _declared(schema: str, table: str) -> str:
    """Return the name of a table as the entities file has it."""
    return table if schema == "public" and "." not in table else f"{schema}.{table}"


def _names(schema: str, table: str) -> Iterator[str]:
    """Yield valid names for the entity of a table, the best one first."""
    name = _valid(table)
    yield name
    qualified = _valid(f"{schema}_{table}")
    yield qualified
    number = 2
    while True:
        suffix = f"_{number}"
        yield qualified[: MAX_NAME - len(suffix)] + suffix
        number += 1


def _valid(text: str) -> str:
    """Return the valid name of an entity that is most similar to a text."""
    ascii_text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    name = re.sub(r"[^a-z0-9]+", "_", _WORD.sub("_", ascii_text).lower()).strip("_")
    if not name[:1].isalpha():
        name = f"table_{name}".rstrip("_")
    return name[:MAX_NAME].rstrip("_")
