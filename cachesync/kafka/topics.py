"""The Kafka topics: one per entity, the dead-letter topic and the parking lot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient, ConfigResource, NewTopic  # type: ignore[attr-defined]

from cachesync.entity import CANARY, TOPIC_PREFIX
from cachesync.errors import TopicError
from cachesync.kafka.clients import open_client
from cachesync.kafka.errors import translate_kafka_errors

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cachesync.entity import Entity

DEAD_LETTERS: Final = TOPIC_PREFIX + "dead-letters"
PARKING_LOT: Final = TOPIC_PREFIX + "parking-lot"

_TIMEOUT_SECONDS: Final = 30.0
_DESCRIBE_SECONDS: Final = 10.0
_DEAD_LETTER_DAYS: Final = 30
_PARKED_DAYS: Final = 365
# How long a stream can be down without missing a change. Versions reach a topic in no particular order, and
# compaction keeps the last message of a key, which is not always its newest change.
_COMPACTION_LAG_DAYS: Final = 7


def _milliseconds(days: int) -> str:
    return str(days * 86_400_000)


COMPACTED: Final = {
    "cleanup.policy": "compact",
    "min.compaction.lag.ms": _milliseconds(_COMPACTION_LAG_DAYS),
    "delete.retention.ms": _milliseconds(_COMPACTION_LAG_DAYS),
}
"""The configuration of an entity's topic."""


@dataclass(frozen=True, slots=True)
class TopicState:
    """A topic as the brokers have it.

    Attributes:
        partitions: the number of its partitions.
        replication: the number of brokers that store each message of the partition that has the fewest.
        config: its configuration, by Kafka's names.
    """

    partitions: int
    replication: int
    config: Mapping[str, str]


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
    topics = [
        NewTopic(entity.topic, partitions, replication, config=COMPACTED) for entity in (*entities, CANARY)
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


def describe_topics(kafka: Mapping[str, Any], names: Iterable[str]) -> tuple[int, dict[str, TopicState]]:
    """Read the state of topics.

    Args:
        kafka: librdkafka's settings for connecting to the brokers.
        names: the names of the topics.

    Returns:
        The number of brokers, and the topics that exist, by name.

    Raises:
        KafkaUnavailableError: Kafka did not respond or rejected the request.
    """
    admin = open_client(AdminClient, kafka)
    with translate_kafka_errors():
        cluster = admin.list_topics(timeout=_DESCRIBE_SECONDS)
        existing = [name for name in names if name in cluster.topics]
        if not existing:
            return len(cluster.brokers), {}
        resources = [ConfigResource(ConfigResource.Type.TOPIC, name) for name in existing]
        described = admin.describe_configs(resources, request_timeout=_DESCRIBE_SECONDS)
        configs = {
            resource.name: outcome.result(2 * _DESCRIBE_SECONDS) for resource, outcome in described.items()
        }
    return len(cluster.brokers), {
        name: TopicState(
            partitions=len(cluster.topics[name].partitions),
            replication=min(len(one.replicas) for one in cluster.topics[name].partitions.values()),
            config={entry.name: entry.value for entry in configs[name].values()},
        )
        for name in existing
    }
