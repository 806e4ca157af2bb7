"""A service's access to the shared database."""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Self

import asyncpg

from cachesync.errors import DatabaseError, DatabaseUnavailableError
from cachesync.postgres.change_log import mark_published
from cachesync.postgres.connect import check_address, refuse_pooler, translate_postgres_errors
from cachesync.postgres.payload import PAYLOAD_SETTINGS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from contextlib import AbstractAsyncContextManager

    from cachesync.postgres.connect import Connection
    from cachesync.service.settings import ServiceSettings

# As in `ServiceSettings`.
_CONNECTIONS: Final = 10
TIMEOUT_SECONDS: Final = 2.0


past_the_cache: ContextVar[bool] = ContextVar("past_the_cache", default=False)
"""Whether reads go past the cache, and bring nothing to it."""


class UncommittedError(DatabaseError):
    """A read would show what is not committed, or not what was committed last: it is not for the cache."""


class PoolUse(NamedTuple):
    """How much of a pool is in use.

    Attributes:
        idle: the number of open connections that nobody uses.
        used: the number of connections in use.
        limit: the maximum number of connections.
    """

    idle: int
    used: int
    limit: int


class Database(ABC):
    """A source of connections.

    Attributes:
        has_payload_settings: whether their sessions have `PAYLOAD_SETTINGS`.
        needs_caller: whether only a call of a blocking caller can use them.
    """

    has_payload_settings: ClassVar[bool]
    needs_caller: ClassVar[bool] = False

    @abstractmethod
    def connection(self) -> AbstractAsyncContextManager[Connection]:
        """Provide a connection, and translate the errors of its use.

        Raises:
            DatabaseUnavailableError: no connection became free in time, or the database did not respond.
            DatabaseError: the database rejected a statement.
        """

    async def shows_newest(self, connection: Connection) -> bool:  # noqa: ARG002 - of one in no transaction
        """Return whether the next statement shows what was committed before it, and nothing else.

        Args:
            connection: a connection of this database.
        """
        return True

    @abstractmethod
    async def renew(self) -> None:
        """Make sure that no session has a plan for the tables as they were."""

    @abstractmethod
    async def close(self) -> None:
        """Disconnect, if the connections are not the user's."""

    def pool(self) -> PoolUse | None:
        """Return how much of the pool is in use; None if the connections are the user's."""
        return None

    async def is_available(self) -> bool:
        """Return whether the database responds now."""
        try:
            async with self.connection() as connection:
                await connection.execute("SELECT 1")
        except DatabaseUnavailableError:
            return False
        return True

    async def mark_published(self, versions: list[int]) -> None:
        """Mark changes as published in the change log.

        Args:
            versions: the row versions of the changes.

        Raises:
            DatabaseUnavailableError: the database did not respond.
        """
        async with self.connection() as connection:
            await mark_published(connection, versions)


class OwnDatabase(Database):
    """A bounded pool of connections.

    Args:
        pool: the pool.
        timeout: the timeout for acquiring a connection and for closing the pool, in seconds.
    """

    has_payload_settings = True

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
        database = f"{settings.db_host}:{settings.db_port}/{settings.db_name}"
        with translate_postgres_errors(database), check_address("check DB_HOST and DB_PORT"):
            return await cls._open(
                settings.db_pool,
                settings.db_timeout_ms / 1000,
                {
                    "application_name": f"cachesync-{settings.service}",
                    "cachesync.source": settings.service,
                },
                host=settings.db_host,
                port=settings.db_port,
                database=settings.db_name,
                user=settings.db_username,
                password=settings.db_password.get_secret_value(),
            )

    @classmethod
    async def open_dsn(cls, dsn: str, service: str) -> Self:
        """Open the pool of a service that changes rows only in transactions of its own.

        Args:
            dsn: the DSN of the database.
            service: the name of the service.

        Raises:
            DatabaseUnavailableError: the database did not respond or rejected the login.
            SettingsError: the DSN is invalid, or leads to a connection pooler.
        """
        with translate_postgres_errors(), check_address():
            return await cls._open(
                _CONNECTIONS, TIMEOUT_SECONDS, {"application_name": f"cachesync-{service}"}, dsn=dsn
            )

    @classmethod
    async def _open(cls, size: int, timeout: float, session: dict[str, str], **address: Any) -> Self:  # noqa: ASYNC109 - of the pool
        pool = await asyncpg.create_pool(
            **address,
            min_size=1,
            max_size=size,
            timeout=timeout,
            command_timeout=timeout,
            # The settings of the sessions never change, so the usual RESET ALL after each use would only
            # cost a round trip.
            reset=_no_reset,
            server_settings={**PAYLOAD_SETTINGS, **session},
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
        """Provide a connection from the pool, and translate the errors of its use."""
        with translate_postgres_errors():
            async with self._pool.acquire(timeout=self._timeout) as connection:
                yield connection

    def pool(self) -> PoolUse:
        """Return how much of the pool is in use."""
        idle = self._pool.get_idle_size()
        return PoolUse(idle, self._pool.get_size() - idle, self._pool.get_max_size())

    async def renew(self) -> None:
        """Replace each connection before its next use."""
        await self._pool.expire_connections()

    async def close(self) -> None:
        """Wait for the statements in progress, for the timeout at most, then disconnect."""
        try:
            await asyncio.wait_for(self._pool.close(), self._timeout)
        except TimeoutError:
            self._pool.terminate()


async def _no_reset(_: asyncpg.Connection) -> None:
    pass
