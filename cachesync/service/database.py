"""The shared database as a service uses it."""

from __future__ import annotations

import asyncio
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Self

import asyncpg

from cachesync.errors import DatabaseUnavailableError
from cachesync.postgres.change_log import mark_published
from cachesync.postgres.connect import translate_postgres_errors
from cachesync.postgres.payload import PAYLOAD_SETTINGS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from cachesync.postgres.connect import Connection
    from cachesync.service.settings import ServiceSettings


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
        with translate_postgres_errors(f"{settings.db_host}:{settings.db_port}/{settings.db_name}"):
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
        with translate_postgres_errors():
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
            await mark_published(connection, versions)

    async def close(self) -> None:
        """Wait for what is under way, not for long, and disconnect."""
        try:
            await asyncio.wait_for(self._pool.close(), self._timeout)
        except TimeoutError:
            self._pool.terminate()


async def _leave_as_it_is(_: asyncpg.Connection) -> None:
    pass
