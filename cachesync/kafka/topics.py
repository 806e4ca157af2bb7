"""The Kafka topics: one per entity, the dead-letter topic and the parking lot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from cachesync.entity import CANARY, TOPIC_PREFIX
from cachesync.errors import TopicError
from cachesync.kafka.clients import open_client

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cachesync.entity import Entity

DEAD_LETTERS: Final = TOPIC_PREFIX + "dead-letters"
PARKING_LOT: Final = TOPIC_PREFIX + "parking-lot"

_TIMEOUT_SECONDS: Final = 30.0
_DEAD_LETTER_DAYS: Final = 30
_PARKED_DAYS: Final = 365
# How long a stream can be down without missing a change. Versions reach a topic in no particular order, and
# compaction keeps the last message of a key, which is not always its newest change.
_COMPACTION_LAG_DAYS: Final = 7


def create_topics(
    kafka: Mapping[str, Any], entities: Iterable[Entity], *, partitions: int, replication: int
) -> list[str]:
    """Create the missing topics; existing topics are left unchanged.

    The topics of the entities are compacted: they keep all messages for a week, and after that the last
    message of each key.

    Args:
        kafka: librdkafka's settings for connecting to the brokers.
        entities: the declared entities; that of the live check is added.
        partitions: the number of partitions of an entity's topic, which is the maximum number of consumers
            that can share its load.
        replication: the number of brokers that store each message.

    Returns:
        The names of the created topics.

    Raises:
        TopicError: the brokers did not respond, or refused to create a topic.
        KafkaUnavailableError: librdkafka rejected the settings.
    """
    compacted = {
        "cleanup.policy": "compact",
        "min.compaction.lag.ms": _milliseconds(_COMPACTION_LAG_DAYS),
        "delete.retention.ms": _milliseconds(_COMPACTION_LAG_DAYS),
    }
    topics = [
        NewTopic(entity.topic, partitions, replication, config=compacted) for entity in (*entities, CANARY)
    ]
    for name, days in ((DEAD_LETTERS, _DEAD_LETTER_DAYS), (PARKING_LOT, _PARKED_DAYS)):
        topics.append(NewTopic(name, 1, replication, config={"retention.ms": _milliseconds(days)}))
    admin = open_client(AdminClient, kafka)
    created = []
    for name, outcome in admin.create_topics(topics, request_timeout=_TIMEOUT_SECONDS).items():
        try:
            # Longer than the request can take, whose error says more.
            outcome.result(2 * _TIMEOUT_SECONDS)
        except TimeoutError as error:
            message = f"cannot create topic {name} at {kafka['bootstrap.servers']}: no response"
            raise TopicError(message) from error
        except KafkaException as error:
            problem: KafkaError = error.args[0]
            if problem.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                message = f"cannot create topic {name} at {kafka['bootstrap.servers']}: {problem.str()}"
                raise TopicError(message) from error
        else:
            created.append(name)
    return created


def _milliseconds(days: int) -> str:
    return str(days * 86_400_000)
