"""Sessions of a user's own: each kind that the library can follow."""

from __future__ import annotations

from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager

DRIVERS = ("asyncpg", "psycopg")
SQLALCHEMY = tuple(f"{kind} on {driver}" for kind in ("session", "connection") for driver in DRIVERS)
KINDS = (*DRIVERS, "pooled asyncpg", *SQLALCHEMY)


@dataclass
class Own:
    """A session of the user's.

    Attributes:
        session: what is followed.
        execute: executes a statement.
        savepoint: begins a savepoint.
        integrity_error: what its driver raises for a violated constraint.
    """

    session: Any
    execute: Callable[[str], Awaitable[Any]]
    savepoint: Callable[[], AbstractAsyncContextManager[Any]]
    integrity_error: type[Exception]


def engine_url(dsn: str, driver: str) -> str:
    return dsn.replace("postgresql://", f"postgresql+{driver}://")


@asynccontextmanager
async def own_session(kind: str, dsn: str) -> AsyncIterator[Own]:
    match kind.split():
        case ["asyncpg"]:
            connection = await asyncpg.connect(dsn)
            try:
                yield _of_asyncpg(connection)
            finally:
                await connection.close()
        case ["pooled", "asyncpg"]:
            async with (
                asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool,
                pool.acquire() as pooled,
            ):
                yield _of_asyncpg(pooled)
        case ["psycopg"]:
            async with await psycopg.AsyncConnection.connect(dsn) as psycopg_connection:
                yield Own(
                    psycopg_connection,
                    lambda sql: psycopg_connection.execute(sql.encode()),
                    psycopg_connection.transaction,
                    psycopg.IntegrityError,
                )
        case [what, "on", driver]:
            engine = create_async_engine(engine_url(dsn, driver))
            opened: Any = AsyncSession(engine) if what == "session" else engine.connect()
            try:
                async with opened as session:
                    yield Own(
                        session, lambda sql: session.execute(text(sql)), session.begin_nested, IntegrityError
                    )
            finally:
                await engine.dispose()
        case _:
            raise AssertionError(kind)


def _of_asyncpg(connection: Any) -> Own:
    return Own(
        connection, connection.execute, connection.transaction, asyncpg.IntegrityConstraintViolationError
    )
