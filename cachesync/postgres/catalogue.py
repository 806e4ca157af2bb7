"""What PostgreSQL's own catalogue says of an entity's table."""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cachesync.errors import InvalidValueError
from cachesync.postgres.statements import statement

if TYPE_CHECKING:
    from cachesync.entity import Entity
    from cachesync.postgres.connect import Connection

VERSION_COLUMN: Final = "row_version"

_INTEGER_RANGES: Final = {
    name: (-(1 << bits - 1), (1 << bits - 1) - 1) for name, bits in (("int2", 16), ("int4", 32), ("int8", 64))
}
_TEXTS: Final = frozenset({"text", "varchar"})
# Types whose text is the same however a client spells the value, once it is brought into this form.
KEY_TYPES: Final = frozenset({*_INTEGER_RANGES, *_TEXTS, "uuid"})
_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,18}")


@dataclass(frozen=True, slots=True)
class Column:
    """A column, and what decides which values it takes.

    Attributes:
        name: its name.
        declared_type: its type as declared, such as `numeric(8,2)` or a domain's name.
        base_type: PostgreSQL's internal name of the type under any domain, such as `int8` or `_text`.
        category: the type's category letter of `pg_type`, such as `A` for an array.
        nullable: whether it takes null.
        has_default: whether an insert may leave it out although it does not take null.
        generated: whether PostgreSQL alone writes it.
        max_length: the most characters of a `varchar(n)` or `char(n)`.
        precision: the digits of a `numeric(p, s)`.
        scale: those of them after the point.
        labels: the values of an enum.
        deterministic: whether equal texts are the same bytes under its collation.
    """

    name: str
    declared_type: str
    base_type: str
    category: str
    nullable: bool
    has_default: bool
    generated: bool
    max_length: int | None
    precision: int | None
    scale: int | None
    labels: tuple[str, ...] | None
    deterministic: bool

    @property
    def integer_range(self) -> tuple[int, int] | None:
        """The least and the greatest integer that it takes, None for another type."""
        return _INTEGER_RANGES.get(self.base_type)

    def canonical_key(self, text: str) -> str:
        """The key in the one form that names its slot and its messages.

        Raises:
            InvalidValueError: the text cannot be a key of this column's type.
        """
        bounds = _INTEGER_RANGES.get(self.base_type)
        if bounds is not None:
            low, high = bounds
            if _INTEGER.fullmatch(text) and low <= int(text) <= high:
                return text
        elif self.base_type == "uuid":
            try:
                return str(uuid.UUID(text))
            except ValueError:
                pass
        elif "\0" not in text and (self.max_length is None or len(text) <= self.max_length):
            return text
        message = f"{text[:80]!r} is no value of type {self.declared_type}"
        raise InvalidValueError(self.name, message)


@dataclass(frozen=True, slots=True)
class Relation:
    """The table of an entity as the catalogue describes it.

    Attributes:
        kind: `relkind` of `pg_class`; `r` is an ordinary table.
        unlogged: whether it is emptied after a crash.
        hides_rows: whether its row security applies to its owner, too.
        subscribes: whether a subscription writes to it.
        inherits: whether it is a partition, or part of an inheritance tree.
        key_columns: the columns of its primary key; empty without one.
        key_deferrable: whether the primary key may be checked at commit only.
        virtual_columns: the columns that are computed whenever they are read.
        columns: the columns in order, without the row version.
        has_version: whether it has a column named as the row version.
    """

    kind: str
    unlogged: bool
    hides_rows: bool
    subscribes: bool
    inherits: bool
    key_columns: tuple[str, ...]
    key_deferrable: bool
    virtual_columns: tuple[str, ...]
    columns: tuple[Column, ...]
    has_version: bool

    def served(self, entity: Entity) -> tuple[Column, ...]:
        """The columns that the entity declares, in its order; all where it names none."""
        if entity.columns is None:
            return self.columns
        by_name = {column.name: column for column in self.columns}
        return tuple(by_name[name] for name in entity.columns)


async def describe_relation(connection: Connection, entity: Entity) -> Relation | None:
    """Read the catalogue's description of an entity's table; None where there is no such table."""
    schema, table = entity.schema_and_table
    async with connection.transaction():
        # Types are named with their schema, lest the fingerprint depend on the session's search_path.
        await connection.execute("SET LOCAL search_path = pg_catalog")
        relation = await connection.fetchrow(statement("postgres/relation"), schema, table)
        columns = await connection.fetch(statement("postgres/columns"), schema, table)
    if relation is None:
        return None
    return Relation(
        kind=relation["kind"].decode(),
        unlogged=relation["unlogged"],
        hides_rows=relation["hides_rows"],
        subscribes=relation["subscribes"],
        inherits=relation["inherits"],
        key_columns=tuple(relation["key_columns"]),
        key_deferrable=relation["key_deferrable"],
        virtual_columns=tuple(relation["virtual_columns"]),
        columns=tuple(
            Column(
                **{
                    **column,
                    "category": column["category"].decode(),
                    "labels": None if column["labels"] is None else tuple(column["labels"]),
                }
            )
            for column in columns
            if column["name"] != VERSION_COLUMN
        ),
        has_version=any(column["name"] == VERSION_COLUMN for column in columns),
    )


def fingerprint(entity: Entity, columns: tuple[Column, ...], installation: int) -> str:
    """Eight hexadecimal digits that differ between payloads of different shape or installation."""
    shape = [installation, entity.name, [[column.name, column.declared_type] for column in columns]]
    return hashlib.sha256(json.dumps(shape).encode()).hexdigest()[:8]
