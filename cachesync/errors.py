"""The exceptions of this library. Their texts can be shown to a user.

    CacheSyncError
    ├── SettingsError
    ├── DeclarationError
    ├── InstallError
    ├── NotInstalledError
    ├── DatabaseError
    │   ├── CaptureLostError
    │   ├── DatabaseUnavailableError
    │   └── PrivilegeError
    ├── CacheUnavailableError
    │   └── CacheRefusedError
    ├── KafkaUnavailableError
    ├── TopicError
    ├── RowError
    │   ├── RowNotFoundError
    │   ├── DuplicateRowError
    │   ├── VersionMismatchError
    │   ├── ConstraintViolatedError
    │   │   └── ReferenceViolatedError
    │   └── InvalidValueError
    ├── RowTypeError
    ├── TransactionError
    ├── UndecodableError
    ├── StreamError
    │   └── TooManyDeadLettersError
    ├── LetterNotFoundError
    └── ReconcileError

Errors of asyncpg, redis-py and the Kafka client are translated where those libraries are called, so that
`except CacheSyncError` catches every error that this library raises on purpose. The original error is
the `__cause__`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from cachesync.mistakes import in_words, nearest_name

if TYPE_CHECKING:
    from collections.abc import Collection

    from pydantic import ValidationError
    from pydantic_core import ErrorDetails


class CacheSyncError(Exception):
    """Base class of the errors that this library raises on purpose."""


class SettingsError(CacheSyncError):
    """A setting or a parameter is missing or invalid; the text names it."""

    @classmethod
    def of(cls, error: ValidationError, unknown: Collection[str] = (), prefix: str = "") -> Self:
        """Describe every invalid environment variable in one line, without its value.

        Args:
            error: pydantic's error.
            unknown: the names of variables that are set but are not settings. One that is similar to the name
                of a missing setting is probably a misspelling of it.
            prefix: the prefix of the variables.
        """
        return cls(
            "; ".join(
                # The items of a list can be invalid for the same reason.
                dict.fromkeys(
                    _described(f"{prefix}{one['loc'][0]}".upper(), one, unknown)
                    for one in error.errors(include_url=False, include_input=False)
                )
            )
        )


class DeclarationError(CacheSyncError):
    """The entities file is invalid; the text names the place and the reason."""


class InstallError(CacheSyncError):
    """The database side cannot be installed; the text names the table, the reason and the remedy."""


class NotInstalledError(CacheSyncError):
    """The database side is missing or does not match the declaration; `cachesync install` fixes it."""


class DatabaseError(CacheSyncError):
    """PostgreSQL rejected a statement for a reason other than the caller's data."""


class CaptureLostError(DatabaseError):
    """A write would reach no cache, because the triggers of its table are missing; it was rolled back."""


class DatabaseUnavailableError(DatabaseError):
    """PostgreSQL did not respond, or no connection of the pool became free in time."""


class PrivilegeError(DatabaseError):
    """The database login lacks a privilege; the text names the role to grant."""


class CacheUnavailableError(CacheSyncError):
    """Redis did not respond in time, rejected a command, or has been unavailable for a while."""


class CacheRefusedError(CacheUnavailableError):
    """Redis responded, but rejected a command, for example because it is full or read-only."""


class KafkaUnavailableError(CacheSyncError):
    """Kafka did not respond in time, rejected a request, or did not acknowledge a message."""


class TopicError(CacheSyncError):
    """A Kafka topic is missing or cannot be created."""


class RowError(CacheSyncError):
    """The database rejected a write because of its data, not because of the state of the database."""


class RowNotFoundError(RowError):
    """No row has this key."""


class DuplicateRowError(RowError):
    """A row with these values already exists, or an exclusion constraint is violated.

    Attributes:
        columns: the columns that must be unique together.
        message: the error without the columns.
    """

    def __init__(self, columns: tuple[str, ...], message: str) -> None:
        super().__init__(columns, message)
        self.columns = columns
        self.message = message

    def __str__(self) -> str:
        return self.message


class VersionMismatchError(RowError):
    """The row's version is not one of the expected versions."""


class ConstraintViolatedError(RowError):
    """The row violates a check, foreign-key or not-null constraint.

    Attributes:
        constraint: the name of the constraint; None for a not-null column.
        columns: the columns of the constraint, if the catalog lists them.
        message: the error without the columns.
    """

    def __init__(self, constraint: str | None, columns: tuple[str, ...], message: str) -> None:
        super().__init__(constraint, columns, message)
        self.constraint = constraint
        self.columns = columns
        self.message = message

    def __str__(self) -> str:
        return f"{', '.join(self.columns)}: {self.message}" if self.columns else self.message


class ReferenceViolatedError(ConstraintViolatedError):
    """The row violates a foreign key: it refers to a missing row, or another row refers to it."""


class InvalidValueError(RowError):
    """A value is not valid for its column.

    Attributes:
        column: the column; None if it is unknown.
        message: the error without the column.
    """

    def __init__(self, column: str | None, message: str) -> None:
        super().__init__(column, message)
        self.column = column
        self.message = message

    def __str__(self) -> str:
        return f"{self.column}: {self.message}" if self.column else self.message


class RowTypeError(CacheSyncError):
    """A row does not have the type that the caller asked for, or pydantic cannot use that type."""


class TransactionError(CacheSyncError):
    """A transaction cannot be followed: others commit or follow it, or it has ended within the block."""


class UndecodableError(CacheSyncError):
    """A Kafka message is not a change, and never will be."""


class StreamError(CacheSyncError):
    """The stream cannot continue without intervention."""


class TooManyDeadLettersError(StreamError):
    """So many messages fail that continuing would drain the topics into the dead-letter topic."""


class LetterNotFoundError(CacheSyncError):
    """The dead letter does not exist or has expired."""


class ReconcileError(CacheSyncError):
    """A reconciliation cannot be planned or carried out; the text gives the reason."""


def _described(name: str, error: ErrorDetails, unknown: Collection[str]) -> str:
    if error["type"] != "missing":
        return f"{name} {in_words(error['type'], error['msg'], error.get('ctx', {}))}"
    misspelled = nearest_name(name, unknown)
    return f"{name} is not set{f', but {misspelled} is' if misspelled else ''}"
