"""A service's access to the table of an entity."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import asyncpg

from cachesync.change import Row
from cachesync.errors import (
    CaptureLostError,
    ConstraintViolatedError,
    DuplicateRowError,
    InvalidValueError,
    NotInstalledError,
    PrivilegeError,
    ReferenceViolatedError,
    RowError,
)
from cachesync.postgres.catalog import VERSION_COLUMN, describe_relation
from cachesync.postgres.connect import is_unavailable
from cachesync.postgres.key import Key
from cachesync.postgres.lookup import lookup_problems, lookups_of
from cachesync.postgres.payload import payload_expression
from cachesync.postgres.registry import read_registry
from cachesync.postgres.statements import identifier, literal, statement
from cachesync.service.database import UncommittedError, past_the_cache
from cachesync.service.own_changes import committed_changes
from cachesync.service.row_input import RowInput

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
    from datetime import datetime

    from cachesync.change import Change
    from cachesync.entity import Entity
    from cachesync.postgres.catalog import Column
    from cachesync.postgres.connect import Connection
    from cachesync.postgres.registry import Registration
    from cachesync.service.database import Database

_NO_VALUES: Final = RowInput.from_mapping({})

# The bits of the writes in pg_trigger.tgtype.
_EVENTS: Final = {"insert": 4, "delete": 8, "update": 16}
# Raised by the function `cachesync.drawn`.
_DREW_NO_VERSION: Final = "CS001"
# Raised by the function `cachesync.bounded`.
_TOO_LARGE: Final = "CS002"
# Raised by the function `cachesync.kept`.
_KEPT_NO_ROW: Final = "CS003"
_DISCARDED: Final = "a trigger of the table discarded the new row"


class Page(list[Row]):
    """Rows in key order.

    Args:
        rows: the rows.
        more: whether other rows follow.

    Attributes:
        more: whether other rows follow.
    """

    def __init__(self, rows: Iterable[Row], *, more: bool) -> None:
        super().__init__(rows)
        self.more = more


@dataclass(frozen=True, slots=True)
class Transaction:
    """A committed transaction that can have changed more than the row that it wrote.

    Attributes:
        name: its ID in the change log.
        began: when it began, according to the database.
        started: when it was started, according to the event loop.
    """

    name: str
    began: datetime
    started: float


@dataclass(frozen=True, slots=True)
class Commit:
    """A committed write.

    Attributes:
        key: the key of the row.
        version: the row version that the write drew.
        row: the row as the statement returned it; None after a delete.
        transaction: the transaction; None if it can have changed nothing else.
    """

    key: str
    version: int
    row: Row | None
    transaction: Transaction | None


class Table:
    """Reads and writes the rows of one entity, each call on a connection of the pool.

    All methods raise a DatabaseUnavailableError if the database does not respond. The methods that write also
    raise the subclasses of RowError.

    Args:
        database: the database.
        entity: the entity.
        registration: the entity as it is registered.
        columns: the served columns.
        constraints: the columns of each constraint and unique index of the table, by its name.
        partitioned: whether the table is partitioned.
        row_limit: maximum size of the payload of a written row, in bytes.

    Attributes:
        entity: the entity.
        columns: the served columns.
        key: the key.
        lookups: the unique lookups by name.
        registration: the entity as it was registered when the table was opened.
        fingerprint: the schema fingerprint of the payloads that are read.
    """

    def __init__(
        self,
        database: Database,
        entity: Entity,
        registration: Registration,
        columns: tuple[Column, ...],
        *,
        constraints: dict[str, tuple[str, ...]],
        partitioned: bool,
        row_limit: int,
    ) -> None:
        self._database = database
        self._partitioned = partitioned
        self.entity = entity
        self._constraints = constraints
        self._row_limit = row_limit
        self._columns = {column.name: column for column in columns}
        self.columns = columns
        self.key = Key.of(entity, columns)
        self.lookups = lookups_of(entity, columns)
        self.registration = registration
        self.fingerprint = registration.fingerprint.encode()
        self._fragments = {
            "table": identifier(*entity.schema_and_table),
            "key_text": self.key.text("t"),
            "key_columns": self.key.listed("t"),
            "has_key": self.key.matches("t", "$1::text"),
            "has_each_key": self.key.matches("t", "u.key"),
            "old_has_key": self.key.matches("o", "$1::text"),
            "payload": payload_expression(
                "t",
                [column.name for column in columns],
                session_text=any(column.session_text for column in columns),
            ),
        }
        self._read = statement("service/read", **self._fragments)
        many = statement("service/read_many", **self._fragments)
        self._read_many = self._in_any_session(many)
        if not database.has_payload_settings:
            self._read = statement("service/read_elsewhere", query=literal(many), keys="ARRAY[$1::text]")
        self._find = {
            name: self._in_any_session(
                statement("service/find", has_value=lookup.matches("t", "u.value"), **self._fragments)
            )
            for name, lookup in self.lookups.items()
        }
        self._first_page = statement("service/following", follows="$1::text IS NULL", **self._fragments)
        self._page = statement(
            "service/following", follows=self.key.follows("t", "$1::text"), **self._fragments
        )
        self._delete = statement("service/delete", spreads=self._spreads("delete"), **self._fragments)
        # One entry per set of columns that clients send, which bounds their number.
        self._writes: dict[tuple[str, ...], str] = {}

    @classmethod
    async def open_all(cls, database: Database, entities: Iterable[Entity], row_limit: int) -> list[Table]:
        """Return the tables of entities.

        Args:
            database: the database.
            entities: the entities.
            row_limit: maximum size of the payload of a written row, in bytes.

        Raises:
            NotInstalledError: an entity is not installed, or on another table or with other columns than
                declared, or a served column is missing.
            PrivilegeError: the login does not have the role of a service.
            DatabaseUnavailableError: the database did not respond.
        """
        async with database.connection() as connection:
            # Its cost grows with the number of registered entities, so that it is read once for all.
            registry = await read_registry(connection)
            tables = [
                await cls._open(database, connection, entity, installed(registry, entity), row_limit)
                for entity in entities
            ]
        for table in tables:
            if table.entity.columns not in {None, table.registration.columns}:
                raise NotInstalledError(_not_as_declared(table.entity))
        return tables

    @classmethod
    async def _open(
        cls,
        database: Database,
        connection: Connection,
        entity: Entity,
        registration: Registration,
        row_limit: int,
    ) -> Table:
        relation = await describe_relation(connection, entity)
        served = {} if relation is None else {column.name: column for column in relation.columns}
        if not served.keys() >= set(registration.columns):
            raise NotInstalledError(registration.problem or _not_as_declared(entity))
        if not set(registration.columns) >= {name for names in entity.unique for name in names}:
            raise NotInstalledError(_not_as_declared(entity))
        if problems := [*lookup_problems(entity, served, registration.unique)]:
            message = f"entity {entity.name!r}: {'; '.join(problems)}"
            raise NotInstalledError(message)
        # A worker's login can read the registry, but its requests would all fail.
        table = identifier(*entity.schema_and_table)
        if not await connection.fetchval("SELECT has_table_privilege($1, 'DELETE')", table):
            login = await connection.fetchval("SELECT quote_ident(current_user)")
            message = (
                f"the login {login} may not change table {table}; run GRANT cachesync_service TO {login}, or "
                "`cachesync install` if it has that role"
            )
            raise PrivilegeError(message)
        constraints = await connection.fetch(statement("service/constraints"), *entity.schema_and_table)
        return cls(
            database,
            entity,
            registration,
            tuple(served[name] for name in registration.columns),
            constraints={record["name"]: tuple(record["columns"] or ()) for record in constraints},
            partitioned=relation is not None and relation.properties.kind == "p",
            row_limit=row_limit,
        )

    async def reopened(self, connection: Connection, registration: Registration) -> Table:
        """Return the table as it is now.

        Args:
            connection: a connection with the role `cachesync_service`.
            registration: the entity as it is registered now.

        Raises:
            NotInstalledError: a served column is missing.
            PrivilegeError: the login does not have the role of a service.
        """
        return await Table._open(self._database, connection, self.entity, registration, self._row_limit)

    async def read(self, key: str) -> Row | None:
        """Return the row with a key in canonical form; None if there is none."""
        async with self._reading() as connection:
            try:
                record = await connection.fetchrow(self._read, key)
            except asyncpg.DataError:
                # The encoding of the database lacks a character of the key.
                return None
        return None if record is None else self._row(key, record)

    def _in_any_session(self, query: str) -> str:
        """Return a query for rows whose parameter is a list of texts, for a session with any settings."""
        if self._database.has_payload_settings:
            return query
        return statement("service/read_elsewhere", query=literal(query), keys="$1::text []")

    async def find(self, lookup: str, text: str) -> Row | None:
        """Return the row that has a value in unique columns; None if there is none.

        Args:
            lookup: the name of the lookup.
            text: the canonical text of the value.
        """
        async with self._reading() as connection:
            try:
                record = await connection.fetchrow(self._find[lookup], [text])
            except asyncpg.DataError:
                # As for the key.
                return None
        return None if record is None else self._row(record["key"], record)

    async def read_many(self, keys: Sequence[str]) -> dict[str, Row]:
        """Return the rows that exist, by key, of those with the given keys in canonical form."""
        async with self._reading() as connection:
            try:
                records = await connection.fetch(self._read_many, keys)
            except asyncpg.DataError:
                if len(keys) == 1:
                    return {}
                # The encoding of the database lacks a character of one of the keys.
                records = None
        if records is None:
            rows = [await self.read(key) for key in keys]
            return {row.key: row for row in rows if row is not None}
        return {record["key"]: self._row(record["key"], record) for record in records}

    async def page(self, after: str | None, limit: int, size: int) -> Page:
        """Return rows in key order.

        Args:
            after: the key that precedes the page; None for the first page.
            limit: maximum number of rows.
            size: total size of the payloads in bytes; a row that reaches it is the last one.

        Raises:
            InvalidValueError: the key is not valid for its column.
        """
        query = self._first_page if after is None else self._page
        async with self._reading() as connection:
            try:
                records = await connection.fetch(statement("service/page"), query, after, limit, size)
            except asyncpg.DataError as error:
                raise InvalidValueError(None, _text_of(error)) from error
        more = bool(records) and records[-1]["payload"] is None
        rows = records[:-1] if more else records
        return Page((self._row(record["key"], record) for record in rows), more=more)

    async def insert(self, row: RowInput) -> Commit:
        """Insert a row.

        Args:
            row: the values of the row; columns that are not given get their default.
        """
        arguments = [row.text] if row.values else []
        started = _now()
        async with self._translated(row) as connection:
            try:
                record = await connection.fetchrow(self._insert_statement("insert", row.columns), *arguments)
            except asyncpg.FeatureNotSupportedError:
                return await self._insert_with_rules(connection, row.columns, arguments, started)
        if record is None:
            raise AssertionError
        inserted = self._row(record["key"], record)
        return Commit(inserted.key, inserted.version, inserted, _transaction(record, started))

    async def _insert_with_rules(
        self, connection: Connection, columns: Sequence[str], arguments: Sequence[str], started: float
    ) -> Commit:
        async with connection.transaction():
            inserted = await connection.fetchrow(
                self._insert_statement("insert_with_rules", columns), *arguments
            )
            record = None if inserted is None else await connection.fetchrow(self._read, inserted["key"])
            if inserted is None or record is None:
                raise ConstraintViolatedError(None, (), _DISCARDED)
            if not record["version"]:
                raise self._capture_lost()
            found = self._row(inserted["key"], record)
            if len(found.payload) > self._row_limit:
                size = f"{len(found.payload)} bytes"
                raise self._too_large(size)
        return Commit(found.key, found.version, found, _transaction(inserted, started))

    async def replace(self, key: str, row: RowInput, expected: Sequence[int] | None) -> Commit | None:
        """Assign every column except the key.

        Args:
            key: the key.
            row: the values of the row; columns that are not given get their default.
            expected: the versions that the row may have; None for any.

        Returns:
            The update, or the row as it is if there was nothing to assign; None if no row has the key and an
            expected version.
        """
        return await self._update("replace", key, row, expected)

    async def merge(self, key: str, patch: RowInput, expected: Sequence[int] | None) -> Commit | None:
        """Apply a JSON merge patch (RFC 7396).

        Args:
            key: the key.
            patch: the values to change.
            expected: the versions that the row may have; None for any.

        Returns:
            The update, or the row as it is if there was nothing to assign; None if no row has the key and an
            expected version.
        """
        return await self._update("merge", key, patch, expected)

    async def delete(self, key: str, expected: Sequence[int] | None) -> Commit | None:
        """Delete a row.

        Args:
            key: the key.
            expected: the versions that the row may have; None for any.

        Returns:
            The delete; None if no row has the key and an expected version.
        """
        started = _now()
        async with self._translated(_NO_VALUES) as connection, connection.transaction():
            deleted = await connection.fetchrow(self._delete, key, expected)
            if deleted is None:
                return None
            version = await connection.fetchval(
                "SELECT cachesync.latest_version($1, $2)", self.entity.name, key
            )
            if version is None:
                raise self._capture_lost()
        return Commit(key, version, None, _transaction(deleted, started))

    async def own_changes(self, transaction: Transaction) -> list[Change]:
        """Return the changes that a transaction made according to the change log, of all entities.

        If they are many or large, some lack their payloads, and a `Rest` stands for the last ones.

        Raises:
            DatabaseError: PostgreSQL did not respond.
        """
        async with self._database.connection() as connection:
            return await committed_changes(connection, transaction.name, transaction.began, unpublished=True)

    @asynccontextmanager
    async def _reading(self) -> AsyncIterator[Connection]:
        """Provide a connection that shows what is committed now, for all reads that bring it to the cache.

        Raises:
            UncommittedError: it is in a transaction of the user's that shows something else.
        """
        async with self._database.connection() as connection:
            if not past_the_cache.get() and not await self._database.shows_newest(connection):
                message = "the transaction does not show what was committed last"
                raise UncommittedError(message)
            yield connection

    async def _update(
        self, kind: str, key: str, given: RowInput, expected: Sequence[int] | None
    ) -> Commit | None:
        query = self._update_statement(kind, given.columns)
        if query is None:
            row = await self.read(key)
            if row is None or (expected is not None and row.version not in expected):
                return None
            return Commit(key, row.version, row, None)
        started = _now()
        async with self._translated(given) as connection:
            record = await connection.fetchrow(query, key, given.text, expected)
        if record is None:
            return None
        row = self._row(record["key"], record)
        return Commit(row.key, row.version, row, _transaction(record, started))

    def _spreads(self, write: str, *, defaults: bool = False) -> str:
        """Return the condition under which a write can change more than the row that it returns."""
        relations = [literal(self._fragments["table"])]
        conditions = []
        if self._partitioned:
            # The partition of the row can have triggers and constraints of its own. Only a trigger can move
            # the row of an update to another one.
            relations.append("t.tableoid")
            if write == "update":
                conditions.append(f"NOT {self._fragments['has_key']}")
        conditions += [
            statement(
                "service/spreads",
                relation=relation,
                event=str(_EVENTS[write]),
                values=str(write != "delete"),
                defaults=str(defaults),
            )
            for relation in relations
        ]
        return " OR ".join(conditions)

    def _too_large(self, size: str) -> InvalidValueError:
        return InvalidValueError(
            None, f"the row has {size} when it is written out; the maximum is {self._row_limit} bytes"
        )

    def _capture_lost(self) -> CaptureLostError:
        return CaptureLostError(
            f"the triggers of the table {self.entity.table} that make its changes known are missing or "
            "disabled, so the write was rolled back; run `cachesync install`"
        )

    def _row(self, key: str, record: asyncpg.Record) -> Row:
        return Row(key, record["version"], self.fingerprint, record["payload"].encode())

    def _insert_statement(self, kind: str, columns: Sequence[str]) -> str:
        """Return the statement that inserts the given columns."""
        cached = (kind, *sorted(columns))
        if cached not in self._writes:
            names = [identifier(name) for name in cached[1:]]
            insert = statement(
                "service/insert_values" if names else "service/insert_defaults",
                columns=", ".join(names),
                values=", ".join(f"p.{name}" for name in names),
                definitions=_definitions(self._given_columns(cached[1:])),
                **self._fragments,
            )
            self._writes[cached] = statement(
                f"service/{kind}",
                insert=insert,
                spreads=self._spreads("insert", defaults=True),
                row_limit=str(self._row_limit),
                **self._fragments,
            )
        return self._writes[cached]

    def _update_statement(self, kind: str, columns: Sequence[str]) -> str | None:
        """Return the statement that updates the given columns; None if there is nothing to assign."""
        cached = (kind, *sorted(columns))
        if cached not in self._writes:
            given = self._given_columns(cached[1:])
            assignments = ", ".join(self._assignments(kind, given))
            if not assignments:
                return None
            self._writes[cached] = statement(
                "service/update",
                assignments=assignments,
                definitions=_definitions(given or self.key.columns, merged=kind == "merge"),
                spreads=self._spreads("update", defaults=kind == "replace"),
                row_limit=str(self._row_limit),
                **self._fragments,
            )
        return self._writes[cached]

    def _given_columns(self, names: Iterable[str]) -> list[Column]:
        for name in names:
            if name not in self._columns:
                raise InvalidValueError(name, f"is not a column of the entity {self.entity.name}")
        return [self._columns[name] for name in names]

    def _assignments(self, kind: str, given: Sequence[Column]) -> Iterable[str]:
        names = {column.name for column in given}
        for column in self.columns if kind == "replace" else given:
            name = identifier(column.name)
            if column.generated or column in self.key.columns:
                continue
            if column.name not in names:
                yield f"{name} = DEFAULT"
            elif kind == "merge":
                yield f"{name} = {_merged(column)}"
            else:
                yield f"{name} = p.{name}"

    @asynccontextmanager
    async def _translated(self, given: RowInput) -> AsyncIterator[Connection]:
        async with self._database.connection() as connection:
            try:
                yield connection
            except asyncpg.PostgresError as error:
                if error.sqlstate == _DREW_NO_VERSION or _lacks_version(error):
                    raise self._capture_lost() from error
                if error.sqlstate == _KEPT_NO_ROW:
                    raise ConstraintViolatedError(None, (), _DISCARDED) from error
                if error.sqlstate == _TOO_LARGE:
                    raise self._too_large(error.message) from error
                row_error = self._row_error_for(error)
                if row_error is None or _lacks_column(row_error):
                    row_error = await self._locate(connection, given) or row_error
                if row_error is None:
                    raise
                raise row_error from error

    def _row_error_for(self, error: asyncpg.PostgresError) -> RowError | None:
        """Translate an error that the data of the write caused; return None for all other errors."""
        columns = self._constraints.get(error.constraint_name or "", ())
        detail = error.detail or error.message
        row_error: RowError | None = None
        match error:
            case asyncpg.UniqueViolationError() | asyncpg.ExclusionViolationError():
                row_error = DuplicateRowError(columns, detail)
            case asyncpg.NotNullViolationError():
                row_error = ConstraintViolatedError(None, (error.column_name or "",), "must not be null")
            case asyncpg.ForeignKeyViolationError() | asyncpg.RestrictViolationError():
                row_error = ReferenceViolatedError(error.constraint_name, columns, error.message)
            case asyncpg.IntegrityConstraintViolationError():
                row_error = ConstraintViolatedError(error.constraint_name, columns, error.message)
            case asyncpg.RaiseError() | asyncpg.UnknownPostgresError():
                # From a trigger of the user, with a code of its own or without one.
                row_error = ConstraintViolatedError(None, (), error.message)
            case asyncpg.DataError() | asyncpg.ProgramLimitExceededError() | asyncpg.GeneratedAlwaysError():
                row_error = InvalidValueError(error.column_name, _text_of(error))
        return row_error

    async def _locate(self, connection: Connection, given: RowInput) -> RowError | None:
        """Find the first invalid value by converting each one separately; runs only after an error."""
        # In the order of the statement, so that the column is the one that PostgreSQL reported.
        for name in sorted(given.columns):
            column = self._columns[name]
            query = statement("service/locate", column=identifier(name), definition=_definitions([column]))
            try:
                await connection.fetchval(query, given.only(name))
            except asyncpg.IntegrityConstraintViolationError as error:
                return ConstraintViolatedError(error.constraint_name, (name,), error.message)
            except asyncpg.PostgresError as error:
                # Input functions report an invalid value with codes of every class: `regclass` with that of
                # a missing table, `hstore` with that of an internal error.
                if is_unavailable(error):
                    raise
                return InvalidValueError(name, _text_of(error))
        return None


def installed(registry: Mapping[str, Registration], entity: Entity) -> Registration:
    """Return the registration of an entity.

    Raises:
        NotInstalledError: the entity is not installed, or on another table or with another key.
    """
    registration = registry.get(entity.name)
    if registration is None:
        message = f"entity {entity.name!r} is declared but not installed; run `cachesync install`"
        raise NotInstalledError(message)
    if registration.schema_and_table != entity.schema_and_table or registration.key != entity.key:
        raise NotInstalledError(_not_as_declared(entity))
    return registration


def _not_as_declared(entity: Entity) -> str:
    return (
        f"entity {entity.name!r} is not installed as declared; run `cachesync install`, or restart this "
        "process with the entities file that was installed last"
    )


def _now() -> float:
    return asyncio.get_running_loop().time()


def _transaction(record: asyncpg.Record, started: float) -> Transaction | None:
    name = record["transaction"]
    return None if name is None else Transaction(name, record["began"], started)


def _lacks_version(error: asyncpg.PostgresError) -> bool:
    # Tables that an earlier version has installed have no default for the row version.
    return isinstance(error, asyncpg.NotNullViolationError) and error.column_name == VERSION_COLUMN


def _text_of(error: asyncpg.PostgresError) -> str:
    # asyncpg raises some errors itself, without the fields of an error of the server.
    return error.message or str(error)


def _lacks_column(row_error: RowError) -> bool:
    """Return whether an unnamed column can be the cause, for example because of a domain constraint."""
    match row_error:
        case InvalidValueError(column=None) | ConstraintViolatedError(columns=()):
            return True
    return False


def _definitions(columns: Iterable[Column], *, merged: bool = False) -> str:
    """Return the columns of a record as which PostgreSQL reads a JSON object.

    Args:
        columns: the columns.
        merged: whether objects for composite columns stay JSON, to be merged with the stored ones.
    """
    return ", ".join(
        f"{identifier(column.name)} {'jsonb' if merged and column.category == 'C' else column.declared_type}"
        for column in columns
    )


def _merged(column: Column) -> str:
    """Return the expression for the value of a column after a merge patch (RFC 7396)."""
    name = identifier(column.name)
    if column.base_type == "jsonb":
        return f"cachesync.merge_patch(t.{name}, p.{name})"
    if column.base_type == "json":
        return f"cachesync.merge_patch(t.{name}::jsonb, p.{name}::jsonb)::json"
    if column.category == "C":
        return statement("service/merge_record", column=name, type=column.declared_type)
    return f"p.{name}"
