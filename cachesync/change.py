"""Rows and changes, as they travel between the database, the caches and Kafka."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


class Operation(StrEnum):
    """The kind of a change, as the change log and the events spell it."""

    UPSERT = "upsert"
    DELETE = "delete"
    TRUNCATE = "truncate"


@dataclass(frozen=True, slots=True)
class Row:
    """A row, as it is cached and served.

    Attributes:
        key: the primary key, as text in canonical form.
        version: the row version.
        fingerprint: the schema fingerprint of the payload.
        payload: the row as a JSON object, exactly as PostgreSQL wrote it.
    """

    key: str
    version: int
    fingerprint: bytes
    payload: bytes


@dataclass(frozen=True, slots=True)
class Change:
    """One line of the change log.

    Attributes:
        entity: the entity's name.
        key: the primary key, as text in canonical form; None for a truncate, which affects every key.
        version: the row version, or the number that the delete or truncate drew.
        operation: the kind of change.
        value: the row after an upsert, as `cachesync.value` encodes it; None otherwise, and if the row is too
            large for a message.
        source: the name of the service or database user that made the change; empty if it is unknown.
        changed_at: when the statement that made the change ended.
    """

    entity: str
    key: str | None
    version: int
    operation: Operation
    value: bytes | None
    source: str
    changed_at: datetime
