"""The connections of psycopg, used as those of asyncpg. Imported only if the user has psycopg."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg
from psycopg import AsyncRawCursor, Error, RawCursor
from psycopg.adapt import Loader
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Sequence

    from psycopg import AsyncConnection, Connection
    from psycopg.abc import Buffer

# PostgreSQL's number of the type "char".
_CHAR: Final = 18


class Queries(ABC):
    """Those methods of asyncpg's connections that reads need."""

    @abstractmethod
    async def fetch(self, query: str, *args: Any) -> list[Any]:
        """Return the records of a query."""

    async def fetchrow(self, query: str, *args: Any) -> Any:
        """Return the first record of a query; None if there is none."""
        records = await self.fetch(query, *args)
        return records[0] if records else None

    async def fetchval(self, query: str, *args: Any) -> Any:
        """Return the first value of the first record of a query; None if there is none."""
        record = await self.fetchrow(query, *args)
        return None if record is None else next(iter(record.values()))

    async def execute(self, query: str, *args: Any) -> None:
        """Execute a statement."""
        await self.fetch(query, *args)


class PsycopgConnection(Queries):
    """A connection of psycopg with those methods of asyncpg's that reads need, and with asyncpg's errors.

    Args:
        connection: the connection.
    """

    def __init__(self, connection: AsyncConnection[Any]) -> None:
        self._connection = connection

    def is_in_transaction(self) -> bool:
        """Return whether the connection is in a transaction."""
        return self._connection.info.transaction_status is not TransactionStatus.IDLE

    async def fetch(self, query: str, *args: Any) -> list[Any]:
        """Return the records of a query."""
        with asyncpg_errors():
            async with AsyncRawCursor(self._connection, row_factory=dict_row) as cursor:
                cursor.adapters.register_loader(_CHAR, _BytesLoader)
                # Without parameters, a text can have several statements.
                await cursor.execute(query.encode(), args or None)
                return [] if cursor.description is None else await cursor.fetchall()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Begin a transaction, or a savepoint if there is one, and commit it at the end."""
        with asyncpg_errors():
            async with self._connection.transaction():
                yield


def fetch(connection: Connection[Any], query: str, args: Sequence[Any]) -> list[Any]:
    """Return the records of a query, as `PsycopgConnection` does, from a blocking connection."""
    with asyncpg_errors(), RawCursor(connection, row_factory=dict_row) as cursor:
        cursor.adapters.register_loader(_CHAR, _BytesLoader)
        cursor.execute(query.encode(), args or None)
        return [] if cursor.description is None else cursor.fetchall()


class _BytesLoader(Loader):
    """Returns a value as the bytes that PostgreSQL sent."""

    def load(self, data: Buffer) -> bytes:
        return bytes(data)


@contextmanager
def asyncpg_errors() -> Iterator[None]:
    """Raise the errors of psycopg as those that asyncpg would raise."""
    try:
        yield
    except Error as error:
        # Such as one without a connection.
        if error.sqlstate is None:
            raise asyncpg.InterfaceError(str(error) or type(error).__name__) from error
        diagnostic = error.diag
        fields = {
            "C": error.sqlstate,
            "M": diagnostic.message_primary,
            "D": diagnostic.message_detail,
            "H": diagnostic.message_hint,
            "n": diagnostic.constraint_name,
            "R": diagnostic.source_function,
        }
        raise asyncpg.PostgresError.new({name: text for name, text in fields.items() if text}) from error
