"""Sends messages to the dead-letter topic and the parking lot."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaException

from cachesync.dead_letters.letter import DEFAULT_POLICY, encoded, first_fields, smaller
from cachesync.errors import KafkaUnavailableError
from cachesync.kafka.errors import TOO_LARGE, translate_kafka_errors
from cachesync.kafka.event import headers_of
from cachesync.kafka.topics import DEAD_LETTERS

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from confluent_kafka import KafkaError, Message, Producer

    from cachesync.dead_letters.letter import Outgoing, RetryPolicy, Stage

_FLUSH_SECONDS: Final = 10.0


class DeadLetterSender:
    """Copies a consumer group's failed messages to the dead-letter topic, with key, value and headers.

    Args:
        connect: creates the producer; called when the first letter is sent.
        service: the service whose cache the messages were meant for.
        group: the consumer group of the service's cache.
        policy: determines when a letter is due, and how many times it is retried.
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
        """Send messages and wait for Kafka's acknowledgement.

        Args:
            letters: the failed messages, each with the stage at which it failed and the error.

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
    """Send messages and wait for Kafka's acknowledgement. A part of a message that is too large is left out.

    Args:
        producer: the producer.
        messages: the messages to send.

    Raises:
        KafkaUnavailableError: the broker did not acknowledge all of them in time.
    """
    failures: list[KafkaError] = []
    with translate_kafka_errors():
        for outgoing in messages:
            _produce(producer, outgoing, failures)
        pending = producer.flush(_FLUSH_SECONDS)
        if failures:
            raise KafkaException(failures[0])
    if pending:
        message = f"Kafka did not acknowledge {pending} dead letters within {_FLUSH_SECONDS:.0f} s"
        raise KafkaUnavailableError(message)


def _produce(producer: Producer, outgoing: Outgoing, failures: list[KafkaError]) -> None:
    """Queue a message; `failures` receives the error that prevents its delivery."""

    def failed(error: KafkaError) -> None:
        less = smaller(outgoing) if error.code() in TOO_LARGE else None
        if less is None:
            failures.append(error)
        else:
            _produce(producer, less, failures)

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failed(error)

    topic, key, value, headers = outgoing
    try:
        producer.produce(topic, key=key, value=value, headers=headers, on_delivery=delivered)
    except KafkaException as error:
        failed(error.args[0])
