"""Transactions of SQLAlchemy, followed up to their commit. Imported only if the user has SQLAlchemy."""

from __future__ import annotations

from abc import abstractmethod
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Protocol, TypeVar
from weakref import WeakSet

from sqlalchemy import event

from cachesync.errors import TransactionError
from cachesync.service.own_changes import changes_in, final_changes
from cachesync.service.own_transactions import (
    OwnTransaction,
    followed_already,
    looking_up,
    no_transaction,
    not_the_outermost,
    own_source,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from sqlalchemy import Connection
    from sqlalchemy.orm import Session

    from cachesync.change import Change

T = TypeVar("T")

# The sessions and connections that a block follows.
_FOLLOWED: Final[WeakSet[Any]] = WeakSet()


class Run(Protocol):
    """Calls a function with a session or a connection, where it may block."""

    async def __call__(self, function: Callable[[Any], T], /) -> T:
        """Call it."""


class _SqlalchemyTransaction(OwnTransaction):
    """The transactions that SQLAlchemy begins, whoever commits them.

    SQLAlchemy tells when it is about to commit, which can be in the middle of the block.
    """

    def __init__(self, publisher: str | None) -> None:
        super().__init__(publisher)
        self._watched: list[Connection] = []
        self._of_connection: dict[str, Callable[..., None]] = {
            "commit": self._committing,
            "set_connection_execution_options": _require_no_autocommit,
        }
        # What only this block follows.
        self._claimed: list[Any] = []
        # Whether others follow what the session uses, and end its transaction.
        self._is_refused = False
        # What the user's own code may have caught.
        self._refusal: TransactionError | None = None
        # What is about to be committed.
        self._pending: list[Change] = []

    async def commit(self) -> None:
        """Commit what has not been committed yet."""
        try:
            self._require_following()
            await self._commit()
            self._require_end()
        except BaseException:
            await self.undo()
            raise

    def _require_following(self) -> None:
        if self._refusal is not None:
            raise self._refusal

    @abstractmethod
    async def _commit(self) -> None:
        """Commit."""

    def _require_end(self) -> None:
        """Raise an error if the user's own connection is in a transaction that the session did not begin."""
        if any(connection.in_transaction() for connection in self._watched):
            raise not_the_outermost()

    async def rollback(self) -> None:
        """Roll back what has not been committed yet, unless others follow it."""
        if self._claimed and not self._is_refused:
            await self._rollback()

    @abstractmethod
    async def _rollback(self) -> None:
        """Roll back."""

    def _claim(self, target: Session | Connection) -> None:
        if target in _FOLLOWED:
            self._is_refused = True
            raise followed_already()
        self._claimed.append(target)
        _FOLLOWED.add(target)

    def _watch(self, connection: Connection) -> None:
        if connection not in self._watched:
            try:
                _require_transactions(connection)
                self._claim(connection)
            except TransactionError as error:
                self._refusal = error
                raise
            self._watched.append(connection)
            for name, listener in self._of_connection.items():
                event.listen(connection, name, listener)
        if self._publisher is not None:
            connection.exec_driver_sql(own_source(self._publisher))

    def _committing(self, connection: Connection) -> None:
        """Look up the changes, within the call of SQLAlchemy's that commits them."""
        try:
            self._pending += _changes(connection)
        except BaseException:
            # SQLAlchemy takes the transaction for one that has ended. If the connection is lost, it has.
            with suppress(Exception):
                connection.connection.rollback()
            raise

    def _confirm(self, *_: object) -> None:
        self.committed += self._pending
        self._pending = []

    def _give_up(self, *_: object) -> None:
        """Count what was about to be committed, but was not confirmed, as uncertain."""
        self.uncertain += self._pending
        self._pending = []

    def close(self) -> None:
        """Stop following."""
        self._give_up()
        for target in self._claimed:
            _FOLLOWED.discard(target)
        for connection in self._watched:
            for name, listener in self._of_connection.items():
                _stop_listening(connection, name, listener)


class SessionTransaction(_SqlalchemyTransaction):
    """The transactions of a session.

    Args:
        session: the session.
        run: calls a function with the session, where it may block.
        publisher: as for `OwnTransaction`.

    Raises:
        TransactionError: it commits in two phases.
    """

    def __init__(self, session: Session, run: Run, publisher: str | None) -> None:
        super().__init__(publisher)
        if session.twophase:
            message = "a transaction that is committed in two phases cannot be followed"
            raise TransactionError(message)
        self._session = session
        self._run = run
        self._listeners: dict[str, Callable[..., None]] = {
            "after_begin": self._begun,
            # Of the whole transaction: at the end of a savepoint, nothing is pending.
            "before_commit": self._give_up,
            "after_commit": self._confirm,
        }

    async def begin(self) -> None:
        """Follow the transaction that the session has begun, or those that it is about to begin."""
        if self._session.in_transaction():
            await self._run(lambda session: self._watch(session.connection()))
        self._claim(self._session)
        for name, listener in self._listeners.items():
            event.listen(self._session, name, listener)

    async def changes(self) -> list[Change]:
        """Return what the transaction has changed."""
        return await self._run(_flushed_changes)

    async def _commit(self) -> None:
        await self._run(lambda session: session.commit())

    async def _rollback(self) -> None:
        await self._run(lambda session: session.rollback())

    def close(self) -> None:
        """Stop following."""
        super().close()
        for name, listener in self._listeners.items():
            _stop_listening(self._session, name, listener)

    def _begun(self, _session: object, _transaction: object, connection: Connection) -> None:
        self._watch(connection)


class ConnectionTransaction(_SqlalchemyTransaction):
    """The transactions of a connection.

    Args:
        run: calls a function with the connection, where it may block.
        publisher: as for `OwnTransaction`.
    """

    def __init__(self, run: Run, publisher: str | None) -> None:
        super().__init__(publisher)
        self._run = run

    async def begin(self) -> None:
        """Follow the transaction that the connection has begun, or the one that it is about to begin."""
        await self._run(self._watch)

    async def changes(self) -> list[Change]:
        """Return what the transaction has changed."""
        return await self._run(_changes)

    async def _commit(self) -> None:
        # Nobody tells whether a commit in the middle of the block has failed.
        self._give_up()
        await self._run(lambda connection: connection.commit())
        self._confirm()

    async def _rollback(self) -> None:
        await self._run(lambda connection: connection.rollback())


def _stop_listening(target: object, name: str, listener: Callable[..., None]) -> None:
    if event.contains(target, name, listener):
        event.remove(target, name, listener)


def _flushed_changes(session: Session) -> list[Change]:
    session.flush()
    return _changes(session.connection())


def _require_transactions(connection: Connection) -> None:
    """Raise an error if the connection commits each statement."""
    if getattr(connection.connection.dbapi_connection, "autocommit", False):
        raise no_transaction()


def _require_no_autocommit(_connection: Connection, options: Mapping[str, Any]) -> None:
    """Raise an error if the connection is about to commit each statement."""
    if options.get("isolation_level") == "AUTOCOMMIT":
        raise no_transaction()


def _changes(connection: Connection) -> list[Change]:
    _require_transactions(connection)
    with looking_up():
        return changes_in(connection.exec_driver_sql(final_changes()).mappings().all())
