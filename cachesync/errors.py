"""What can go wrong, as exceptions whose text is fit to be shown to a user."""

from __future__ import annotations


class CacheSyncError(Exception):
    """Anything that this library raises on purpose."""


class DeclarationError(CacheSyncError):
    """The entities file is wrong; the text says where and what."""


class InstallError(CacheSyncError):
    """The database side cannot be made; the text says on which table, why, and what to do."""


class NotInstalledError(CacheSyncError):
    """The database side is missing or does not fit the declaration: `cachesync install` mends it."""


class DatabaseUnavailableError(CacheSyncError):
    """PostgreSQL did not answer, or every connection of the pool stayed in use for too long."""


class RowError(CacheSyncError):
    """A write that the database refused because of what was asked, not because of its own state."""


class RowNotFoundError(RowError):
    """No row has this key."""


class DuplicateRowError(RowError):
    """A row with these values exists.

    Attributes:
        columns: the columns that have to be unique together.
    """

    def __init__(self, columns: tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.columns = columns


class VersionMismatchError(RowError):
    """The row's version is not one of those that the caller expected."""


class ConstraintViolatedError(RowError):
    """A check, foreign key, exclusion or not-null constraint refuses the row.

    Attributes:
        constraint: its name, None for a not-null column.
        columns: the columns it is about, as far as the catalogue tells.
    """

    def __init__(self, constraint: str | None, columns: tuple[str, ...], message: str) -> None:
        super().__init__(message)
        self.constraint = constraint
        self.columns = columns


class InvalidValueError(RowError):
    """PostgreSQL cannot take a value for its column.

    Attributes:
        column: the column, None where it could not be told.
    """

    def __init__(self, column: str | None, message: str) -> None:
        super().__init__(message)
        self.column = column
