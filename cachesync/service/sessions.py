"""The sessions of a user's own whose transactions can be followed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from cachesync.errors import TransactionError
from cachesync.service.borrowed import is_instance
from cachesync.service.own_transactions import AsyncpgTransaction, PsycopgTransaction

if TYPE_CHECKING:
    from cachesync.service.own_transactions import OwnTransaction


def own_transaction(session: Any, publisher: str | None = None) -> OwnTransaction:
    """Return the transaction of a session or a connection, which does not begin yet.

    Args:
        session: a connection of asyncpg or psycopg; an `AsyncSession` or `AsyncConnection` of SQLAlchemy.
        publisher: as for `OwnTransaction`.

    Raises:
        TransactionError: it is something else, or commits in two phases.
    """
    if isinstance(session, asyncpg.Connection | PoolConnectionProxy):
        return AsyncpgTransaction(session, publisher)
    if is_instance(session, "psycopg", "AsyncConnection"):
        return PsycopgTransaction(session, publisher)
    if is_instance(session, "sqlalchemy.ext.asyncio", "AsyncSession"):
        from cachesync.service.sqlalchemy_transactions import SessionTransaction  # noqa: PLC0415 - as above

        return SessionTransaction(session, publisher)
    if is_instance(session, "sqlalchemy.ext.asyncio", "AsyncConnection"):
        from cachesync.service.sqlalchemy_transactions import ConnectionTransaction  # noqa: PLC0415 - as above

        return ConnectionTransaction(session, publisher)
    message = (
        "a transaction is that of a connection of asyncpg or psycopg, or of an AsyncSession or "
        f"AsyncConnection of SQLAlchemy, not {type(session).__name__}"
    )
    raise TransactionError(message)
