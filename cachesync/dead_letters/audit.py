"""What became of dead letters: one row of a table per action."""

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
    """What was done with a letter. All but a failed replay close it."""

    RETRIED = "retried"
    RESOLVED = "resolved"
    SUPERSEDED = "superseded"
    PARKED = "parked"
    REPLAYED = "replayed"
    DISCARDED = "discarded"

    @property
    def closes(self) -> bool:
        """Whether the letter is closed by it."""
        return self is not Action.REPLAYED


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """An action and its letter.

    Attributes:
        letter: the letter.
        action: what was done with it.
        attempt: how often it has failed by now.
        error: why it failed the last time.
    """

    letter: Letter
    action: Action
    attempt: int
    error: str


async def closed(connection: asyncpg.Connection, letters: Sequence[Letter]) -> set[LetterId]:
    """The places of those of the letters, all of one topic, that are closed."""
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
    connection: asyncpg.Connection, actor: str, reason: str | None, endings: Iterable[AuditEntry]
) -> None:
    """Write actions down.

    Args:
        connection: one with the rights of `cachesync_worker`.
        actor: who does it.
        reason: why, as far as somebody said.
        endings: the actions.
    """
    rows = [
        (
            _text(actor),
            None if reason is None else _text(reason),
            ending.action.value,
            ending.letter.id.topic,
            ending.letter.id.partition,
            ending.letter.id.offset,
            ending.letter.id.sent_at,
            _text(ending.letter.service),
            _text(ending.letter.original_topic),
            ending.letter.original_partition,
            ending.letter.original_offset,
            _text(ending.letter.entity),
            readable(ending.letter.key),
            version_of(ending.letter),
            ending.attempt,
            _text(ending.error),
        )
        for ending in endings
    ]
    await connection.executemany(statement("dead_letters/record"), rows)


def readable(key: bytes | None) -> str | None:
    """A message's key as text, whatever its bytes."""
    return None if key is None else _text(key.decode(errors="backslashreplace"))


def version_of(letter: Letter) -> int | None:
    """The row version that a letter is about; None where it cannot be decoded."""
    with suppress(UndecodableError):
        return letter.change().version
    return None


def _text(text: str) -> str:
    """Without NUL, which PostgreSQL's texts cannot hold."""
    return text.replace("\0", "\\0")
