"""An entity's table as a service reads and writes it."""

from __future__ import annotations

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final

import asyncpg

from cachesync.change import Row
from cachesync.errors import (
    ConstraintViolatedError,
    DuplicateRowError,
    InvalidValueError,
    NotInstalledError,
    ReferenceViolatedError,
    RowError,
)
from cachesync.postgres.catalog import describe_relation, fingerprint
from cachesync.postgres.payload import payload_expression
from cachesync.postgres.statements import identifier, statement
from cachesync.service.row_input import RowInput

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Sequence

    from cachesync.entity import Entity
    from cachesync.postgres.catalog import Column
    from cachesync.postgres.connect import Connection
    from cachesync.service.database import Database

_NOTHING: Final = RowInput.from_mapping({})

# What reading a value's text may raise: some types look names up, some are not built into every server.
_NO_VALUE: Final = (asyncpg.DataError, asyncpg.SyntaxOrAccessError, asyncpg.FeatureNotSupportedError)


class Table:
    """Reads and writes the rows of one entity, each call on a connection of the pool.

    All methods raise DatabaseUnavailableError where the database does not answer, those that write
    also the subclasses of RowError.

    Attributes:
        columns: the served columns.
        key_column: the primary key.
        fingerprint: the schema fingerprint of the payloads that it reads.
    """

    def __init__(
        self,
        database: Database,
        entity: Entity,
        columns: tuple[Column, ...],
        fingerprint: bytes,
        constraints: dict[str, tuple[str, ...]],
    ) -> None:
        self._database = database
        self._entity = entity
        self._constraints = constraints
        self._columns = {column.name: column for column in columns}
        self.columns = columns
        self.key_column = self._columns[entity.key]
        self.fingerprint = fingerprint
        self._fragments = {
            "table": identifier(*entity.schema_and_table),
            "key": identifier(entity.key),
            "key_type": self.key_column.declared_type,
            "payload": payload_expression("t", [column.name for column in columns]),
        }
        self._read = statement("service/read", **self._fragments)
        self._page = statement("service/page", **self._fragments)
        self._delete = statement("service/delete", **self._fragments)
        # Their number is bounded by what clients leave out: one per set of columns seen.
        self._writes: dict[tuple[str, ...], str] = {}

    @classmethod
    async def open(cls, database: Database, entity: Entity) -> Table:
        """Compare the declaration with what is installed.

        Raises:
            NotInstalledError: they differ, or nothing is installed.
            DatabaseUnavailableError: the database does not answer.
        """
        async with database.connection() as connection:
            if await connection.fetchval("SELECT to_regclass('cachesync.entity')") is None:
                message = "the database has no schema 'cachesync'; run `cachesync install`"
                raise NotInstalledError(message)
            registered = await connection.fetchrow(
                "SELECT * FROM cachesync.entity WHERE name = $1", entity.name
            )
            relation = await describe_relation(connection, entity)
            if registered is None or relation is None:
                message = f"entity {entity.name!r} is declared but not installed; run `cachesync install`"
                raise NotInstalledError(message)
            served = {column.name: column for column in relation.columns}
            columns = tuple(served[name] for name in registered["columns"])
            shape = fingerprint(entity, columns, registered["installation"])
            declared = entity.columns or registered["columns"]
            same_table = (registered["schema_name"], registered["table_name"]) == entity.schema_and_table
            if (
                shape != registered["fingerprint"]
                or tuple(declared) != tuple(registered["columns"])
                or not same_table
            ):
                message = (
                    f"entity {entity.name!r} is not installed as it is declared; run `cachesync install`"
                )
                raise NotInstalledError(message)
            constraints = await connection.fetch(statement("service/constraints"), *entity.schema_and_table)
        return cls(
            database,
            entity,
            columns,
            shape.encode(),
            {record["name"]: tuple(record["columns"] or ()) for record in constraints},
        )

    async def read(self, key: str) -> Row | None:
        """The row with this key."""
        async with self._database.connection() as connection:
            record = await connection.fetchrow(self._read, key)
        return None if record is None else self._row(key, record)

    async def page(self, after: str | None, limit: int) -> list[Row]:
        """At most `limit` rows in key order whose keys follow `after`."""
        async with self._database.connection() as connection:
            records = await connection.fetch(self._page, after, limit)
        return [self._row(record["key"], record) for record in records]

    async def insert(self, row: RowInput) -> Row:
        """Insert a row and return it."""
        query = self._insert(row.columns)
        arguments = [row.text] if row.values else []
        async with self._writing(row) as connection, connection.transaction():
            key = await connection.fetchval(query, *arguments)
            # The insert's trigger may have drawn a second version, which RETURNING does not show.
            record = await connection.fetchrow(self._read, key)
        if record is None:
            message = "a trigger of the table dropped the new row"
            raise ConstraintViolatedError(None, (), message)
        return self._row(key, record)

    async def replace(self, key: str, row: RowInput, expected: Sequence[int] | None) -> Row | None:
        """Assign every column but the key, its default where the object leaves it out.

        Returns:
            The row after it; None where no row has this key and one of the `expected` versions.
        """
        return await self._update("replace", key, row, expected)

    async def merge(self, key: str, patch: RowInput, expected: Sequence[int] | None) -> Row | None:
        """Apply a JSON merge patch (RFC 7396); returns like `replace`."""
        return await self._update("merge", key, patch, expected)

    async def delete(self, key: str, expected: Sequence[int] | None) -> int | None:
        """Delete the row.

        Returns:
            The version that the delete drew; None where no row has this key and an expected version.
        """
        async with self._writing(_NOTHING) as connection, connection.transaction():
            if await connection.fetchval(self._delete, key, expected) is None:
                return None
            version: int = await connection.fetchval(
                "SELECT cachesync.latest_version($1, $2)", self._entity.name, key
            )
            return version

    async def _update(
        self, kind: str, key: str, given: RowInput, expected: Sequence[int] | None
    ) -> Row | None:
        query = self._update_of(kind, given.columns)
        if query is None:
            row = await self.read(key)
            return row if row is not None and (expected is None or row.version in expected) else None
        async with self._writing(given) as connection:
            record = await connection.fetchrow(query, key, given.text, expected)
        return None if record is None else self._row(key, record)

    def _row(self, key: str, record: asyncpg.Record) -> Row:
        return Row(key, record["version"], self.fingerprint, record["payload"].encode())

    def _insert(self, columns: Sequence[str]) -> str:
        """The statement that inserts these columns."""
        cached = ("insert", *sorted(columns))
        if cached not in self._writes:
            names = [identifier(name) for name in cached[1:]]
            self._writes[cached] = statement(
                "service/insert" if names else "service/insert_defaults",
                columns=", ".join(names),
                values=", ".join(f"p.{name}" for name in names),
                definitions=_definitions(self._named(cached[1:])),
                **self._fragments,
            )
        return self._writes[cached]

    def _update_of(self, kind: str, columns: Sequence[str]) -> str | None:
        """The statement that updates these columns; None where there is nothing to assign."""
        cached = (kind, *sorted(columns))
        if cached not in self._writes:
            given = self._named(cached[1:])
            assignments = ", ".join(self._assignments(kind, given))
            if not assignments:
                return None
            self._writes[cached] = statement(
                "service/update",
                assignments=assignments,
                definitions=_definitions(given or [self.key_column]),
                **self._fragments,
            )
        return self._writes[cached]

    def _named(self, names: Iterable[str]) -> list[Column]:
        for name in names:
            if name not in self._columns:
                raise InvalidValueError(name, f"is not a column of the entity {self._entity.name}")
        return [self._columns[name] for name in names]

    def _assignments(self, kind: str, given: Sequence[Column]) -> Iterable[str]:
        names = {column.name for column in given}
        for column in self.columns if kind == "replace" else given:
            name = identifier(column.name)
            if column.generated or column is self.key_column:
                continue
            if column.name not in names:
                yield f"{name} = DEFAULT"
            elif kind == "merge" and column.base_type == "jsonb":
                yield f"{name} = cachesync.merge_patch(t.{name}, p.{name})"
            else:
                yield f"{name} = p.{name}"

    @asynccontextmanager
    async def _writing(self, given: RowInput) -> AsyncIterator[Connection]:
        async with self._database.connection() as connection:
            try:
                yield connection
            except asyncpg.PostgresError as error:
                refusal = self._refusal(error)
                if refusal is None or _names_no_column(refusal):
                    refusal = await self._located(connection, given) or refusal
                if refusal is None:
                    raise
                raise refusal from error

    def _refusal(self, error: asyncpg.PostgresError) -> RowError | None:
        """What an error of the server means to who asked for the write; None: nothing, it is not theirs."""
        columns = self._constraints.get(error.constraint_name or "", ())
        detail = error.detail or error.message
        refusal: RowError | None = None
        match error:
            case asyncpg.UniqueViolationError() | asyncpg.ExclusionViolationError():
                refusal = DuplicateRowError(columns, detail)
            case asyncpg.NotNullViolationError():
                refusal = ConstraintViolatedError(None, (error.column_name or "",), "must not be null")
            case asyncpg.ForeignKeyViolationError():
                refusal = ReferenceViolatedError(error.constraint_name, columns, error.message)
            case asyncpg.IntegrityConstraintViolationError():
                refusal = ConstraintViolatedError(error.constraint_name, columns, error.message)
            case asyncpg.RaiseError():
                refusal = ConstraintViolatedError(None, (), error.message)
            case asyncpg.DataError() | asyncpg.ProgramLimitExceededError():
                refusal = InvalidValueError(error.column_name, error.message)
        return refusal

    async def _located(self, connection: Connection, given: RowInput) -> RowError | None:
        """Find the first invalid value by asking for each on its own; used on an error path only."""
        # In the order of the statement, so that the column is the one that PostgreSQL complained about.
        for name in sorted(given.columns):
            column = self._columns[name]
            query = statement("service/locate", column=identifier(name), definition=_definitions([column]))
            try:
                await connection.fetchval(query, given.only(name))
            except _NO_VALUE as error:
                return InvalidValueError(name, error.message)
            except asyncpg.IntegrityConstraintViolationError as error:
                return ConstraintViolatedError(error.constraint_name, (name,), error.message)
        return None


def _names_no_column(refusal: RowError) -> bool:
    """Whether a value could be to blame, such as one that a domain's constraint refuses."""
    match refusal:
        case InvalidValueError(column=None) | ConstraintViolatedError(columns=()):
            return True
    return False


def _definitions(columns: Iterable[Column]) -> str:
    return ", ".join(f"{identifier(column.name)} {column.declared_type}" for column in columns)
