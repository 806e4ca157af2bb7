"""Each transaction of a connection follows itself, and so does each single statement."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any, Final

import structlog
from django.db import transaction

from cachesync.contrib.django.configured import caches
from cachesync.errors import NotInstalledError
from cachesync.service.django_transactions import (
    commit,
    commit_and_settle,
    is_in_transaction,
    replace_commit,
)
from cachesync.service.following import Followed

if TYPE_CHECKING:
    from collections.abc import Callable

    from django.db.backends.base.base import BaseDatabaseWrapper

_log = structlog.get_logger(__name__)

# Not `CALL` and `DO`, which may commit by themselves.
_WRITE: Final = re.compile(
    r"(?:\s|\(|--[^\n]*\n|/\*.*?\*/)*(?:INSERT|UPDATE|DELETE|MERGE|TRUNCATE|WITH)\b",
    re.IGNORECASE | re.DOTALL,
)


def follow(connection: BaseDatabaseWrapper) -> None:
    """Let the transactions of a connection follow themselves from now on."""
    replace_commit(connection, lambda: _commit(connection))
    if in_transaction not in connection.execute_wrappers:
        connection.execute_wrappers.append(in_transaction)


def in_transaction(
    execute: Callable[..., Any],
    sql: Any,
    params: Any,
    many: bool,  # noqa: FBT001 - as Django calls it
    context: dict[str, Any],
) -> Any:
    """Execute a statement; a single one that can write in a transaction of its own, which follows itself."""
    connection = context["connection"]
    if connection.in_atomic_block or not connection.get_autocommit() or not _can_write(sql, connection):
        return execute(sql, params, many, context)
    with transaction.atomic(using=connection.alias):
        return execute(sql, params, many, context)


def _can_write(sql: Any, connection: BaseDatabaseWrapper) -> bool:
    # Whoever has begun a transaction with SQL of their own ends it, too.
    if is_in_transaction(connection):
        return False
    text = sql.decode() if isinstance(sql, bytes) else sql
    if not isinstance(text, str):
        text = text.as_string(connection.connection)
    return _WRITE.match(text) is not None


def _commit(connection: BaseDatabaseWrapper) -> None:
    if not is_in_transaction(connection):
        commit(connection)
        return
    try:
        settle = caches().settler()
    except NotInstalledError as error:
        # Such as the migration that makes the first table. This process has not read through the cache yet.
        _log.warning("transaction not followed", reason=str(error))
        commit(connection)
        return
    except BaseException:
        connection.rollback()
        raise
    commit_and_settle(connection, settle, Followed())
