"""The user's own connections to the database, as a service reads through them."""

from __future__ import annotations

import asyncio
import sys
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import asyncpg

from cachesync.errors import DatabaseUnavailableError, SettingsError
from cachesync.postgres.connect import translate_postgres_errors
from cachesync.service.database import TIMEOUT_SECONDS, Database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from cachesync.postgres.connect import Connection


class BorrowedDatabase(Database):
    """The user's own pool or engine, which stays open.

    Args:
        acquire: provides a connection of it, or raises the errors of asyncpg.
    """

    has_payload_settings = False

    def __init__(self, acquire: Callable[[], AbstractAsyncContextManager[Any]]) -> None:
        self._acquire = acquire

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Provide a connection, and translate the errors of its use."""
        with translate_postgres_errors():
            async with self._acquire() as connection:
                # Its reads could see rows that are never committed, or rows as they were a while ago.
                if connection.is_in_transaction():
                    message = "the pool provided a connection that is in a transaction"
                    raise DatabaseUnavailableError(message)
                yield connection

    async def renew(self) -> None:
        """Leave the sessions as they are: what they prepared for other tables fails once, and is repeated."""

    async def close(self) -> None:
        """Leave the connections open."""


def borrowed_database(database: object) -> BorrowedDatabase:
    """Return the database of a pool or an engine.

    Args:
        database: an `asyncpg.Pool`, an `AsyncConnectionPool` of psycopg, or an `AsyncEngine` of SQLAlchemy
            that uses one of these drivers.

    Raises:
        SettingsError: it is something else, or has one connection for everybody.
    """
    if isinstance(database, asyncpg.Pool):
        return BorrowedDatabase(partial(database.acquire, timeout=TIMEOUT_SECONDS))
    if is_instance(database, "psycopg_pool", "AsyncConnectionPool"):
        return BorrowedDatabase(partial(_acquired_from_psycopg, database))
    if is_instance(database, "sqlalchemy.ext.asyncio", "AsyncEngine"):
        if is_instance(getattr(database, "pool", None), "sqlalchemy.pool", "StaticPool"):
            message = (
                "the engine has one connection for everybody (StaticPool); a read would end a transaction"
            )
            raise SettingsError(message)
        return BorrowedDatabase(partial(_acquired_from_sqlalchemy, database))
    message = (
        "the database is a DSN, an asyncpg.Pool, a psycopg_pool.AsyncConnectionPool or a SQLAlchemy "
        f"AsyncEngine, not {type(database).__name__}"
    )
    raise SettingsError(message)


def is_instance(value: object, module: str, name: str) -> bool:
    """Return whether a value is an instance of a class of a package that may not be installed.

    Args:
        value: the value.
        module: the module of the class. If nobody has imported it, nothing is an instance of it.
        name: the name of the class.
    """
    cls = getattr(sys.modules.get(module), name, None)
    return cls is not None and isinstance(value, cls)


def is_django(value: object) -> bool:
    """Return whether a value is a connection of Django, or what stands for that of the current thread."""
    return is_instance(value, "django.utils.connection", "ConnectionProxy") or is_instance(
        value, "django.db.backends.base.base", "BaseDatabaseWrapper"
    )


@asynccontextmanager
async def _acquired_from_psycopg(pool: Any) -> AsyncIterator[Any]:
    from cachesync.postgres.psycopg_connection import (  # noqa: PLC0415 - only if there is psycopg
        PsycopgConnection,
        asyncpg_errors,
    )

    with asyncpg_errors():
        async with pool.connection(timeout=TIMEOUT_SECONDS) as connection:
            yield PsycopgConnection(connection)


@asynccontextmanager
async def _acquired_from_sqlalchemy(engine: Any) -> AsyncIterator[Any]:
    """Provide a connection of the driver, with which SQLAlchemy begins no transaction."""
    from sqlalchemy.exc import SQLAlchemyError  # noqa: PLC0415 - only if there is SQLAlchemy

    try:
        async with AsyncExitStack() as acquired:
            async with asyncio.timeout(TIMEOUT_SECONDS):
                connection = await acquired.enter_async_context(engine.connect())
                driver = await connection.run_sync(driver_of)
            try:
                yield _as_asyncpg(driver)
            except BaseException:
                if is_closed(driver):
                    await connection.invalidate()
                raise
    except SQLAlchemyError as error:
        raise asyncpg.InterfaceError(str(error)) from error


def driver_of(connection: Any) -> Any:
    """Return the driver's connection of a connection of SQLAlchemy, which is replaced if it is closed.

    SQLAlchemy notices only by its own statements that PostgreSQL has closed it.
    """
    while is_closed(driver := connection.connection.driver_connection):
        connection.invalidate()
    return driver


def is_closed(driver: Any) -> bool:
    """Return whether a connection of asyncpg or psycopg is closed."""
    return bool(driver.is_closed() if isinstance(driver, asyncpg.Connection) else driver.closed)


def _as_asyncpg(driver: Any) -> Any:
    if isinstance(driver, asyncpg.Connection):
        return driver
    if is_instance(driver, "psycopg", "AsyncConnection"):
        from cachesync.postgres.psycopg_connection import PsycopgConnection  # noqa: PLC0415 - as above

        return PsycopgConnection(driver)
    message = f"the engine uses asyncpg or psycopg, not {type(driver).__module__.partition('.')[0]}"
    raise SettingsError(message)
