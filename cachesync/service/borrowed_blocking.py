"""The user's own blocking connections to the database, used in the threads of the callers."""

from __future__ import annotations

from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any, ClassVar

import asyncpg
from psycopg.pq import TransactionStatus

from cachesync.errors import SettingsError
from cachesync.postgres.connect import translate_postgres_errors
from cachesync.postgres.psycopg_connection import Queries, asyncpg_errors, fetch
from cachesync.postgres.statements import statement
from cachesync.service.borrowed import BorrowedDatabase, driver_of, is_closed, is_django, is_instance
from cachesync.service.calls import by_caller, held_by_caller
from cachesync.service.database import TIMEOUT_SECONDS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from psycopg import Connection as PsycopgConnection

    from cachesync.postgres.connect import Connection
    from cachesync.service.calls import Steps


class BlockingConnection(Queries):
    """A connection of psycopg that the caller of the current call uses.

    Args:
        connection: the connection.
    """

    def __init__(self, connection: PsycopgConnection[Any]) -> None:
        self._connection = connection
        self.is_in_transaction = connection.info.transaction_status is not TransactionStatus.IDLE

    async def fetch(self, query: str, *args: Any) -> list[Any]:
        """Return the records of a query."""
        return await by_caller(partial(fetch, self._connection, query, args))

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[None]:
        """Begin a transaction that only reads; in one of the user's, a savepoint that leaves nothing."""
        async with held_by_caller(self._transaction()):
            yield

    def _transaction(self) -> Steps[None]:
        with asyncpg_errors(), self._connection.transaction(force_rollback=self.is_in_transaction):
            yield


class BlockingDatabase(BorrowedDatabase):
    """The user's own blocking pool, engine or connections.

    Args:
        acquire: holds a connection in the thread of a caller, or raises the errors of asyncpg.
    """

    needs_caller: ClassVar[bool] = True

    def __init__(self, acquire: Callable[[], Steps[PsycopgConnection[Any]]]) -> None:
        self._acquire_blocking = acquire

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Provide a connection, and translate the errors of its use."""
        with translate_postgres_errors():
            async with held_by_caller(self._acquire_blocking()) as driver:
                connection: Any = BlockingConnection(driver)
                if connection.is_in_transaction:
                    # An error must not end the user's transaction.
                    async with connection.transaction():
                        yield connection
                else:
                    yield connection

    async def shows_newest(self, connection: Any) -> bool:
        """Return whether the next statement shows what was committed before it, and nothing else."""
        if not connection.is_in_transaction:
            return True
        return bool(await connection.fetchval(statement("service/shows_newest")))


def blocking_database(database: object) -> BlockingDatabase:
    """Return the database of a blocking pool or engine, or of Django's connections.

    Args:
        database: a `ConnectionPool` of psycopg, an `Engine` of SQLAlchemy on psycopg, or a connection of
            Django, whose alias names the connection of each thread.

    Raises:
        SettingsError: it is something else.
    """
    if is_instance(database, "psycopg_pool", "ConnectionPool"):
        return BlockingDatabase(partial(_acquired_from_psycopg, database))
    if is_instance(database, "sqlalchemy", "Engine"):
        return BlockingDatabase(partial(_acquired_from_sqlalchemy, database))
    if is_django(database):
        alias: str = getattr(database, "alias")  # noqa: B009 - of a class that may not be installed
        return BlockingDatabase(partial(_acquired_from_django, alias))
    message = (
        "the database is a DSN, a psycopg_pool.ConnectionPool, a SQLAlchemy Engine or a connection of "
        f"Django, not {type(database).__name__}"
    )
    raise SettingsError(message)


def _acquired_from_psycopg(pool: Any) -> Steps[Any]:
    with asyncpg_errors(), pool.connection(timeout=TIMEOUT_SECONDS) as connection:
        yield connection


def _acquired_from_sqlalchemy(engine: Any) -> Steps[Any]:
    """Provide a connection of the driver, with which SQLAlchemy begins no transaction."""
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - only if there is SQLAlchemy

    try:
        with engine.connect() as connection:
            driver = driver_of(connection)
            if not is_instance(driver, "psycopg", "Connection"):
                message = f"the engine uses psycopg, not {type(driver).__module__.partition('.')[0]}"
                raise SettingsError(message)
            try:
                yield driver
            finally:
                if is_closed(driver):
                    connection.invalidate()
    except SQLAlchemyError as error:
        raise asyncpg.InterfaceError(str(error)) from error


def _acquired_from_django(alias: str) -> Steps[Any]:
    """Provide the driver's connection of the current thread, which stays open."""
    from django.db import Error, connections  # noqa: PLC0415 - only if there is Django

    wrapper = connections[alias]
    try:
        wrapper.ensure_connection()
    except Error as error:
        raise asyncpg.InterfaceError(str(error)) from error
    driver = wrapper.connection
    if not is_instance(driver, "psycopg", "Connection"):
        message = f"the connection {alias!r} uses psycopg, not {type(driver).__module__.partition('.')[0]}"
        raise SettingsError(message)
    is_idle = driver.info.transaction_status is TransactionStatus.IDLE
    try:
        yield driver
        if is_idle and not driver.autocommit:
            # Such as within Django's `commit`, which could not leave the transaction that the read began.
            driver.rollback()
    except BaseException:
        # Django then looks whether the connection can still be used.
        wrapper.errors_occurred = True
        raise
