"""The open dead letters, of which only what is new is read each time."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from cachesync.dead_letters.audit import closed, readable, version_of
from cachesync.dead_letters.letter import LetterId
from cachesync.dead_letters.reader import DeadLetterReader
from cachesync.kafka.topics import DEAD_LETTERS, PARKING_LOT
from cachesync.postgres.statements import statement

if TYPE_CHECKING:
    from collections.abc import Mapping
    from datetime import datetime

    import asyncpg

    from cachesync.dead_letters.letter import Letter

MAX_LETTERS: Final = 100_000
"""Maximum number of open letters that are read; each takes up about half a kilobyte."""

_BATCH: Final = 500


class OpenLetter(NamedTuple):
    """An open letter, without its message.

    Attributes:
        id: its position in Kafka.
        service, entity: the cache and the entity that its message was meant for.
        key: the key of the message as text; None if it has none.
        version: the version of its change; None if it cannot be decoded.
        stage, error: the step at which it failed most recently, and the reason.
        attempt, maximum: how many times it has failed, and after how many failures it is parked.
        first_failed_at, last_failed_at: the time of the first and of the most recent failure.
        not_before: when it is due to be retried.
    """

    id: LetterId
    service: str
    entity: str
    key: str | None
    version: int | None
    stage: str
    error: str
    attempt: int
    maximum: int
    first_failed_at: datetime
    last_failed_at: datetime
    not_before: datetime

    @property
    def parked(self) -> bool:
        """Whether it is in the parking lot, and no longer retried."""
        return self.id.topic == PARKING_LOT


class OpenLetters:
    """Knows the open letters. To be used by one event loop.

    Args:
        kafka: librdkafka's settings for connecting to the brokers.

    Attributes:
        complete: whether there are no more than `MAX_LETTERS`.

    Raises:
        KafkaUnavailableError: librdkafka rejected the settings.
    """

    def __init__(self, kafka: Mapping[str, Any]) -> None:
        self._reader = DeadLetterReader(kafka)
        self._lock = asyncio.Lock()
        self._last_action: int | None = None
        self._open: dict[LetterId, OpenLetter] = {}
        # By topic and partition, the offset to which the letters were read.
        self._read: dict[str, dict[int, int]] = {DEAD_LETTERS: {}, PARKING_LOT: {}}
        self.complete = True

    def close(self) -> None:
        """Close the Kafka client."""
        self._reader.__exit__()

    async def refresh(self, connection: asyncpg.Connection) -> list[OpenLetter]:
        """Return the open letters, those that failed first at the beginning.

        Args:
            connection: a connection with the role `cachesync_worker`.

        Raises:
            KafkaUnavailableError: Kafka did not respond.
            TopicError: a topic is missing.
        """
        async with self._lock:
            # First, so that no action falls between this and the look at the letters that are new.
            await self._forget_closed(connection)
            self.complete = True
            for topic, read in self._read.items():
                bounds = await asyncio.to_thread(self._reader.bounds, topic)
                for one in [one for one in self._open if one.topic == topic]:
                    first, end = bounds.get(one.partition, (0, 0))
                    if not first <= one.offset < end:  # It has expired, or the topic was recreated.
                        del self._open[one]
                if any(read.get(number) != end for number, (_, end) in bounds.items()):
                    await self._read_new(connection, topic, read, bounds)
            return sorted(self._open.values(), key=lambda letter: letter.first_failed_at)

    async def _forget_closed(self, connection: asyncpg.Connection) -> None:
        if self._last_action is None:
            self._last_action = await connection.fetchval(
                "SELECT coalesce(max(id), 0) FROM cachesync.dead_letter_action"
            )
            return
        for number, *letter in await connection.fetch(
            statement("dead_letters/closed_since"), self._last_action
        ):
            self._last_action = number
            self._open.pop(LetterId(*letter), None)

    async def _read_new(
        self,
        connection: asyncpg.Connection,
        topic: str,
        read: dict[int, int],
        bounds: Mapping[int, tuple[int, int]],
    ) -> None:
        for number, (_, end) in bounds.items():
            if read.get(number, 0) > end:  # The topic was recreated.
                del read[number]
        batches = self._reader.batches(topic, _BATCH, read)
        while len(self._open) < MAX_LETTERS:
            batch = await asyncio.to_thread(next, batches, None)
            if batch is None:
                read |= {number: end for number, (_, end) in bounds.items() if read.get(number, 0) < end}
                return
            done = await closed(connection, batch)
            self._open |= {letter.id: _without_message(letter) for letter in batch if letter.id not in done}
            read |= {letter.id.partition: letter.id.offset + 1 for letter in batch}
        self.complete = False
        await asyncio.to_thread(batches.close)


def _without_message(letter: Letter) -> OpenLetter:
    return OpenLetter(
        letter.id,
        letter.service,
        letter.entity,
        readable(letter.key),
        version_of(letter),
        letter.stage.value,
        letter.error,
        letter.attempt,
        letter.max_attempts,
        letter.first_failed_at,
        letter.last_failed_at,
        letter.not_before,
    )
