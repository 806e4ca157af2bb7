"""Messages that could not be applied, kept with all that is needed to try again."""

from __future__ import annotations

from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Final

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, KafkaException

from cachesync.event import headers_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka import KafkaError, Message, Producer

    from cachesync.event import Headers

TOPIC: Final = "cachesync.dead-letters"
PARKING_LOT: Final = "cachesync.parking-lot"
MOST_ATTEMPTS: Final = 5
_PREFIX: Final = "dead-letter-"
_FLUSH_SECONDS: Final = 10.0
_LONGEST_ERROR: Final = 1000


class Stage(StrEnum):
    """Where a message failed."""

    DECODE = "decode"
    CACHE = "cache"


class DeadLetters:
    """Sends messages to the dead-letter topic, their bytes and headers untouched, for one consumer group.

    Args:
        connect: makes the producer; called when the first letter is sent.
        service: the service whose cache the message was meant for.
        group: its consumer group.
    """

    def __init__(self, connect: Callable[[], Producer], service: str, group: str) -> None:
        self._connect = connect
        self._producer: Producer | None = None
        self._service = service
        self._group = group

    def send(self, letters: list[tuple[Message, Stage, str]]) -> None:
        """Send messages, each with the stage and the error that it failed with, and wait until they are safe.

        Raises:
            KafkaException: the broker did not acknowledge them all.
        """
        if not letters:
            return
        if self._producer is None:
            self._producer = self._connect()
        failures: list[KafkaError] = []

        def delivered(error: KafkaError | None, _: Message) -> None:
            if error is not None:
                failures.append(error)

        for message, stage, error in letters:
            self._producer.produce(
                TOPIC,
                key=message.key(),
                value=message.value(),
                headers=[*headers_of(message), *self._headers(message, stage, error)],
                on_delivery=delivered,
            )
        left = self._producer.flush(_FLUSH_SECONDS)
        if failures:
            raise KafkaException(failures[0])
        if left:
            text = f"the broker did not take {left} dead letters within {_FLUSH_SECONDS:.0f} s"
            raise TimeoutError(text)

    def _headers(self, message: Message, stage: Stage, error: str) -> Headers:
        now = datetime.now(UTC).isoformat()
        kind, milliseconds = message.timestamp()
        fields = {
            "service": self._service,
            "original-topic": message.topic(),
            "original-partition": message.partition(),
            "original-offset": message.offset(),
            "original-timestamp": "" if kind == TIMESTAMP_NOT_AVAILABLE else milliseconds,
            "original-group": self._group,
            "stage": stage,
            "error": error[:_LONGEST_ERROR],
            "attempt": 1,
            "maximum": MOST_ATTEMPTS,
            "first-failed-at": now,
            "last-failed-at": now,
            "not-before": now,
        }
        return [(_PREFIX + name, str(value).encode()) for name, value in fields.items()]
