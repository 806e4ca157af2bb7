"""Sending messages to the dead-letter topics."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaException

from cachesync.dead_letters.letter import DEFAULT_POLICY, encoded, first_fields
from cachesync.errors import KafkaUnavailableError
from cachesync.kafka.errors import translate_kafka_errors
from cachesync.kafka.event import headers_of
from cachesync.kafka.topics import DEAD_LETTERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from confluent_kafka import KafkaError, Message, Producer

    from cachesync.dead_letters.letter import Outgoing, RetryPolicy, Stage

_FLUSH_SECONDS: Final = 10.0


class DeadLetterSender:
    """Sends messages to the dead-letter topic, their bytes and headers untouched, for one consumer group.

    Args:
        connect: makes the producer; called when the first letter is sent.
        service: the service whose cache the message was meant for.
        group: its consumer group.
        policy: how often a letter is to be tried.
    """

    def __init__(
        self,
        connect: Callable[[], Producer],
        service: str,
        group: str,
        policy: RetryPolicy = DEFAULT_POLICY,
    ) -> None:
        self._connect = connect
        self._producer: Producer | None = None
        self._service = service
        self._group = group
        self._policy = policy

    def send(self, letters: list[tuple[Message, Stage, str]]) -> None:
        """Send messages, each with the stage and the error that it failed with, and wait until they are safe.

        Raises:
            KafkaUnavailableError: the broker did not acknowledge all of them in time.
        """
        if not letters:
            return
        if self._producer is None:
            self._producer = self._connect()
        now = datetime.now(UTC)
        outgoing: list[Outgoing] = []
        for message, stage, error in letters:
            fields = first_fields(message, self._service, self._group, stage, error, now, self._policy)
            headers = [*headers_of(message), *encoded(fields)]
            outgoing.append((DEAD_LETTERS, message.key(), message.value(), headers))
        deliver(self._producer, outgoing)


def deliver(producer: Producer, messages: Iterable[Outgoing]) -> None:
    """Send messages, and wait until they are safe.

    Raises:
        KafkaUnavailableError: the broker did not acknowledge all of them in time.
    """
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error)

    with translate_kafka_errors():
        for topic, key, value, headers in messages:
            producer.produce(topic, key=key, value=value, headers=headers, on_delivery=delivered)
        left = producer.flush(_FLUSH_SECONDS)
        if failures:
            raise KafkaException(failures[0])
    if left:
        message = f"Kafka did not acknowledge {left} dead letters within {_FLUSH_SECONDS:.0f} s"
        raise KafkaUnavailableError(message)
