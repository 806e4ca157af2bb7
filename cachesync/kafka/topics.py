"""The Kafka topics: one per entity, that of the dead letters, and the parking lot."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from cachesync.entity import TOPIC_PREFIX
from cachesync.errors import TopicError

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cachesync.entity import Entity

DEAD_LETTERS: Final = TOPIC_PREFIX + "dead-letters"
PARKING_LOT: Final = TOPIC_PREFIX + "parking-lot"

_TIMEOUT_SECONDS: Final = 30.0
_DEAD_LETTER_DAYS: Final = 30
_PARKED_DAYS: Final = 365
# How long a cache may be away and still follow. Versions reach a topic in any order, and compaction keeps
# the last message of a key, which may not be its newest change.
_COMPACTION_LAG_DAYS: Final = 7


def create_topics(
    kafka: Mapping[str, Any], entities: Iterable[Entity], *, partitions: int, replication: int
) -> list[str]:
    """Make the topics that are missing; those that are there stay as they are.

    An entity's topic is compacted: it keeps all changes for a week, and then the last of each key.

    Args:
        kafka: the settings of a Kafka client that lead to the brokers.
        entities: the declared entities.
        partitions: how many partitions an entity's topic has; the most consumers that share its load.
        replication: on how many brokers each message is kept.

    Returns:
        The names of the topics that were made.

    Raises:
        TopicError: the brokers do not answer or refuse.
    """
    compacted = {
        "cleanup.policy": "compact",
        "min.compaction.lag.ms": _milliseconds(_COMPACTION_LAG_DAYS),
        "delete.retention.ms": _milliseconds(_COMPACTION_LAG_DAYS),
    }
    topics = [NewTopic(entity.topic, partitions, replication, config=compacted) for entity in entities]
    for name, days in ((DEAD_LETTERS, _DEAD_LETTER_DAYS), (PARKING_LOT, _PARKED_DAYS)):
        topics.append(NewTopic(name, 1, replication, config={"retention.ms": _milliseconds(days)}))
    admin = AdminClient(dict(kafka))
    made = []
    for name, outcome in admin.create_topics(topics, request_timeout=_TIMEOUT_SECONDS).items():
        try:
            outcome.result(_TIMEOUT_SECONDS)
        except KafkaException as error:
            problem: KafkaError = error.args[0]
            if problem.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                message = f"topic {name} at {kafka['bootstrap.servers']}: {problem.str()}"
                raise TopicError(message) from error
        else:
            made.append(name)
    return made


def _milliseconds(days: int) -> str:
    return str(days * 86_400_000)
