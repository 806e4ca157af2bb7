"""The audit table: one row per action on a dead letter."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING

from cachesync.dead_letters.letter import LetterId
from cachesync.errors import UndecodableError
from cachesync.postgres.statements import statement

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import asyncpg

    from cachesync.dead_letters.letter import Letter


class Action(StrEnum):
    """What was done with a letter. Every action closes the letter, except a failed replay."""

    RETRIED = "retried"
    RESOLVED = "resolved"
    SUPERSEDED = "superseded"
    PARKED = "parked"
    REPLAYED = "replayed"
    DISCARDED = "discarded"

    @property
    def closes(self) -> bool:
        """Whether the action closes the letter."""
        return self is not Action.REPLAYED


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """One action on one letter.

    Attributes:
        letter: the letter.
        action: what was done with it.
        attempt: how many times its message has failed so far.
        error: why the message failed most recently.
    """

    letter: Letter
    action: Action
    attempt: int
    error: str


async def closed(connection: asyncpg.Connection, letters: Sequence[Letter]) -> set[LetterId]:
    """Return the ids of the letters that are closed.

    Args:
        connection: a connection with the role `cachesync_worker`.
        letters: the letters to look up; all must be in the same topic.
    """
    if not letters:
        return set()
    ids = [letter.id for letter in letters]
    topic = ids[0].topic
    records = await connection.fetch(
        statement("dead_letters/closed"),
        topic,
        [one.partition for one in ids],
        [one.offset for one in ids],
        [one.sent_at for one in ids],
    )
    return {LetterId(topic, *record) for record in records}


async def record(
    connection: asyncpg.Connection, actor: str, reason: str | None, entries: Iterable[AuditEntry]
) -> None:
    """Insert actions into the audit table.

    Args:
        connection: a connection with the role `cachesync_worker`.
        actor: who requested the actions.
        reason: why; None if no reason was given.
        entries: the actions.
    """
    rows = [
        (
            without_nul(actor),
            None if reason is None else without_nul(reason),
            entry.action.value,
            entry.letter.id.topic,
            entry.letter.id.partition,
            entry.letter.id.offset,
            entry.letter.id.sent_at,
            without_nul(entry.letter.service),
            without_nul(entry.letter.original_topic),
            entry.letter.original_partition,
            entry.letter.original_offset,
            without_nul(entry.letter.entity),
            readable(entry.letter.key),
            version_of(entry.letter),
            entry.attempt,
            without_nul(entry.error),
        )
        for entry in entries
    ]
    await connection.executemany(statement("dead_letters/record"), rows)


def readable(key: bytes | None) -> str | None:
    """Return a message's key as text; bytes that are not UTF-8 become escape sequences."""
    return None if key is None else without_nul(key.decode(errors="backslashreplace"))


def version_of(letter: Letter) -> int | None:
    """Return the row version of a letter's change, or None if it cannot be decoded."""
    with suppress(UndecodableError):
        return letter.change().version
    return None


def without_nul(text: str) -> str:
    """Escape NUL characters, which PostgreSQL's `text` cannot store."""
    return text.replace("\0", "\\0")
