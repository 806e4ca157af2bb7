"""Errors of the Kafka client: their translation, and the codes that this library handles."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaError, KafkaException

from cachesync.errors import KafkaUnavailableError

if TYPE_CHECKING:
    from collections.abc import Iterator

# ruff: noqa: SLF001 - the codes of librdkafka itself, unlike those of the broker, have no public names
ALL_BROKERS_DOWN: Final = KafkaError._ALL_BROKERS_DOWN
AUTHENTICATION: Final = KafkaError._AUTHENTICATION
FATAL: Final = KafkaError._FATAL
MSG_TIMED_OUT: Final = KafkaError._MSG_TIMED_OUT
PARTITION_EOF: Final = KafkaError._PARTITION_EOF
QUEUE_FULL: Final = KafkaError._QUEUE_FULL
SSL: Final = KafkaError._SSL
TIMED_OUT: Final = KafkaError._TIMED_OUT
UNKNOWN_PARTITION: Final = KafkaError._UNKNOWN_PARTITION
UNKNOWN_TOPIC: Final = KafkaError._UNKNOWN_TOPIC

MISSING_TOPIC: Final = frozenset({UNKNOWN_TOPIC, UNKNOWN_PARTITION, KafkaError.UNKNOWN_TOPIC_OR_PART})
"""The codes with which the client or the broker reports a topic or partition that does not exist."""

TOO_LARGE: Final = frozenset(
    {KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.RECORD_LIST_TOO_LARGE, KafkaError.INVALID_MSG_SIZE}
)
"""The codes with which the client, the topic or the broker rejects a message because of its size."""


COORDINATOR_MOVES: Final = frozenset(
    {
        KafkaError.NOT_COORDINATOR,
        KafkaError.COORDINATOR_NOT_AVAILABLE,
        KafkaError.COORDINATOR_LOAD_IN_PROGRESS,
    }
)
"""The codes of a request about a consumer group that succeeds once a broker has taken the group over."""


@contextmanager
def translate_kafka_errors() -> Iterator[None]:
    """Raise errors of the Kafka client as a KafkaUnavailableError.

    Raises:
        KafkaUnavailableError: Kafka did not respond or rejected a request, or the producer's queue is full.
    """
    try:
        yield
    except KafkaException as error:
        message = f"Kafka: {error.args[0].str()}"
        raise KafkaUnavailableError(message) from error
    except BufferError as error:
        message = "Kafka: the producer's queue is full"
        raise KafkaUnavailableError(message) from error
