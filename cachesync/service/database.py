"""A service's access to the shared database."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

import asyncpg

from cachesync.errors import DatabaseUnavailableError
from cachesync.postgres.change_log import mark_published
from cachesync.postgres.connect import check_address, refuse_pooler, translate_postgres_errors
from cachesync.postgres.payload import PAYLOAD_SETTINGS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cachesync.postgres.connect import Connection
    from cachesync.service.settings import ServiceSettings


class Database:
    """A bounded pool of connections.

    Args:
        pool: the pool.
        timeout: the timeout for acquiring a connection and for closing the pool, in seconds.
    """

    def __init__(self, pool: asyncpg.Pool, timeout: float) -> None:
        self._pool = pool
        self._timeout = timeout

    @classmethod
    async def open(cls, settings: ServiceSettings) -> Self:
        """Open the pool with its first connection.

        Raises:
            DatabaseUnavailableError: the database did not respond or rejected the login.
            SettingsError: the address is invalid, or leads to a connection pooler.
        """
        timeout = settings.db_timeout_ms / 1000
        database = f"{settings.db_host}:{settings.db_port}/{settings.db_name}"
        with translate_postgres_errors(database), check_address("check DB_HOST and DB_PORT"):
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
                # The settings of the sessions never change, so the usual RESET ALL after each use would only
                # cost a round trip.
                reset=_no_reset,
                server_settings={
                    **PAYLOAD_SETTINGS,
                    "application_name": f"cachesync-{settings.service}",
                    "cachesync.source": settings.service,
                },
            )
            try:
                async with pool.acquire() as connection:
                    await refuse_pooler(connection)
            except BaseException:
                pool.terminate()
                raise
        return cls(pool, timeout)

    @asynccontextmanager
    async def connection(self) -> AsyncIterator[Connection]:
        """Provide a connection from the pool, and translate the errors of its use.

        Raises:
            DatabaseUnavailableError: no connection became free in time, or the database did not respond.
            DatabaseError: the database rejected a statement.
        """
        with translate_postgres_errors():
            async with self._pool.acquire(timeout=self._timeout) as connection:
                yield connection

    async def is_available(self) -> bool:
        """Return whether the database responds now."""
        try:
            async with self.connection() as connection:
                await connection.execute("SELECT 1")
        except DatabaseUnavailableError:
            return False
        return True

    async def renew(self) -> None:
        """Replace each connection before its next use."""
        await self._pool.expire_connections()

    async def mark_published(self, versions: list[int]) -> None:
        """Mark changes as published in the change log.

        Args:
            versions: the row versions of the changes.

        Raises:
            DatabaseUnavailableError: the database did not respond.
        """
        async with self.connection() as connection:
            await mark_published(connection, versions)

    async def close(self) -> None:
        """Wait for the statements in progress, for the timeout at most, then disconnect."""
        try:
            await asyncio.wait_for(self._pool.close(), self._timeout)
        except TimeoutError:
            self._pool.terminate()


async def _no_reset(_: asyncpg.Connection) -> None:
    pass
