"""The sessions of a user's own whose transactions can be followed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from cachesync.errors import TransactionError
from cachesync.service.borrowed import is_django, is_instance
from cachesync.service.own_transactions import AsyncpgTransaction, PsycopgTransaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachesync.service.own_transactions import OwnTransaction

T = TypeVar("T")


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
    for name in ("AsyncSession", "AsyncConnection"):
        if is_instance(session, "sqlalchemy.ext.asyncio", name):
            return _of_sqlalchemy(session, name, publisher)
    message = (
        "a transaction is that of a connection of asyncpg or psycopg, or of an AsyncSession or "
        f"AsyncConnection of SQLAlchemy, not {type(session).__name__}; "
        "`cachesync.sync` follows those that block"
    )
    raise TransactionError(message)


def own_blocking_transaction(session: Any) -> OwnTransaction:
    """Return the transaction of a session or a connection that blocks: its coroutines wait for nothing.

    Args:
        session: a `Connection` of psycopg, a `Session`, `scoped_session` or `Connection` of SQLAlchemy, or a
            connection of Django.

    Raises:
        TransactionError: it is something else, or commits in two phases.
    """
    if is_instance(session, "psycopg", "Connection"):
        return PsycopgTransaction(session, None)
    if is_django(session):
        from django.db import connections  # noqa: PLC0415 - only if there is Django

        from cachesync.service.django_transactions import DjangoTransaction  # noqa: PLC0415 - as above

        return DjangoTransaction(connections[session.alias])
    if is_instance(session, "sqlalchemy.orm", "scoped_session"):
        session = session()
    for module, name in (("sqlalchemy.orm", "Session"), ("sqlalchemy", "Connection")):
        if is_instance(session, module, name):
            return _of_sqlalchemy(session, name, None)
    message = (
        "a transaction is that of a Connection of psycopg, of a Session or Connection of SQLAlchemy, or of a "
        f"connection of Django, not {type(session).__name__}"
    )
    raise TransactionError(message)


def _of_sqlalchemy(session: Any, kind: str, publisher: str | None) -> OwnTransaction:
    from cachesync.service.sqlalchemy_transactions import (  # noqa: PLC0415 - only if there is SQLAlchemy
        ConnectionTransaction,
        SessionTransaction,
    )

    async def run_blocking(function: Callable[[Any], T]) -> T:
        return function(session)

    match kind:
        case "AsyncSession":
            return SessionTransaction(session.sync_session, session.run_sync, publisher)
        case "AsyncConnection":
            return ConnectionTransaction(session.run_sync, publisher)
        case "Session":
            return SessionTransaction(session, run_blocking, publisher)
    return ConnectionTransaction(run_blocking, publisher)
