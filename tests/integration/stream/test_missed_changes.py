"""A stream that was down for longer than its topic keeps every change."""

from __future__ import annotations

import asyncio
import secrets
import threading
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import OFFSET_END, Consumer, Producer, TopicPartition
from confluent_kafka.admin import (  # type: ignore[attr-defined]
    AdminClient,
    AlterConfigOpType,
    ConfigEntry,
    ConfigResource,
)

from cachesync.change import Change, Operation
from cachesync.dead_letters.sender import DeadLetterSender
from cachesync.postgres.connect import connect
from cachesync.reconcile import run as runs
from cachesync.reconcile.models import Parameters, Report
from cachesync.service.row_input import RowInput
from cachesync.slots.batch import Applier
from cachesync.slots.clients import BlockingRedis, blocking_client
from cachesync.stream.stream import Stream
from tests.integration.stream.test_stream import consumer_settings, publish

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    import asyncpg

    from cachesync.entity import Entity
    from cachesync.service.service import Service
    from local.redis import Redis

    OpenService = Callable[..., AbstractAsyncContextManager[Service]]

PARTITIONS: Final = [TopicPartition("cachesync.student", number) for number in range(6)]


async def test_reconciliation_repairs_what_a_stream_missed_in_a_compacted_topic(  # noqa: PLR0917 - fixtures
    open_service: OpenService,
    sample: str,
    admin: asyncpg.Connection,
    topics: str,
    entities: dict[str, Entity],
    redis_sa: Redis,
    redis_sb: Redis,
) -> None:
    """The topic has lost the update of row 1, the tombstone of row 2, and the newer update of row 3."""
    settings = consumer_settings(topics, f"test-{secrets.token_hex(4)}", "earliest")
    with blocking_client(redis_sa.url, 5) as right, blocking_client(redis_sb.url, 5) as slots:
        async with open_service("sa") as sa, open_service("sb") as sb:
            students = sa.caches["student"]
            for key in (1, 2, 3):
                await students.insert(RowInput.from_mapping({"id": key, "name": "Ann"}))
                await sb.caches["student"].read(str(key))
            await published(admin)
            commit_everything(settings)
            before = slots.mget("sb:student:1", "sb:student:2")
            await students.merge("1", RowInput.from_mapping({"name": "Bea"}), None)
            await students.delete("2", None)
            former = (await students.merge("3", RowInput.from_mapping({"name": "Bea"}), None)).version
            late = Change(
                "student", "3", former, Operation.UPSERT, right.get("sa:student:3"), "sa", datetime.now(UTC)
            )
            await students.merge("3", RowInput.from_mapping({"name": "Cleo"}), None)
            await published(admin)
        delete_everything(settings)
        publish(topics, late)
        with running(settings, slots, entities) as stream:
            async with asyncio.timeout(60):
                while stream.applied_count == 0:
                    await asyncio.sleep(0.01)
        assert slots.mget("sb:student:1", "sb:student:2", "sb:student:3") == [*before, late.value]

        await admin.execute(
            "UPDATE cachesync.change_log SET published_at = clock_timestamp() - interval '1 hour'"
        )
        report = await reconcile(sample, slots, entities)
        assert (report.stale, report.orphan, report.repaired) == (2, 1, 3)
        current = right.mget("sa:student:1", "sa:student:3")
        assert slots.mget("sb:student:1", "sb:student:2", "sb:student:3") == [current[0], None, current[1]]


async def published(admin: asyncpg.Connection) -> None:
    """Wait until the services have published their changes."""
    async with asyncio.timeout(60):
        while await admin.fetchval(
            "SELECT EXISTS (SELECT FROM cachesync.change_log WHERE published_at IS NULL)"
        ):
            await asyncio.sleep(0.01)


def commit_everything(settings: dict[str, Any]) -> None:
    """Commit the ends of the partitions, as a stream does that has applied everything."""
    consumer = Consumer(settings)
    ends = [
        TopicPartition(each.topic, each.partition, consumer.get_watermark_offsets(each, 30)[1])
        for each in PARTITIONS
    ]
    consumer.commit(offsets=ends, asynchronous=False)
    consumer.close()


def delete_everything(settings: dict[str, Any]) -> None:
    """Delete all messages, as compaction does with old ones.

    Kafka does not let a client delete messages of a topic that is only compacted.
    """
    admin = AdminClient({"bootstrap.servers": settings["bootstrap.servers"]})
    set_policy(admin, "compact,delete")
    ends = [TopicPartition(each.topic, each.partition, OFFSET_END) for each in PARTITIONS]
    for deleted in admin.delete_records(ends).values():
        deleted.result(30)
    set_policy(admin, "compact")


def set_policy(admin: AdminClient, policy: str) -> None:
    entry = ConfigEntry("cleanup.policy", policy, incremental_operation=AlterConfigOpType.SET)
    topic = ConfigResource(ConfigResource.Type.TOPIC, PARTITIONS[0].topic, incremental_configs=[entry])
    for altered in admin.incremental_alter_configs([topic]).values():
        altered.result(30)


@contextmanager
def running(settings: dict[str, Any], slots: BlockingRedis, entities: dict[str, Entity]) -> Iterator[Stream]:
    letters = DeadLetterSender(
        lambda: Producer({"bootstrap.servers": settings["bootstrap.servers"]}), "sb", settings["group.id"]
    )
    stream = Stream(
        lambda: Consumer(settings), Applier(slots, "sb", entities), letters, entities, "sb", settings=settings
    )
    thread = threading.Thread(target=stream.run, name="stream")
    thread.start()
    try:
        yield stream
    finally:
        stream.stop()
        thread.join(30)


async def reconcile(dsn: str, slots: BlockingRedis, entities: dict[str, Entity]) -> Report:
    connection = await connect(dsn, "test")
    parameters = Parameters(services=["sb"], entities=["student"])
    for task in await runs.plan(connection, "run", parameters, {"sb": slots}):
        await runs.run_chunk(
            dsn, slots, "run", task, entities, on_progress=lambda _: None, settle_seconds=0.05
        )
    report = await runs.report(connection, "run")
    await connection.close()
    return report
