"""Examines the topics, and the consumer groups of the caches."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final

from cachesync.errors import CacheSyncError
from cachesync.kafka.groups import shared_groups, unconsumed, unconsumed_in_words
from cachesync.kafka.topics import COMPACTED, DEAD_LETTERS, PARKING_LOT, describe_topics

if TYPE_CHECKING:
    from collections.abc import Awaitable, Mapping

    from cachesync.doctor.finding import Part
    from cachesync.entity import Entity
    from cachesync.kafka.topics import TopicState

_POLICY: Final = "cleanup.policy"
_LAG: Final = "min.compaction.lag.ms"
_LARGEST: Final = "max.message.bytes"
# The default of `message.max.bytes` in librdkafka, with which the services and the relay send.
_PRODUCED_BYTES: Final = 1_000_000
_CREATE: Final = "run `cachesync create-topics`"


async def examine_topics(part: Part, kafka: Mapping[str, Any], entities: Mapping[str, Entity]) -> None:
    """Examine the topics of the entities and of the dead letters.

    Args:
        part: takes the findings.
        kafka: librdkafka's settings for connecting to the brokers.
        entities: the declared entities, by name.
    """
    names = [entity.topic for entity in entities.values()]
    letters = [DEAD_LETTERS, PARKING_LOT]
    try:
        brokers, topics = await asyncio.to_thread(describe_topics, kafka, [*names, *letters])
    except CacheSyncError as error:
        part.error(
            "connection",
            str(error),
            "check the brokers (--bootstrap-servers, KAFKA_BOOTSTRAP_SERVERS) and KAFKA_...",
        )
        return
    part.ok("connection", f"{brokers} broker{'s' * (brokers != 1)}")
    missing = [name for name in (*names, *letters) if name not in topics]
    if missing:
        part.error("topics", f"there is no topic {', '.join(missing)}, so that its changes wait", _CREATE)
    judge_topics(part, {name: topics[name] for name in names if name in topics}, brokers)
    for name in letters:
        if name in topics and "delete" not in topics[name].config.get(_POLICY, ""):
            part.error(
                "topics",
                f"{name} has {_POLICY}={topics[name].config.get(_POLICY)}, which removes letters that are "
                "open",
                f"set {_POLICY}=delete for it with kafka-configs",
            )


def judge_topics(part: Part, topics: Mapping[str, TopicState], brokers: int) -> None:
    """Record what the configuration of the entities' topics means.

    Args:
        part: takes the findings.
        topics: the topics by name.
        brokers: the number of brokers.
    """
    before = len(part.findings)
    for name, topic in topics.items():
        config = topic.config
        if config.get(_POLICY) != COMPACTED[_POLICY]:
            part.error(
                "topics",
                f"{name} has {_POLICY}={config.get(_POLICY)}: a stream that was down for longer than the "
                "topic keeps its messages would miss changes",
                f"set {_POLICY}={COMPACTED[_POLICY]} for it with kafka-configs",
            )
        elif int(config.get(_LAG, 0)) < int(COMPACTED[_LAG]):
            part.warning(
                "topics",
                f"{name} has {_LAG}={config.get(_LAG)}: compaction keeps the last message of a key, which "
                "is not always its newest change",
                f"set {_LAG}={COMPACTED[_LAG]} for it with kafka-configs",
            )
        if int(config.get(_LARGEST, _PRODUCED_BYTES)) < _PRODUCED_BYTES:
            part.warning(
                "topics",
                f"{name} has {_LARGEST}={config[_LARGEST]}: changes of larger rows are published without "
                "them, and empty their slots",
                f"set {_LARGEST}={_PRODUCED_BYTES} or more for it with kafka-configs",
            )
        if config.get("message.timestamp.type") == "LogAppendTime":
            part.warning(
                "topics",
                f"{name} has message.timestamp.type=LogAppendTime, so that the measured lag leaves out the "
                "way to Kafka",
                "set message.timestamp.type=CreateTime for it with kafka-configs",
            )
    single = [name for name, topic in topics.items() if topic.replication == 1]
    if single:
        part.warning(
            "replication",
            f"{', '.join(single)}: one broker stores each message; if its disk fails, changes that were "
            "not applied yet are missed until the caches are reconciled",
            "with three brokers or more, use `cachesync create-topics --replication 3`; move existing "
            "topics with kafka-reassign-partitions"
            if brokers > 1
            else "add brokers, or know that you accept it",
        )
    if topics and len(part.findings) == before:
        part.ok("topics", f"{len(topics)} are compacted, and replicated")


async def examine_groups(
    part: Part,
    kafka: Mapping[str, Any],
    groups: Awaitable[Mapping[str, str]],
    entities: Mapping[str, Entity],
) -> None:
    """Examine the consumer groups of the caches.

    Args:
        part: takes the findings.
        kafka: librdkafka's settings for connecting to the brokers.
        groups: the consumer group of each cache, by the name of its service.
        entities: the declared entities, by name.
    """
    named = await groups
    if not named:
        part.not_checked("groups", "no service is known", "give --redis SERVICE=URL, or --airflow URL")
    for service, problem in shared_groups(named):
        part.error(
            "groups",
            problem,
            f"give {service} a group of its own (group.id in the connection kafka_{service}, or --group), "
            "and reconcile both caches",
        )
    topics = [entity.topic for entity in entities.values()]
    await asyncio.gather(*(_examine_group(part, kafka, *one, topics) for one in named.items()))


async def _examine_group(
    part: Part, kafka: Mapping[str, Any], service: str, group: str, topics: list[str]
) -> None:
    with part.looking("consumers"):
        left = await asyncio.to_thread(unconsumed, kafka, group, topics)
        if left:
            part.error(
                "consumers",
                unconsumed_in_words(left, service, group),
                f"start the tasks apply_{service}_* of the DAG cache_sync, or `cachesync stream --service "
                f"{service}`; if its group has another name, give --group {service}=NAME",
            )
        else:
            part.ok(
                "consumers", f"cache {service} is followed: group {group} has consumers for all partitions"
            )
