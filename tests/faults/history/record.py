"""The data of a history: operations, logged changes, faults, and slots at rest."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2s
from math import inf


class Kind(StrEnum):
    READ = "read"
    FIND = "find"  # a read by a unique value that no row has; if a row has it, this is a read of that row
    UPSERT = "upsert"
    DELETE = "delete"


class Outcome(StrEnum):
    """How an operation ended, from the client's point of view."""

    DONE = "done"  # a row was read; a write is acknowledged
    ABSENT = "absent"  # a read found no row
    REFUSED = "refused"  # a write that had no effect
    UNKNOWN = "unknown"  # no response, or one that does not show whether a write had an effect


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """A row of an entity."""

    entity: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One operation of a client.

    Attributes:
        client: the client, which performs one operation after another.
        service: the service it used, or `psql` for none.
        start, end: seconds; the operation began no earlier than `start`, and its outcome was known at `end`.
        version: the row version that was read or written, if the response includes it.
        digest: digest of the payload that was read or written.
        cache: the response's X-Cache header. A write without one went through the cache.
        value: the unique value that was read; empty if the row was read by its key.
    """

    client: str
    service: str
    row: Row
    kind: Kind
    start: float
    end: float
    outcome: Outcome
    version: int | None = None
    digest: str = ""
    cache: str = ""
    value: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """A row of the change log; `at` is a time within its transaction, hence before its commit.

    `value` is the unique value that the row then has, or empty.
    """

    row: Row
    version: int
    kind: Kind
    source: str
    at: float
    digest: str = ""
    value: str = ""


@dataclass(slots=True, kw_only=True)
class Fault:
    """An injected fault.

    Attributes:
        kind, part: the kind of fault, and the component or connection that it affected.
        begin, repaired: when it began, and when the component worked again.
        in_step: when the services and the stream had recovered from it.
        restored: the service whose cache was replaced with an old dump; it can be wrong until `reconciled`.
    """

    kind: str
    part: str
    begin: float
    repaired: float = inf
    in_step: float = inf
    restored: str = ""
    reconciled: float = inf


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """A slot that differs from its row."""

    service: str
    row: Row
    held: str
    version: int | None


@dataclass(slots=True, kw_only=True)
class History:
    """A complete history.

    Attributes:
        operations: the operations of all clients.
        log: the changes that the database logged.
        faults: the injected faults.
        before: the versions of the rows before the first operation.
        after: the versions of the rows after the last operation.
        in_step: pairs of times; everything committed by the first was in the caches at the second.
        at_rest: differences when the stream had come to rest.
        reconciled: differences after old dumps had been restored to all caches and reconciled.
        unburied: undecodable messages for which a service has no dead letter.
    """

    operations: list[Operation] = field(default_factory=list)
    log: list[Logged] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    before: dict[Row, int] = field(default_factory=dict)
    after: dict[Row, int] = field(default_factory=dict)
    in_step: list[tuple[float, float]] = field(default_factory=list)
    at_rest: list[Difference] = field(default_factory=list)
    reconciled: list[Difference] = field(default_factory=list)
    unburied: list[str] = field(default_factory=list)


class Clock:
    """A monotonic clock in seconds, comparable with the clock of a database on the same machine."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        return self._offset + time.monotonic()


def digest(payload: bytes) -> str:
    """Return a short digest of a payload."""
    return blake2s(payload, digest_size=8).hexdigest()
