"""Transactions of the user's own, followed up to their commit."""

from __future__ import annotations

from abc import ABC, abstractmethod
from contextlib import contextmanager, suppress
from inspect import isawaitable
from typing import TYPE_CHECKING, Any, Final

from cachesync.errors import DatabaseUnavailableError, NotInstalledError, PrivilegeError, TransactionError
from cachesync.postgres.statements import literal, statement
from cachesync.service.own_changes import changes_in, final_changes

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import asyncpg
    from asyncpg.pool import PoolConnectionProxy

    from cachesync.change import Change

# Raised by the function `cachesync.final_changes`.
_NO_TRANSACTION: Final = "CS004"
# A function or a schema does not exist.
_MISSING: Final = frozenset({"42883", "3F000"})
_DENIED: Final = "42501"


class OwnTransaction(ABC):
    """A transaction of the user's own.

    The errors of its statements, and of its commit, are those of the user's driver.

    Args:
        publisher: the name of the service, if it publishes the changes; None if the relay does.

    Attributes:
        committed: the changes that were committed.
        uncertain: the changes of a commit that failed, or whose end is unknown. They may be committed.
    """

    def __init__(self, publisher: str | None) -> None:
        self._publisher = publisher
        self.committed: list[Change] = []
        self.uncertain: list[Change] = []

    @abstractmethod
    async def begin(self) -> None:
        """Begin the transaction.

        Raises:
            TransactionError: there is one already, which others would commit.
        """

    @abstractmethod
    async def changes(self) -> list[Change]:
        """Return what the transaction has changed, including what is deferred to its commit.

        Raises:
            NotInstalledError: the database side is missing or was installed by an earlier version.
            PrivilegeError: the login does not have the role of a service.
            TransactionError: the transaction has ended.
        """

    @abstractmethod
    async def commit(self) -> None:
        """Find out what the transaction has changed, and commit it."""

    @abstractmethod
    async def rollback(self) -> None:
        """Roll the transaction back."""

    async def undo(self) -> None:
        """Roll the transaction back because of an error, which says more than that of a lost connection."""
        with suppress(Exception):
            await self.rollback()

    @abstractmethod
    def close(self) -> None:
        """Stop following."""


class DriverTransaction(OwnTransaction):
    """A transaction that is begun and ended here, on a connection of a driver."""

    async def begin(self) -> None:
        """Begin the transaction."""
        await self._begin()
        if self._publisher is not None:
            await self._execute(own_source(self._publisher))

    async def changes(self) -> list[Change]:
        """Return what the transaction has changed."""
        with looking_up():
            return changes_in(await self._execute(final_changes()))

    async def commit(self) -> None:
        """Find out what the transaction has changed, and commit it."""
        try:
            changes = await self.changes()
        except BaseException:
            await self.undo()
            raise
        self.uncertain = changes
        await self._commit()
        self.committed, self.uncertain = self.uncertain, []

    def close(self) -> None:
        """Stop following."""

    @abstractmethod
    async def _begin(self) -> None:
        """Begin, unless there is a transaction already."""

    @abstractmethod
    async def _execute(self, query: str) -> Iterable[Any]:
        """Execute a statement, and return its records by the names of their columns."""

    @abstractmethod
    async def _commit(self) -> None:
        """Commit."""


class AsyncpgTransaction(DriverTransaction):
    """A transaction on a connection of asyncpg.

    Args:
        connection: the connection.
        publisher: as for `OwnTransaction`.
    """

    def __init__(self, connection: asyncpg.Connection | PoolConnectionProxy, publisher: str | None) -> None:
        super().__init__(publisher)
        self._connection = connection
        self._transaction = connection.transaction()

    async def _begin(self) -> None:
        if self._connection.is_in_transaction():
            raise not_the_outermost()
        await self._transaction.start()

    async def changes(self) -> list[Change]:
        """Return what the transaction has changed."""
        # PostgreSQL cannot tell: it gets the statement and its execution one after the other.
        if not self._connection.is_in_transaction():
            raise no_transaction()
        return await super().changes()

    async def _execute(self, query: str) -> Iterable[Any]:
        return await self._connection.fetch(query)

    async def _commit(self) -> None:
        await self._transaction.commit()

    async def rollback(self) -> None:
        """Roll the transaction back."""
        await self._transaction.rollback()


class PsycopgTransaction(DriverTransaction):
    """A transaction on a connection of psycopg, which may block.

    Args:
        connection: the connection.
        publisher: as for `OwnTransaction`.
    """

    def __init__(self, connection: Any, publisher: str | None) -> None:
        super().__init__(publisher)
        self._connection = connection
        block = connection.transaction()
        blocks = hasattr(block, "__enter__")
        self._enter = block.__enter__ if blocks else block.__aenter__
        self._exit = block.__exit__ if blocks else block.__aexit__
        self._transaction: Any = None

    async def _begin(self) -> None:
        self._require_replies()
        if self._connection.info.transaction_status.name != "IDLE":
            raise not_the_outermost()
        self._transaction = await _done(self._enter())

    async def _execute(self, query: str) -> Iterable[Any]:
        from psycopg.rows import dict_row  # noqa: PLC0415 - only if there is psycopg

        self._require_replies()
        cursor = self._connection.cursor(row_factory=dict_row)
        await _done(cursor.execute(query))
        return [] if cursor.description is None else list(await _done(cursor.fetchall()))

    async def _commit(self) -> None:
        await _done(self._exit(None, None, None))
        # Without a connection, psycopg does nothing.
        if self._transaction.status.name != "COMMITTED":
            message = "the connection was lost before the commit"
            raise DatabaseUnavailableError(message)

    async def rollback(self) -> None:
        """Roll the transaction back, unless it has ended."""
        from psycopg import Rollback  # noqa: PLC0415 - as above

        # One that has not begun is that of others.
        if self._transaction is None:
            return
        if self._transaction.status.name == "ACTIVE":
            await _done(self._exit(Rollback, Rollback(), None))
        elif self._connection.info.transaction_status.name != "IDLE":
            # Interrupted before psycopg could end it.
            await _done(self._connection.rollback())

    def _require_replies(self) -> None:
        if self._connection.pgconn.pipeline_status:
            message = (
                "in a pipeline, statements and commits are not complete when psycopg returns; end it first"
            )
            raise TransactionError(message)


async def _done(result: Any) -> Any:
    """Return a result, for which only the asynchronous connections have to be waited."""
    return await result if isawaitable(result) else result


def own_source(service: str) -> str:
    """Return the statement with which a transaction leaves the publishing to a service."""
    return statement("service/own_source", service=literal(service))


@contextmanager
def looking_up() -> Iterator[None]:
    """Translate the errors of that query, except those of what was deferred to the commit.

    Raises:
        NotInstalledError: the database side is missing or was installed by an earlier version.
        PrivilegeError: the login does not have the role of a service.
        TransactionError: there is no transaction.
    """
    try:
        yield
    except Exception as error:
        # SQLAlchemy and Django have the driver's own error.
        cause = getattr(error, "orig", error)
        cause = cause if hasattr(cause, "sqlstate") else cause.__cause__
        sqlstate = getattr(cause, "sqlstate", None)
        if sqlstate in _MISSING and "cachesync" in str(cause):
            message = (
                "the database side is missing or was installed by an earlier version; run `cachesync install`"
            )
            raise NotInstalledError(message) from error
        if sqlstate == _DENIED and any(name in str(cause) for name in ("cachesync", "transaction_changes")):
            message = (
                "the login may not look up what its transactions change; run GRANT cachesync_service TO "
                "<login>"
            )
            raise PrivilegeError(message) from error
        if sqlstate == _NO_TRANSACTION:
            raise no_transaction() from error
        raise


def no_transaction() -> TransactionError:
    """Return the error for a lookup outside a transaction."""
    return TransactionError(
        "there is no transaction to follow: it has ended within the block, or the connection commits each "
        "statement (AUTOCOMMIT)"
    )


def followed_already() -> TransactionError:
    """Return the error for a block within a block on the same session."""
    return TransactionError("the session is already followed by another block, which commits it")


def not_the_outermost() -> TransactionError:
    """Return the error for a transaction in another one."""
    return TransactionError(
        "the connection is already in a transaction, which others would commit; follow it from its beginning"
    )
