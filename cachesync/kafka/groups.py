"""Consumer groups: the settings of their members, what these consume, and how far behind they are."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import Consumer, KafkaException, TopicPartition
from confluent_kafka.admin import AdminClient, OffsetSpec  # type: ignore[attr-defined]

from cachesync.errors import KafkaUnavailableError
from cachesync.kafka.clients import open_client
from cachesync.kafka.errors import COORDINATOR_MOVES, translate_kafka_errors

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence
    from concurrent.futures import Future

_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.1
_MAX_NAMED: Final = 5


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


def shared_groups(groups: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield the caches that share a consumer group with another, each with what is wrong.

    Args:
        groups: the consumer group of each cache, by the name of its service.
    """
    followers: dict[str, str] = {}
    for service, group in groups.items():
        if group in followers:
            problem = (
                f"caches {followers[group]} and {service} share the group {group}, so each gets only some "
                "of the changes"
            )
            yield service, problem
        followers[group] = service


def unconsumed_in_words(partitions: Sequence[str], service: str, group: str) -> str:
    """Return what it means that no consumer of a group has some partitions.

    Args:
        partitions: the result of `unconsumed`, which is not empty.
        service: the service of the cache that the group keeps in sync.
        group: the consumer group.
    """
    more = len(partitions) - _MAX_NAMED
    named = [*partitions[:_MAX_NAMED], *([f"{more} more"] if more > 0 else [])]
    return f"cache {service} is not followed: group {group} has no consumer for {', '.join(named)}"


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
    (members,) = _members(_described(admin, [group], _SECONDS), _SECONDS).values()
    consumed = {place for member in members for place in member.partitions}
    partitions = [
        f"{topic}[{partition}]"
        for topic in topics
        if topic in existing
        for partition in sorted(existing[topic].partitions)
        if (topic, partition) not in consumed
    ]
    return partitions + [topic for topic in topics if topic not in existing]


Place = tuple[str, int]
"""A topic and one of its partitions."""


@dataclass(frozen=True, slots=True)
class Member:
    """A living member of a consumer group.

    Attributes:
        client: its client id.
        host: the address from which it is connected.
        partitions: the partitions that it consumes.
    """

    client: str
    host: str
    partitions: tuple[Place, ...]


@dataclass(frozen=True, slots=True)
class Group:
    """A consumer group.

    Attributes:
        members: its living members.
        lag: for each partition of the topics, the messages after the offset that the group has committed.
    """

    members: tuple[Member, ...]
    lag: Mapping[Place, int]


class Groups:
    """Describes consumer groups, without joining them. Its methods are called by one thread at a time.

    Args:
        kafka: librdkafka's settings for connecting to the brokers.
        groups: the consumer groups.

    Raises:
        SettingsError: a setting has no value.
        KafkaUnavailableError: librdkafka rejected the settings.
    """

    def __init__(self, kafka: Mapping[str, Any], groups: Collection[str]) -> None:
        self._admin = open_client(AdminClient, kafka)
        # The request of the administrative client for the offsets of a group crashes the process if the
        # group's coordinator is moving (librdkafka 2.16).
        self._consumers = {
            group: open_client(Consumer, {**kafka, "group.id": group, "enable.auto.commit": False})
            for group in groups
        }

    def close(self) -> None:
        """Close the clients."""
        for consumer in self._consumers.values():
            consumer.close()

    def describe(self, topics: Collection[str], seconds: float) -> dict[str, Group]:
        """Return the members of the groups, and how far they are behind.

        A group that does not exist has no members.

        Args:
            topics: the topics that they consume; those that do not exist have no partitions.
            seconds: the timeout for each request.

        Raises:
            KafkaUnavailableError: Kafka did not respond or rejected a request.
        """
        deadline = time.monotonic() + seconds
        while True:
            try:
                return self._describe(topics, seconds)
            except KafkaUnavailableError as error:
                cause = error.__cause__
                moving = isinstance(cause, KafkaException) and cause.args[0].code() in COORDINATOR_MOVES
                if not moving or time.monotonic() > deadline:
                    raise
                time.sleep(_PAUSE_SECONDS)

    def _describe(self, topics: Collection[str], seconds: float) -> dict[str, Group]:
        with translate_kafka_errors():
            existing = self._admin.list_topics(timeout=seconds).topics
        places = [
            TopicPartition(topic, partition)
            for topic in topics
            if topic in existing
            for partition in existing[topic].partitions
        ]
        latest = OffsetSpec.latest()  # type: ignore[no-untyped-call]
        ends = self._admin.list_offsets(dict.fromkeys(places, latest), request_timeout=seconds)
        members = _members(_described(self._admin, self._consumers, seconds), seconds)
        end_offsets = {
            (place.topic, place.partition): _result(end, f"topic {place.topic}", seconds).offset
            for place, end in ends.items()
        }
        result = {}
        for group, consumer in self._consumers.items():
            with translate_kafka_errors():
                committed = consumer.committed(places, timeout=seconds)
            # Without an offset, a group begins with the first message: compaction leaves its offset at 0.
            offsets = {(place.topic, place.partition): max(0, place.offset) for place in committed}
            lag = {place: max(0, end - offsets[place]) for place, end in end_offsets.items()}
            result[group] = Group(members[group], lag)
        return result


def _described(admin: AdminClient, groups: Collection[str], seconds: float) -> dict[str, Future[Any]]:
    return admin.describe_consumer_groups(list(groups), request_timeout=seconds)


def _members(described: Mapping[str, Future[Any]], seconds: float) -> dict[str, tuple[Member, ...]]:
    """Return the members of each group."""
    return {
        group: tuple(
            Member(
                member.client_id,
                member.host.removeprefix("/"),
                tuple((place.topic, place.partition) for place in member.assignment.topic_partitions),
            )
            for member in _result(future, f"group {group}", seconds).members
        )
        for group, future in described.items()
    }


def _result(future: Future[Any], what: str, seconds: float) -> Any:
    try:
        # Longer than the request can take, whose error says more.
        return future.result(2 * seconds)
    except KafkaException as error:
        message = f"Kafka: {what}: {error.args[0].name()}"
        raise KafkaUnavailableError(message) from error
    except TimeoutError as error:
        message = f"Kafka: {what}: no response"
        raise KafkaUnavailableError(message) from error
