"""The shared database, as a service reaches it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Final, Self

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from cachesync.errors import DatabaseUnavailableError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

    from cachesync.settings import ServiceSettings

Connection = asyncpg.Connection | PoolConnectionProxy

PAYLOAD_SETTINGS: Final = {
    "timezone": "UTC",
    "datestyle": "ISO",
    "intervalstyle": "iso_8601",
    "bytea_output": "hex",
    "extra_float_digits": "1",
}
"""What decides how PostgreSQL writes values as text; the triggers pin the same."""

_CONNECT_SECONDS: Final = 10.0

# What a client can do nothing about; every other error of the server is the client's, or a bug.
_UNAVAILABLE: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
)


async def connect(
    dsn: str | None,
    name: str,
    *,
    settings: Mapping[str, str] | None = None,
    command_timeout: float | None = None,
) -> asyncpg.Connection:
    """A single connection, which writes values as text as the triggers do.

    Args:
        dsn: the database; None: what the variables PGHOST, PGUSER, ... say.
        name: what the server shows the session as.
        settings: the session's, besides.
        command_timeout: the longest wait for a statement's answer, in seconds; None: without end.

    Raises:
        DatabaseUnavailableError: the database does not let us in.
    """
    with translated("the database"):
        return await asyncpg.connect(
            dsn,
            timeout=_CONNECT_SECONDS,
            command_timeout=command_timeout,
            server_settings={**PAYLOAD_SETTINGS, "application_name": name, **(settings or {})},
        )


@asynccontextmanager
async def connected(dsn: str | None, name: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of `connect`, closed at the end."""
    connection = await connect(dsn, name)
    try:
        yield connection
    finally:
        await connection.close()


class Database:
    """A bounded pool of connections."""

    def __init__(self, pool: asyncpg.Pool, timeout: float) -> None:
        self._pool = pool
        self._timeout = timeout

    @classmethod
    async def open(cls, settings: ServiceSettings) -> Self:
        """Connect.

        Raises:
            DatabaseUnavailableError: the database does not let us in.
        """
        timeout = settings.db_timeout_ms / 1000
        with translated(f"{settings.db_host}:{settings.db_port}/{settings.db_name}"):
            pool = await asyncpg.create_pool(
                host=settings.db_host,
                port=settings.db_port,
                database=settings.db_name,
                user=settings.db_username,
                password=settings.db_password.get_secret_value(),
                min_size=1,
                max_size=settings.db_pool,
                timeout=timeout,
                command_timeout=timeout,
                # The sessions of the pool never change, so that the usual RESET ALL after each use is
                # a round trip for nothing.
                reset=_leave_as_it_is,
                server_settings={
                    **PAYLOAD_SETTINGS,
                    "application_name": f"cachesync-{settings.service}",
                    "cachesync.source": settings.service,
                },
            )
        return cls(pool, timeout)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """A connection of the pool.

        Raises:
            DatabaseUnavailableError: none came free in time, or what was done with it got no answer.
        """
        with translated("the database"):
            async with self._pool.acquire(timeout=self._timeout) as connection:
                yield connection

    async def answers(self) -> bool:
        """Whether the database answers now."""
        try:
            async with self.connection() as connection:
                await connection.execute("SELECT 1")
        except DatabaseUnavailableError:
            return False
        return True

    async def mark_published(self, versions: list[int]) -> None:
        """Mark these versions as published in the change log.

        Raises:
            DatabaseUnavailableError: the database does not answer.
        """
        async with self.connection() as connection:
            await connection.execute("SELECT cachesync.mark_published($1)", versions)

    async def close(self) -> None:
        """Wait for what is under way, not for long, and disconnect."""
        try:
            await asyncio.wait_for(self._pool.close(), self._timeout)
        except TimeoutError:
            self._pool.terminate()


@contextmanager
def translated(where: str) -> Iterator[None]:
    """Raise what only the server's operator can do something about as a DatabaseUnavailableError."""
    try:
        yield
    except _UNAVAILABLE as error:
        message = f"{where} does not answer: {error or type(error).__name__}"
        raise DatabaseUnavailableError(message) from error


async def _leave_as_it_is(_: asyncpg.Connection) -> None:
    pass
