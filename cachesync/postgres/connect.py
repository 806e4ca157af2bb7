"""Connections to the shared database."""

from __future__ import annotations

from contextlib import asynccontextmanager, contextmanager
from enum import Enum, auto
from functools import wraps
from typing import TYPE_CHECKING, Any, Final, ParamSpec, TypeVar

import asyncpg
from asyncpg.pool import PoolConnectionProxy

from cachesync.errors import DatabaseError, DatabaseUnavailableError, PrivilegeError, SettingsError
from cachesync.postgres.payload import PAYLOAD_SETTINGS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping

Connection = asyncpg.Connection | PoolConnectionProxy

SEARCH_PATH: Final = "pg_catalog, pg_temp"
"""A search_path with which names without a schema cannot refer to objects of other users."""

NOT_INSTALLED: Final = (
    asyncpg.UndefinedTableError,
    asyncpg.UndefinedColumnError,
    asyncpg.UndefinedFunctionError,
    asyncpg.InvalidSchemaNameError,
)
"""The errors of statements whose objects `cachesync install` of this version would make."""
_CONNECT_SECONDS: Final = 10.0
_POOLER: Final = (
    "the database address leads to a connection pooler such as PgBouncer; use the address of PostgreSQL "
    "itself, because a session's settings and prepared statements must not be shared"
)

_P = ParamSpec("_P")
_T = TypeVar("_T")

# Errors that the caller cannot fix by changing the statement; all others are the caller's, or a bug.
_UNAVAILABLE: Final = (
    OSError,
    TimeoutError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    asyncpg.PostgresConnectionError,
    asyncpg.InvalidAuthorizationSpecificationError,
    asyncpg.InvalidCatalogNameError,
    asyncpg.InsufficientResourcesError,
    asyncpg.OperatorInterventionError,
    asyncpg.ReadOnlySQLTransactionError,
    asyncpg.TransactionRollbackError,
    asyncpg.LockNotAvailableError,
)


def is_unavailable(error: Exception) -> bool:
    """Return whether an error of asyncpg is not about the statement, so that a retry can help."""
    return isinstance(error, _UNAVAILABLE)


class SchemaSuspicion(Enum):
    """How an error can be the effect of a change of the schema.

    Attributes:
        PLAN: asyncpg or PostgreSQL had prepared the statement for the schema as it was.
        NAME: the statement, or a trigger, refers to something that does not exist or has another type.
        VALUE: a value is not valid for the type of its column.
    """

    PLAN = auto()
    NAME = auto()
    VALUE = auto()


def schema_suspicion(error: BaseException | None) -> SchemaSuspicion | None:
    """Return how an error of asyncpg can be the effect of a change of the schema; None if it cannot."""
    match error:
        case asyncpg.InvalidCachedStatementError() | asyncpg.OutdatedSchemaCacheError():
            return SchemaSuspicion.PLAN
        case asyncpg.SyntaxOrAccessError() | asyncpg.InternalServerError():
            return SchemaSuspicion.NAME
        case asyncpg.DataError():
            return SchemaSuspicion.VALUE
    return None


async def connect(
    dsn: str | None,
    name: str,
    *,
    settings: Mapping[str, str] | None = None,
    command_timeout: float | None = None,
) -> asyncpg.Connection:
    """Open a connection that converts values to text in the same way as the triggers.

    Args:
        dsn: the database; None to use the environment variables PGHOST, PGUSER and so on.
        name: the `application_name` of the session.
        settings: additional settings of the session.
        command_timeout: the timeout for a statement, in seconds; None for no timeout.

    Raises:
        DatabaseUnavailableError: the database did not respond or rejected the login.
        DatabaseError: the database rejected one of the settings.
        SettingsError: the address is invalid, or leads to a connection pooler.
    """
    with translate_postgres_errors(), check_address():
        connection = await asyncpg.connect(
            dsn,
            timeout=_CONNECT_SECONDS,
            command_timeout=command_timeout,
            server_settings={
                **PAYLOAD_SETTINGS,
                "search_path": SEARCH_PATH,
                "application_name": name,
                **(settings or {}),
            },
        )
        try:
            await refuse_pooler(connection)
        except BaseException:
            connection.terminate()
            raise
        return connection


async def refuse_pooler(connection: Connection) -> None:
    """Check that a connection leads to PostgreSQL itself.

    A pooler can ignore the settings of a session, on which the text of payloads depends, and give its
    prepared statements, its locks and its notifications to another.

    Raises:
        SettingsError: there is a connection pooler in between.
    """
    # A pooler responds to the login itself, with a process number of its own.
    if await connection.fetchval("SELECT pg_catalog.pg_backend_pid()") != connection.get_server_pid():
        raise SettingsError(_POOLER)


@asynccontextmanager
async def connected(dsn: str | None, name: str) -> AsyncIterator[asyncpg.Connection]:
    """Provide a connection as `connect` does, close it at the end, and translate errors in between.

    Args:
        dsn: the database; None to use the environment variables PGHOST, PGUSER and so on.
        name: the `application_name` of the session.

    Raises:
        DatabaseError: PostgreSQL did not respond, or rejected a statement.
    """
    connection = await connect(dsn, name)
    try:
        with translate_postgres_errors():
            yield connection
    finally:
        await connection.close()


def with_translated_postgres_errors(
    call: Callable[_P, Coroutine[Any, Any, _T]],
) -> Callable[_P, Coroutine[Any, Any, _T]]:
    """Translate the errors of a coroutine function as `translate_postgres_errors` does."""

    @wraps(call)
    async def translated(*args: _P.args, **kwargs: _P.kwargs) -> _T:
        with translate_postgres_errors():
            return await call(*args, **kwargs)

    return translated


@contextmanager
def check_address(
    remedy: str = "check the host and the port, and percent-encode special characters in a DSN's password",
) -> Iterator[None]:
    """Raise the errors of an invalid address, or of one that leads to a pooler, as a SettingsError.

    Args:
        remedy: what to check, for the text of the error.

    Raises:
        SettingsError: the address is invalid; the text quotes nothing that can be part of a password.
    """
    try:
        yield
    except asyncpg.ProtocolViolationError as error:
        if "startup parameter" not in str(error):
            raise
        # PgBouncer rejects the settings of a session that it would have to ignore.
        raise SettingsError(_POOLER) from error
    except asyncpg.ClientConfigurationError as error:
        message = f"invalid database address: {error}"
        raise SettingsError(message) from None
    except OSError:
        # A certificate that is not trusted is also a ValueError.
        raise
    except (ValueError, OverflowError):
        message = f"invalid database address: {remedy}"
        raise SettingsError(message) from None


@contextmanager
def translate_postgres_errors(database: str = "PostgreSQL") -> Iterator[None]:
    """Raise errors of asyncpg and of its connections as errors of this library.

    Args:
        database: the name of the database in the error text.

    Raises:
        DatabaseUnavailableError: the database did not respond, or is in a state that only its operator can
            change.
        PrivilegeError: the login lacks a privilege.
        DatabaseError: the database rejected a statement for another reason.
    """
    try:
        yield
    except asyncpg.LockNotAvailableError as error:
        message = (
            f"{database} is unavailable: a lock is held for too long, as by a long `ALTER TABLE` ({error})"
        )
        raise DatabaseUnavailableError(message) from error
    except _UNAVAILABLE as error:
        message = f"{database} is unavailable: {str(error) or 'no response in time'}"
        raise DatabaseUnavailableError(message) from error
    except asyncpg.InsufficientPrivilegeError as error:
        message = f"{database} denied a statement: {error}{_missing_role(error)}"
        raise PrivilegeError(message) from error
    except asyncpg.PostgresError as error:
        message = f"{database} rejected a statement: {error}{_missing_installation(error)}"
        raise DatabaseError(message) from error


def _missing_role(error: asyncpg.PostgresError) -> str:
    """Return what to grant; nothing if a policy or a function of the user's denied the statement."""
    if not str(error).startswith("permission denied"):
        return ""
    return (
        "; the login needs the role cachesync_service for a service, or cachesync_worker for the background "
        "work: run GRANT <role> TO <login>, or `cachesync install` if it has that role"
    )


def _missing_installation(error: asyncpg.PostgresError) -> str:
    missing = isinstance(
        error, (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError, asyncpg.UndefinedFunctionError)
    )
    return "; run `cachesync install`" if missing and "cachesync" in str(error) else ""
