"""The processes, their knowledge, and the state of the world."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Final, Literal, NamedTuple

from cachesync.slots.layout import EMPTY
from cachesync.value import encode_value

OLD: Final = b"schema-1"
NEW: Final = b"schema-2"


class Event(NamedTuple):
    """A change on its way to the cache; `fingerprint` is the schema fingerprint of its payload."""

    version: int
    operation: Literal["upsert", "delete", "truncate"]
    fingerprint: bytes


class Local(NamedTuple):
    """The state of a process.

    Attributes:
        at: its next action.
        number: a version. For a reader, the oldest that it may return, and after its load the one that it
            read; for a writer, the one that it drew. 0 means none yet, or no row.
        leased: whether a writer holds the lease.
        unanswered: whether Redis may still execute its lease, or PostgreSQL its commit, after it stopped
            waiting for the reply.
        seen: the slot as a reconciler read it.
    """

    at: Literal[
        "start",
        "lease",
        "wait",
        "load",
        "fill",
        "bypass",
        "advance",
        "draw",
        "commit",
        "change",
        "forget",
        "release",
        "compare",
        "repair",
        "done",
    ]
    number: int = 0
    leased: bool = False
    unanswered: bool = False
    seen: bytes = EMPTY


class State(NamedTuple):
    """The state of the world at one moment.

    Attributes:
        row: the version of the row; 0 if it does not exist.
        drawn: the last version drawn from the sequence.
        deleted: the version of the last delete.
        promised: the oldest version that a read that starts now may return.
        slot: the content of the slot.
        refusing: whether Redis refuses all writes.
        events: the committed changes before their last delivery, in version order.
        processes: the states of the processes, in the order of the scope.
    """

    row: int
    drawn: int
    deleted: int
    promised: int
    slot: bytes
    refusing: bool
    events: tuple[Event, ...]
    processes: tuple[Local, ...]


@dataclass(frozen=True)
class Reader:
    """A read through the service, by a process with one schema fingerprint."""

    fingerprint: bytes = NEW


@dataclass(frozen=True)
class Writer:
    """A write through the service.

    Attributes:
        write: what it does to the row.
        fingerprint: the schema fingerprint of its process.
        names_row: whether it is a write of this row; else of another one, whose transaction changes this row
            too, as foreign keys that cascade and triggers do.
    """

    write: Literal["insert", "update", "delete"]
    fingerprint: bytes = NEW
    names_row: bool = True


@dataclass(frozen=True)
class Own:
    """A transaction of the user's own that changes this row, among others, and is followed to its commit.

    Attributes:
        write: what it does to the row.
        fingerprint: the schema fingerprint of its process.
    """

    write: Literal["insert", "update", "delete"]
    fingerprint: bytes = NEW
    names_row: ClassVar = False


@dataclass(frozen=True)
class Elsewhere:
    """A write that bypasses this service, by another service or psql."""

    write: Literal["insert", "update", "delete", "delete and insert", "truncate"]
    fingerprint: bytes = NEW


@dataclass(frozen=True)
class Reconciler:
    """Compares the slot with the row and repairs it, without the grace period of the real one."""

    fingerprint: bytes = NEW


Process = Reader | Writer | Own | Elsewhere | Reconciler


@dataclass(frozen=True)
class Rules:
    """The rules for everything around the scripts. Each can be disabled to show why it is needed.

    Attributes:
        redraws: an insert draws again if the change log has a higher version for its key.
        logs_changes: a commit includes its event.
        commits_first: a write commits before it changes the slot.
        settles_other_rows: before it is acknowledged, a write changes the slots of all rows that its
            transaction has changed. A row whose change is looked up too early is left out, too.
        forgets_unknown_ends: the slots of a commit of which the end is unknown are emptied.
        believes_known_ends_only: such a commit does not count as one that has succeeded.
        asks_once: a lease without a reply is not requested again with the same token.
        believes_answers_only: only a process whose lease was confirmed acts as its holder.
        waits: a read that meets a lease waits instead of joining a load that may have begun before it.
        forgets: a cache is empty after a failure, never in a former state.
        stops_reading: a cache that refuses all writes is not read.
        empties: a reconciler empties a slot that is ahead of the row instead of filling it with the row.
    """

    redraws: bool = True
    logs_changes: bool = True
    commits_first: bool = True
    settles_other_rows: bool = True
    forgets_unknown_ends: bool = True
    believes_known_ends_only: bool = True
    asks_once: bool = True
    believes_answers_only: bool = True
    waits: bool = True
    forgets: bool = True
    stops_reading: bool = True
    empties: bool = True


@dataclass(frozen=True)
class Scope:
    """A set of processes and an initial state for the search to explore.

    Attributes:
        name: its name, with the races of the catalog that it covers.
        processes: the processes.
        row: the initial version of the row.
        slot: the initial content of the slot.
        lossy: whether the slot can be emptied at any moment, as by expiry, eviction, a flush or a restart.
        silent: whether Redis can leave a lease unanswered and still execute it at any later moment.
        on_change: as declared for the entity.
        promised_at: the moment from which later reads must see a write.
        wrong: whether the slot is wrong initially, which only a reconciler must correct.
        garbage: what other programs can replace the content of the slot with at any moment.
        refuses: whether Redis can refuse, at any moment, to `store` anything, or `all` writes for a while.
        advances: whether reads that went past the cache bring what they read to the slot.
    """

    name: str
    processes: tuple[Process, ...]
    row: int = 1
    slot: bytes = EMPTY
    lossy: bool = True
    silent: bool = False
    on_change: Literal["refresh", "invalidate"] = "refresh"
    promised_at: Literal["acknowledgement", "commit"] = "acknowledgement"
    wrong: bool = False
    garbage: tuple[bytes, ...] = ()
    refuses: Literal["store", "all"] | None = None
    advances: bool = False


def value(version: int, fingerprint: bytes = NEW) -> bytes:
    """Return the slot that holds the row at this version."""
    return encode_value(version, fingerprint, b"{}")
