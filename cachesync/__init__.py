"""Keep the Redis caches of several services consistent with the PostgreSQL database they share.

The names in `__all__` are the public interface, which `docs/reference.md` describes. Each is imported when it
is first used, so that a DAG file, which Airflow parses repeatedly, does not load the database clients.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from cachesync.change import Change, Operation, Row
    from cachesync.entity import Entity, load_entities
    from cachesync.errors import (
        CacheRefusedError,
        CacheSyncError,
        CacheUnavailableError,
        CaptureLostError,
        ConstraintViolatedError,
        DatabaseError,
        DatabaseUnavailableError,
        DeclarationError,
        DuplicateRowError,
        InstallError,
        InvalidValueError,
        KafkaUnavailableError,
        LetterNotFoundError,
        NotInstalledError,
        PrivilegeError,
        ReconcileError,
        ReferenceViolatedError,
        RowError,
        RowNotFoundError,
        RowTypeError,
        SettingsError,
        StreamError,
        TooManyDeadLettersError,
        TopicError,
        TransactionError,
        UndecodableError,
        VersionMismatchError,
    )
    from cachesync.service.cache import EntityCache, Outcome, Read, Written
    from cachesync.service.caches import AsyncCache, AsyncCaches
    from cachesync.service.following import Followed
    from cachesync.service.row_input import RowInput
    from cachesync.service.service import Service
    from cachesync.service.settings import ServiceSettings

__version__ = "0.1.0"

__all__ = [
    "AsyncCache",
    "AsyncCaches",
    "CacheRefusedError",
    "CacheSyncError",
    "CacheUnavailableError",
    "CaptureLostError",
    "Change",
    "ConstraintViolatedError",
    "DatabaseError",
    "DatabaseUnavailableError",
    "DeclarationError",
    "DuplicateRowError",
    "Entity",
    "EntityCache",
    "Followed",
    "InstallError",
    "InvalidValueError",
    "KafkaUnavailableError",
    "LetterNotFoundError",
    "NotInstalledError",
    "Operation",
    "Outcome",
    "PrivilegeError",
    "Read",
    "ReconcileError",
    "ReferenceViolatedError",
    "Row",
    "RowError",
    "RowInput",
    "RowNotFoundError",
    "RowTypeError",
    "Service",
    "ServiceSettings",
    "SettingsError",
    "StreamError",
    "TooManyDeadLettersError",
    "TopicError",
    "TransactionError",
    "UndecodableError",
    "VersionMismatchError",
    "Written",
    "load_entities",
]

_ELSEWHERE: Final = {
    "AsyncCache": "cachesync.service.caches",
    "AsyncCaches": "cachesync.service.caches",
    "Change": "cachesync.change",
    "Entity": "cachesync.entity",
    "EntityCache": "cachesync.service.cache",
    "Followed": "cachesync.service.following",
    "Operation": "cachesync.change",
    "Outcome": "cachesync.service.cache",
    "Read": "cachesync.service.cache",
    "Row": "cachesync.change",
    "RowInput": "cachesync.service.row_input",
    "Service": "cachesync.service.service",
    "ServiceSettings": "cachesync.service.settings",
    "Written": "cachesync.service.cache",
    "load_entities": "cachesync.entity",
}
"""The modules of the public names that are not errors."""


# Not for type checkers, which would take every misspelled name for an attribute of any type.
if not TYPE_CHECKING:

    def __getattr__(name: str) -> Any:
        if name not in __all__:
            message = f"module {__name__!r} has no attribute {name!r}"
            raise AttributeError(message)
        value = getattr(import_module(_ELSEWHERE.get(name, "cachesync.errors")), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
