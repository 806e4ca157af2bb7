"""Consumer groups: the settings of their members, and which partitions these have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

from cachesync.errors import KafkaUnavailableError
from cachesync.kafka.clients import open_client
from cachesync.kafka.errors import translate_kafka_errors

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

_SECONDS: Final = 10.0


def group_of(service: str) -> str:
    """Return the consumer group of a service's cache, unless the user has chosen another."""
    return f"cachesync-{service}"


def consumer_settings(kafka: Mapping[str, Any], group: str) -> dict[str, Any]:
    """Return the settings of a member of a cache's consumer group; `docs/airflow.md` gives the reasons.

    Args:
        kafka: librdkafka's settings for connecting to the brokers.
        group: the consumer group.
    """
    return {
        **kafka,
        "group.id": group,
        "enable.auto.commit": False,
        "auto.offset.reset": "earliest",
        "fetch.wait.max.ms": 500,
        "session.timeout.ms": 6000,
        "heartbeat.interval.ms": 1000,
        "socket.timeout.ms": 10_000,
        "socket.connection.setup.timeout.ms": 10_000,
        "reconnect.backoff.max.ms": 2000,
        "topic.metadata.refresh.interval.ms": 10_000,
    }


def unconsumed(kafka: Mapping[str, Any], group: str, topics: Collection[str]) -> list[str]:
    """Return the partitions of the topics that no living consumer of a group has, such as `topic[0]`.

    While the group's partitions are being redistributed, no consumer has any.

    Args:
        kafka: librdkafka's settings for connecting to the brokers.
        group: the consumer group.
        topics: the topics that the group must consume; a missing topic is returned by its name.

    Raises:
        KafkaUnavailableError: Kafka did not respond or rejected the request.
    """
    admin = open_client(AdminClient, kafka)
    with translate_kafka_errors():
        existing = admin.list_topics(timeout=_SECONDS).topics
    consumed = _consumed(admin, group)
    partitions = [
        f"{topic}[{partition}]"
        for topic in topics
        if topic in existing
        for partition in sorted(existing[topic].partitions)
        if (topic, partition) not in consumed
    ]
    return partitions + [topic for topic in topics if topic not in existing]


def _consumed(admin: AdminClient, group: str) -> set[tuple[str, int]]:
    """Return the topics and partitions that the members of a group have."""
    described = admin.describe_consumer_groups([group], request_timeout=_SECONDS)[group]
    try:
        # Longer than the request can take, whose error says more.
        members = described.result(2 * _SECONDS).members
    except KafkaException as error:
        message = f"Kafka: group {group}: {error.args[0].name()}"
        raise KafkaUnavailableError(message) from error
    except TimeoutError as error:
        message = f"Kafka: group {group}: no response"
        raise KafkaUnavailableError(message) from error
    return {
        (partition.topic, partition.partition)
        for member in members
        for partition in member.assignment.topic_partitions
    }
