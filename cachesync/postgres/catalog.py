"""The description of an entity's table in PostgreSQL's system catalog."""

from __future__ import annotations

import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cachesync.errors import InvalidValueError
from cachesync.postgres.statements import statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachesync.entity import Entity
    from cachesync.postgres.connect import Connection

VERSION_COLUMN: Final = "row_version"

_INTEGER_RANGES: Final = {
    name: (-(1 << bits - 1), (1 << bits - 1) - 1) for name, bits in (("int2", 16), ("int4", 32), ("int8", 64))
}
_TEXTS: Final = frozenset({"text", "varchar"})
# Types whose values have one canonical text, whatever the client's spelling; see `Column.canonical_key`.
KEY_TYPES: Final = frozenset({*_INTEGER_RANGES, *_TEXTS, "uuid"})
# Types whose values have the same text in every session; that of others may depend on `PAYLOAD_SETTINGS`.
_PLAIN: Final = frozenset({*KEY_TYPES, "bool", "bpchar", "numeric", "json", "jsonb"})
_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,18}")


def is_storable(text: str) -> bool:
    """Return whether PostgreSQL can store a text: it has no NUL, and no unpaired surrogate."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


@dataclass(frozen=True, slots=True)
class Column:
    """A column, with the properties that determine its valid values.

    Attributes:
        name: the name of the column.
        declared_type: the type as declared, such as `numeric(8,2)` or the name of a domain.
        base_type: PostgreSQL's internal name of the type, with domains resolved, such as `int8` or `_text`.
        category: the category letter of the type in `pg_type`, such as `A` for arrays.
        nullable: whether the column accepts null.
        has_default: whether an insert can omit the column even if it does not accept null.
        generated: whether only PostgreSQL can write the column.
        max_length: maximum number of characters of a `varchar(n)` or `char(n)`; None if there is no limit.
        precision: number of digits of a `numeric(p, s)`; None if there is no limit.
        scale: number of those digits after the decimal point; None if there is no limit.
        labels: the values of an enum; None for other types.
        deterministic: whether the collation treats texts as equal only if their bytes are the same.
        session_text: whether the text of a value depends on the session in a way that `PAYLOAD_SETTINGS`
            cannot determine for a service, such as on its search_path.
        own_cast: the name of a function that is not written in C and that PostgreSQL calls to convert a
            value, or a part of it, to JSON; None if there is none.
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
    session_text: bool
    own_cast: str | None

    @property
    def settings_text(self) -> bool:
        """Whether the text of a value can depend on `PAYLOAD_SETTINGS`."""
        return self.base_type not in _PLAIN and self.labels is None

    @property
    def integer_range(self) -> tuple[int, int] | None:
        """The minimum and maximum of an integer type; None for other types."""
        return _INTEGER_RANGES.get(self.base_type)

    def canonical_key(self, text: object) -> str:
        """Return the canonical form of a key, which names the slot and the messages of the row.

        Args:
            text: the key as text; for a `uuid`, in any spelling that Python accepts.

        Raises:
            InvalidValueError: the text is not a valid key of this column's type.
        """
        if not isinstance(text, str):
            message = f"a key is text, not {type(text).__name__}"
            raise InvalidValueError(self.name, message)
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
        elif is_storable(text) and (self.max_length is None or len(text) <= self.max_length):
            return text
        message = f"{text[:80]!r} is not a valid value of type {self.declared_type}"
        raise InvalidValueError(self.name, message)


@dataclass(frozen=True, slots=True)
class Properties:
    """The properties of a table that determine whether it can be registered.

    Attributes:
        kind: `relkind` of `pg_class`; `r` is an ordinary table.
        unlogged: whether the table is emptied after a crash.
        row_security: whether policies decide which rows a user sees.
        hides_rows: whether row security, if enabled, also applies to the owner of the table.
        restrictive_policies: the restrictive policies that apply to the role `cachesync_service`.
        late_triggers: the triggers of others that can change a new row after it got its version.
        subscribes: whether a subscription writes to the table.
        inherits: whether the table is a partition or part of an inheritance tree.
        key_columns: the columns of the primary key; empty if there is none.
        key_deferrable: whether the check of the primary key can be deferred until the commit.
        virtual_columns: the generated columns that are computed when they are read.
    """

    kind: str
    unlogged: bool
    row_security: bool
    hides_rows: bool
    restrictive_policies: tuple[str, ...]
    late_triggers: tuple[str, ...]
    subscribes: bool
    inherits: bool
    key_columns: tuple[str, ...]
    key_deferrable: bool
    virtual_columns: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Relation:
    """The description of an entity's table in the system catalog.

    Attributes:
        properties: whether the table can be registered.
        columns: the columns in order, without the row version.
        has_version: whether there is a column with the name of the row version.
    """

    properties: Properties
    columns: tuple[Column, ...]
    has_version: bool

    def served(self, entity: Entity) -> tuple[Column, ...]:
        """Return the columns that the entity declares, in its order; all if it declares none."""
        if entity.columns is None:
            return self.columns
        by_name = {column.name: column for column in self.columns}
        return tuple(by_name[name] for name in entity.columns)


async def describe_tables(
    connection: Connection, tables: Sequence[tuple[str, str]]
) -> dict[tuple[str, str], Properties]:
    """Read the properties of tables, given as (schema, name); those that do not exist are missing."""
    records = await connection.fetch(
        statement("postgres/relation"), [schema for schema, _ in tables], [name for _, name in tables]
    )
    return {
        (record["schema_name"], record["table_name"]): Properties(
            kind=record["kind"].decode(),
            unlogged=record["unlogged"],
            row_security=record["row_security"],
            hides_rows=record["hides_rows"],
            restrictive_policies=tuple(record["restrictive_policies"]),
            late_triggers=tuple(record["late_triggers"]),
            subscribes=record["subscribes"],
            inherits=record["inherits"],
            key_columns=tuple(record["key_columns"]),
            key_deferrable=record["key_deferrable"],
            virtual_columns=tuple(record["virtual_columns"]),
        )
        for record in records
    }


async def describe_relation(connection: Connection, entity: Entity) -> Relation | None:
    """Read the description of an entity's table; None if the table does not exist."""
    async with connection.transaction():
        # The names of types, with which statements are made, must not depend on the session's settings.
        await connection.execute("SET LOCAL search_path = pg_catalog; SET LOCAL quote_all_identifiers = off")
        described = await describe_tables(connection, [entity.schema_and_table])
        columns = await connection.fetch(statement("postgres/columns"), *entity.schema_and_table)
    properties = described.get(entity.schema_and_table)
    if properties is None:
        return None
    return Relation(
        properties=properties,
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
