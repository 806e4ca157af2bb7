"""Who takes part, what is at stake, and what each knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal, NamedTuple

from cachesync.slots.layout import EMPTY, encode_value

OLD: Final = b"schema-1"
NEW: Final = b"schema-2"


class Event(NamedTuple):
    """A change on its way to the cache; `fingerprint` is that of its payload."""

    version: int
    operation: Literal["upsert", "delete", "truncate"]
    fingerprint: bytes


class Local(NamedTuple):
    """What a process knows.

    Attributes:
        at: what it does next.
        number: of a reader, what it must see, and when it has loaded, the version that it read; of a
            writer, the version that it drew. 0: none yet, or no row.
        leased: whether a writer was given the lease.
        unanswered: whether Redis may still carry out its lease, whose answer it no longer waits for.
        seen: of a reconciler, the slot as it read it.
    """

    at: Literal[
        "start",
        "lease",
        "wait",
        "load",
        "fill",
        "bypass",
        "draw",
        "commit",
        "change",
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
    """One moment.

    Attributes:
        row: the row's version; 0 while there is none.
        drawn: the last number that the sequence gave.
        deleted: the version of the last delete.
        promised: the oldest version that a read which starts now may return.
        slot: its bytes.
        events: what has been committed and not yet been delivered for the last time, by version.
        processes: in the scope's order.
    """

    row: int
    drawn: int
    deleted: int
    promised: int
    slot: bytes
    events: tuple[Event, ...]
    processes: tuple[Local, ...]


@dataclass(frozen=True)
class Reader:
    """A read through the service, by code of one schema."""

    fingerprint: bytes = NEW


@dataclass(frozen=True)
class Writer:
    """A write through the service."""

    write: Literal["insert", "update", "delete"]
    fingerprint: bytes = NEW


@dataclass(frozen=True)
class Elsewhere:
    """A write that passes this service by: another service's, or psql's."""

    write: Literal["insert", "update", "delete", "delete and insert", "truncate"]
    fingerprint: bytes = NEW


@dataclass(frozen=True)
class Reconciler:
    """Compares the slot with the row, and repairs it; sooner than the real one, which gives changes time."""

    fingerprint: bytes = NEW


Process = Reader | Writer | Elsewhere | Reconciler


@dataclass(frozen=True)
class Rules:
    """What the protocol asks of all around the scripts; each can be dropped, to see what it is for.

    Attributes:
        redraws: an insert draws again where the change log holds a higher version for its key.
        logs_changes: a commit takes its event with it.
        commits_first: a write commits before it changes the slot.
        asks_once: a lease that was not answered is not asked for again with the same token.
        believes_answers_only: whoever was not told that the lease is theirs does not act as its holder.
        waits: a read that meets a lease waits, and does not join a load that may have begun before it.
        forgets: a cache that comes back after a failure comes back empty, not as it once was.
        empties: a reconciler empties what is ahead of the row, and does not fill it with the row.
    """

    redraws: bool = True
    logs_changes: bool = True
    commits_first: bool = True
    asks_once: bool = True
    believes_answers_only: bool = True
    waits: bool = True
    forgets: bool = True
    empties: bool = True


@dataclass(frozen=True)
class Scope:
    """What is explored.

    Attributes:
        name: says which races of the catalogue it covers.
        processes: who takes part.
        row: the row's version at first.
        slot: the slot at first.
        lossy: whether the slot may be emptied at any moment: expiry, eviction, flush, restart.
        silent: whether Redis may leave a lease unanswered, and still carry it out at any later moment.
        on_change: as the entity declares.
        promised_at: when a write becomes what later reads must see.
        wrong: whether the slot is wrong at first, which nobody but a reconciler has to make right.
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


def value(version: int, fingerprint: bytes = NEW) -> bytes:
    """The slot that holds the row at this version."""
    return encode_value(version, fingerprint, b"{}")
