"""The description of an entity's table in PostgreSQL's system catalog."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from cachesync.errors import InvalidValueError
from cachesync.postgres.canonical import INTEGER_RANGES, KEY_TYPES, canonical_text
from cachesync.postgres.statements import identifier, statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachesync.entity import Entity
    from cachesync.postgres.connect import Connection

VERSION_COLUMN: Final = "row_version"

# Types whose values have the same text in every session; that of others may depend on `PAYLOAD_SETTINGS`.
_PLAIN: Final = frozenset(
    {*INTEGER_RANGES, "text", "varchar", "uuid", "bool", "bpchar", "numeric", "json", "jsonb"}
)


@dataclass(frozen=True, slots=True)
class Column:
    """A column, with the properties that determine its valid values.

    Attributes:
        name: the name of the column.
        declared_type: the type as declared, such as `numeric(8,2)` or the name of a domain.
        base_type: PostgreSQL's internal name of the type, with domains resolved, such as `int8` or `_text`.
        type_schema: the schema of that type.
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
        cast_enum: whether the type is an enum with casts of its own, which could run code of its owner.
    """

    name: str
    declared_type: str
    base_type: str
    type_schema: str
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
    cast_enum: bool

    @property
    def settings_text(self) -> bool:
        """Whether the text of a value can depend on `PAYLOAD_SETTINGS`."""
        return self.base_type not in _PLAIN and self.labels is None

    @property
    def integer_range(self) -> tuple[int, int] | None:
        """The minimum and maximum of an integer type; None for other types."""
        return INTEGER_RANGES.get(self.base_type)

    @property
    def sql_type(self) -> str:
        """The base type in SQL: not a domain, nor a type with a length, and whatever the search_path is."""
        return identifier(self.type_schema, self.base_type)

    @property
    def can_be_key(self) -> bool:
        """Whether the values of the column have a canonical text."""
        if self.labels is not None:
            return not self.cast_enum
        return self.type_schema == "pg_catalog" and self.base_type in KEY_TYPES

    @property
    def can_be_found(self) -> bool:
        """Whether rows can be found by a unique value of the column."""
        # Without a length, equal values of char have different texts in JSON.
        is_varying = self.base_type == "bpchar" and self.max_length is None
        return self.can_be_key and self.deterministic and not is_varying

    def in_payload(self, canonical: str) -> str:
        """Return the text of a value in JSON, where a number has no zeros at the end of its fraction.

        Args:
            canonical: the canonical text of the value.
        """
        if self.base_type == "timestamptz":
            return canonical.replace("Z", "+00:00")
        return canonical.ljust(self.max_length or 0) if self.base_type == "bpchar" else canonical

    def canonical_key(self, text: object) -> str:
        """Return the canonical form of a value of a key column.

        Args:
            text: the value as text, in one of its spellings.

        Raises:
            InvalidValueError: the text is not a valid key of this column's type.
        """
        if not isinstance(text, str):
            message = f"a key is text, not {type(text).__name__}"
            raise InvalidValueError(self.name, message)
        canonical = canonical_text(self, text)
        if canonical is not None:
            return canonical
        message = f"{text[:80]!r} is not a valid value of type {self.declared_type}"
        raise InvalidValueError(self.name, message)


@dataclass(frozen=True, slots=True)
class Properties:
    """The properties of a table that determine whether it can be registered.

    Attributes:
        kind: `relkind` of `pg_class`; `r` is an ordinary table or a partition, `p` a partitioned table.
        is_partition: whether the table is a partition, partitioned itself or not.
        unlogged: whether the table, or a partition of it, is emptied after a crash.
        foreign_partitions: the partitions that are foreign tables.
        typed: whether a composite type decides which columns the table has.
        row_security: whether policies decide which rows a user sees.
        hides_rows: whether row security, if enabled, also applies to the owner of the table.
        restrictive_policies: the restrictive policies that apply to the role `cachesync_service`.
        late_triggers: the triggers of others that can change a new row after it got its version.
        subscribes: whether a subscription writes to the table.
        inherits: whether the table is part of an inheritance tree, other than as a partition.
        key_columns: the columns of the primary key; empty if there is none.
        key_deferrable: whether the check of the primary key can be deferred until the commit.
        key_incomplete: whether partitions lack the primary key.
        unique: the sets of columns on which there is a unique index that is valid, for all rows, and without
            expressions. Its check can be deferred until the commit, which is when others see the rows.
        virtual_columns: the generated columns that are computed when they are read.
    """

    kind: str
    is_partition: bool
    unlogged: bool
    foreign_partitions: tuple[str, ...]
    typed: bool
    row_security: bool
    hides_rows: bool
    restrictive_policies: tuple[str, ...]
    late_triggers: tuple[str, ...]
    subscribes: bool
    inherits: bool
    key_columns: tuple[str, ...]
    key_deferrable: bool
    key_incomplete: bool
    unique: frozenset[frozenset[str]]
    virtual_columns: tuple[str, ...]

    @property
    def has_relatives(self) -> bool:
        """Whether a statement that names another table can write rows of this one."""
        return self.is_partition or self.kind == "p"


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
            is_partition=record["is_partition"],
            unlogged=record["unlogged"],
            foreign_partitions=tuple(record["foreign_partitions"]),
            typed=record["typed"],
            row_security=record["row_security"],
            hides_rows=record["hides_rows"],
            restrictive_policies=tuple(record["restrictive_policies"]),
            late_triggers=tuple(record["late_triggers"]),
            subscribes=record["subscribes"],
            inherits=record["inherits"],
            key_columns=tuple(record["key_columns"]),
            key_deferrable=record["key_deferrable"],
            key_incomplete=record["key_incomplete"],
            unique=frozenset(map(frozenset, json.loads(record["unique_columns"]))),
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
