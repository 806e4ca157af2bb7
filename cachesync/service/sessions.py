"""The sessions of a user's own whose transactions can be followed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, TypeVar

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from cachesync.errors import TransactionError
from cachesync.service.borrowed import is_django, is_instance
from cachesync.service.own_transactions import AsyncpgTransaction, PsycopgTransaction

if TYPE_CHECKING:
    from collections.abc import Callable

    from cachesync.service.own_transactions import OwnTransaction

T = TypeVar("T")

_SQLALCHEMY: Final = (
    ("sqlalchemy.ext.asyncio", "AsyncSession"),
    ("sqlalchemy.ext.asyncio", "AsyncConnection"),
    ("sqlalchemy.orm", "Session"),
    ("sqlalchemy", "Connection"),
)


def own_transaction(session: Any, publisher: str | None = None) -> OwnTransaction:
    """Return the transaction of a session or a connection, which does not begin yet.

    Args:
        session: a connection of asyncpg or psycopg; a session or a connection of SQLAlchemy. If it blocks,
            so does the transaction, which waits for nothing.
        publisher: as for `OwnTransaction`.

    Raises:
        TransactionError: it is something else, or commits in two phases.
    """
    if isinstance(session, asyncpg.Connection | PoolConnectionProxy):
        return AsyncpgTransaction(session, publisher)
    if is_instance(session, "psycopg", "AsyncConnection") or is_instance(session, "psycopg", "Connection"):
        return PsycopgTransaction(session, publisher)
    if is_instance(session, "sqlalchemy.orm", "scoped_session"):
        session = session()
    if is_django(session):
        from django.db import connections  # noqa: PLC0415 - only if there is Django

        from cachesync.service.django_transactions import DjangoTransaction  # noqa: PLC0415 - as above

        return DjangoTransaction(connections[session.alias])
    for module, name in _SQLALCHEMY:
        if is_instance(session, module, name):
            return _of_sqlalchemy(session, name, publisher)
    message = (
        "a transaction is that of a connection of asyncpg or psycopg, or of a session or connection of "
        f"SQLAlchemy, not {type(session).__name__}"
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
