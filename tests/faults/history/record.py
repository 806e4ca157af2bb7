"""What a history is made of: operations, the changes that the database logged, faults, and slots at rest."""

from __future__ import annotations

import time
from dataclasses import dataclass, field
from enum import StrEnum
from hashlib import blake2s
from math import inf


class Kind(StrEnum):
    READ = "read"
    UPSERT = "upsert"
    DELETE = "delete"


class Outcome(StrEnum):
    """How an operation ended, as far as its client can know."""

    DONE = "done"  # a row was read; a write is acknowledged
    ABSENT = "absent"  # a read found no row
    REFUSED = "refused"  # a write that did nothing
    UNKNOWN = "unknown"  # no answer, or one that leaves open what a write did


@dataclass(frozen=True, slots=True, order=True)
class Row:
    """Which row of which entity."""

    entity: str
    key: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """What a client did.

    Attributes:
        client: who; each does one thing after the other.
        service: through which service; `psql` where through none.
        start, end: seconds; nothing of it happened before the one, its outcome was known at the other.
        version: the row version that was read or written, where the answer says it.
        digest: of the payload that was read or written.
        cache: the answer's X-Cache. A write without one went through the cache.
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


@dataclass(frozen=True, slots=True, kw_only=True)
class Logged:
    """A row of the change log; `at` is a moment of its transaction, so before its commit."""

    row: Row
    version: int
    kind: Kind
    source: str
    at: float
    digest: str = ""


@dataclass(slots=True, kw_only=True)
class Fault:
    """A fault that was put in.

    Attributes:
        kind, part: what, and to which part or way.
        begin, repaired: when it began, and when the part worked again.
        in_step: when the services and the stream had recovered from it.
        restored: the service to whose cache an old dump was restored; it may be wrong until `reconciled`.
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
    """A slot that does not say what its row is."""

    service: str
    row: Row
    held: str
    version: int | None


@dataclass(slots=True, kw_only=True)
class History:
    """All of it.

    Attributes:
        before: the versions of the rows that were there before the first operation.
        after: those after the last.
        in_step: moments, each with one at which all that had been committed by then was in the caches.
        at_rest: what differed when the stream had come to rest.
        reconciled: what differed after old dumps were restored to all caches, and reconciled.
        unburied: poisoned messages of which a service has no dead letter.
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
    """Seconds that never go back, comparable with the clock of a database on the same machine."""

    def __init__(self) -> None:
        self._offset = time.time() - time.monotonic()

    def __call__(self) -> float:
        return self._offset + time.monotonic()


def digest(payload: bytes) -> str:
    """A short name of a payload."""
    return blake2s(payload, digest_size=8).hexdigest()
