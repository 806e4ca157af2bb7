"""A row, and a change of a row, as they travel between the database, the caches and Kafka."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from datetime import datetime


class Operation(StrEnum):
    """What a change did."""

    UPSERT = "upsert"
    DELETE = "delete"
    TRUNCATE = "truncate"


@dataclass(frozen=True, slots=True)
class Row:
    """A row as it is cached and served.

    Attributes:
        key: its primary key, as text in canonical form.
        version: its row version.
        fingerprint: the schema fingerprint of the payload.
        payload: the JSON object that PostgreSQL made of it.
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
        key: the primary key as text; None for a truncate, which is about all of them.
        version: the row version, or the number that the delete or truncate drew.
        operation: what it did.
        fingerprint: the schema fingerprint of the payload; None without one.
        payload: the row's JSON after an upsert, else None.
        source: who made it: a service's name or a database user.
        changed_at: when the statement that made it ended.
    """

    entity: str
    key: str | None
    version: int
    operation: Operation
    fingerprint: bytes | None
    payload: bytes | None
    source: str
    changed_at: datetime
