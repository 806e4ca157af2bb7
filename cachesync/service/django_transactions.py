"""Transactions of Django, followed up to their commit. Imported only if the user has Django."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction
from psycopg.pq import TransactionStatus

from cachesync.service.calls import done_at_once
from cachesync.service.following import Followed, ended
from cachesync.service.own_transactions import DriverTransaction, not_the_outermost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from django.db.backends.base.base import BaseDatabaseWrapper

    from cachesync.service.following import Settle


class DjangoTransaction(DriverTransaction):
    """A transaction that Django has begun, and that is about to be committed.

    Args:
        connection: the connection.
    """

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        super().__init__(None)
        self._connection = connection

    async def _begin(self) -> None:
        """Django has begun it."""

    async def _execute(self, query: str) -> Iterable[Any]:
        with self._connection.cursor() as cursor:
            cursor.execute(query)
            names = [column[0] for column in cursor.description]
            return [dict(zip(names, record, strict=True)) for record in cursor.fetchall()]

    async def _commit(self) -> None:
        commit(self._connection)

    async def rollback(self) -> None:
        """Roll the transaction back."""
        self._connection.rollback()


@contextmanager
def following(session: BaseDatabaseWrapper, settle: Settle) -> Iterator[Followed]:
    """Follow an atomic block.

    Args:
        session: a connection, or what stands for that of the current thread.
        settle: what follows the commit, before what Django does `on_commit`.

    Yields:
        What the transaction has changed, known at the end of the block.

    Raises:
        TransactionError: there is a transaction already, which others would commit.
    """
    connection = connections[session.alias]
    if connection.in_atomic_block or not connection.get_autocommit():
        raise not_the_outermost()
    result = Followed()
    usual = vars(connection).get("commit")
    replace_commit(connection, lambda: commit_and_settle(connection, settle, result))
    try:
        with transaction.atomic(using=connection.alias):
            yield result
    finally:
        del connection.commit
        if usual is not None:
            replace_commit(connection, usual)


def commit_and_settle(connection: BaseDatabaseWrapper, settle: Settle, result: Followed) -> None:
    """Commit the transaction of a connection, and bring what it has changed to the slots.

    Args:
        connection: the connection.
        settle: what follows the commit.
        result: where to record what it has changed.
    """
    if not is_in_transaction(connection):
        commit(connection)
        return
    committed = DjangoTransaction(connection)
    done_at_once(lambda: ended(committed.commit, committed, result, settle))


def is_in_transaction(connection: BaseDatabaseWrapper) -> bool:
    """Return whether a transaction has executed a statement: psycopg begins it with the first one."""
    driver = connection.connection
    return driver is not None and driver.info.transaction_status is not TransactionStatus.IDLE


def commit(connection: BaseDatabaseWrapper) -> None:
    """Commit the transaction of a connection as Django does."""
    type(connection).commit(connection)


def replace_commit(connection: BaseDatabaseWrapper, function: Callable[[], None]) -> None:
    """Let Django call a function where it would commit: at the end of the outermost atomic block."""
    connection.commit = function  # type: ignore[method-assign]
