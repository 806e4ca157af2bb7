"""Rows and changes, as they travel between the database, the caches and Kafka."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Final, NamedTuple

from cachesync.value import encode_head

if TYPE_CHECKING:
    from collections.abc import Sequence

EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND: Final = timedelta(milliseconds=1)


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
    """One change in the change log.

    Attributes:
        entity: the entity's name.
        key: the primary key, as text in canonical form; None for a truncate, which affects every key.
        version: the row version, or the number that the delete or truncate drew.
        operation: the kind of change.
        value: the row after an upsert, as `cachesync.value` encodes it; None otherwise, and if the row is too
            large for a message.
        source: the name of the service or database user that made the change; empty if it is unknown.
        changed_at: when the statement that made the change ended.
        unique: after an upsert without a value, the row's values in unique lookups, as `cachesync.lookup`
            encodes them; empty if they are not known.
    """

    entity: str
    key: str | None
    version: int
    operation: Operation
    value: bytes | None
    source: str
    changed_at: datetime
    unique: bytes = b""

    @property
    def changed_ms(self) -> int:
        """When the statement that made the change ended, in milliseconds since 1970."""
        return (self.changed_at - EPOCH) // MILLISECOND


class Event(NamedTuple):
    """What a cache needs to know of a change.

    A stream creates one for each message, so it has no part that would have to be parsed.

    Attributes:
        entity: the entity's name.
        key: the encoded text of the primary key, in canonical form; None for a truncate, which affects every
            key.
        content: the row after the change, as `cachesync.value` encodes it; only the part up to the version if
            the change empties the slot.
        changed_ms: when the statement that made the change ended, in milliseconds since 1970.
        unique: as `Change.unique`; None for what is no upsert without a value.
    """

    entity: str
    key: bytes | None
    content: bytes
    changed_ms: int
    unique: bytes | None = None


def event_of(change: Change) -> Event:
    """Return what a cache needs to know of a change."""
    return Event(
        change.entity,
        None if change.key is None else change.key.encode(),
        change.value or encode_head(change.version),
        change.changed_ms,
        change.unique if change.operation is Operation.UPSERT and change.value is None else None,
    )


@dataclass(frozen=True, slots=True)
class Upserts:
    """Many upserts of one entity, without an object for each.

    Attributes:
        entity: the entity's name.
        keys: the primary keys, as text in canonical form.
        values: the rows, as `cachesync.value` encodes them.
        times: when the statements that made the changes ended, in milliseconds since 1970.
    """

    entity: str
    keys: Sequence[str]
    values: Sequence[bytes]
    times: Sequence[int]
