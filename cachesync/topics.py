"""The Kafka topics: one per entity, and that of the dead letters."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from cachesync import dead_letter
from cachesync.errors import CacheSyncError

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cachesync.entity import Entity

_TIMEOUT_SECONDS: Final = 30.0
_DEAD_LETTER_DAYS: Final = 30


class TopicsError(CacheSyncError):
    """The topics cannot be made."""


def create_topics(
    bootstrap_servers: str, entities: Iterable[Entity], *, partitions: int, replication: int
) -> list[str]:
    """Make the topics that are missing; those that are there stay as they are.

    An entity's topic is compacted: it keeps the last change of each key.

    Args:
        bootstrap_servers: the brokers.
        entities: the declared entities.
        partitions: how many partitions an entity's topic has; the most consumers that share its load.
        replication: on how many brokers each message is kept.

    Returns:
        The names of the topics that were made.

    Raises:
        TopicsError: the brokers do not answer or refuse.
    """
    topics = [
        NewTopic(entity.topic, partitions, replication, config={"cleanup.policy": "compact"})
        for entity in entities
    ]
    retention = str(_DEAD_LETTER_DAYS * 86_400_000)
    topics.append(NewTopic(dead_letter.TOPIC, 1, replication, config={"retention.ms": retention}))
    admin = AdminClient({"bootstrap.servers": bootstrap_servers})
    made = []
    for name, outcome in admin.create_topics(topics, request_timeout=_TIMEOUT_SECONDS).items():
        try:
            outcome.result(_TIMEOUT_SECONDS)
        except KafkaException as error:
            problem: KafkaError = error.args[0]
            if problem.code() != KafkaError.TOPIC_ALREADY_EXISTS:
                message = f"topic {name} at {bootstrap_servers}: {problem.str()}"
                raise TopicsError(message) from error
        else:
            made.append(name)
    return made
