"""The outbox relay, from a commit in a real PostgreSQL to a real Kafka and the mark in the change log."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Consumer, Message, TopicPartition

from cachesync.event import decode, headers_of
from cachesync.relay import Relay
from local.postgres import create_role

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    import asyncpg

    from cachesync.change import Change
    from cachesync.entity import Entity
    from local.postgres import Postgres

    RunRelay = Callable[..., AbstractAsyncContextManager[Relay]]

INSERT = (
    "INSERT INTO student (id, name, age) SELECT i, 'n' || i, 20 FROM generate_series($1::int, $2::int) AS i"
)
UNPUBLISHED = "SELECT count(*) FROM cachesync.change_log WHERE published_at IS NULL"


class Reader:
    """All that comes to the topic from now on."""

    def __init__(self, bootstrap_servers: str) -> None:
        self._consumer = Consumer(
            {
                "bootstrap.servers": bootstrap_servers,
                "group.id": "unused",
                "enable.auto.commit": False,
                "fetch.wait.max.ms": 10,
            }
        )
        topic = "cachesync.student"
        partitions = [TopicPartition(topic, number) for number in range(6)]
        for partition in partitions:
            partition.offset = self._consumer.get_watermark_offsets(partition, timeout=30)[1]
        self._consumer.assign(partitions)
        self.messages: list[Message] = []

    def changes(self) -> list[Change]:
        self.messages += self._consumer.consume(10_000, 0.2)
        return [
            decode("student", message.key(), message.value(), headers_of(message))
            for message in self.messages
        ]

    def versions(self) -> list[int]:
        return sorted(change.version for change in self.changes())

    def close(self) -> None:
        self._consumer.close()


@pytest.fixture
async def reader(topics: str) -> AsyncIterator[Reader]:
    reader = Reader(topics)
    yield reader
    reader.close()


@pytest.fixture
def worker(sample: str, postgres: Postgres) -> str:
    """The sample's address for a user with the role of the background work."""
    create_role(sample, "worker", "worker-password")
    name = sample.rpartition("/")[2]
    postgres.sql("GRANT cachesync_worker TO worker", name)
    return f"postgresql://worker:worker-password@{postgres.host}:{postgres.port}/{name}"


@pytest.fixture
def run_relay(worker: str, topics: str, entities: dict[str, Entity]) -> RunRelay:
    """Runs a relay in a thread, as Airflow's triggerer does."""

    @asynccontextmanager
    async def run(retention: timedelta = timedelta(days=1), **kafka: Any) -> AsyncIterator[Relay]:
        relay = Relay(worker, {"bootstrap.servers": topics, **kafka}, entities, retention)
        thread = threading.Thread(target=relay.run, name="relay")
        thread.start()
        try:
            yield relay
        finally:
            relay.stop()
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()

    return run


async def wait_until(admin: asyncpg.Connection, condition: str, seconds: float = 20) -> None:
    """Until an SQL condition holds."""
    async with asyncio.timeout(seconds):
        while not await admin.fetchval(f"SELECT {condition}"):
            await asyncio.sleep(0.02)


async def all_published(admin: asyncpg.Connection) -> None:
    await wait_until(admin, f"({UNPUBLISHED}) = 0")


async def logged(admin: asyncpg.Connection) -> list[int]:
    return [
        line["version"]
        for line in await admin.fetch("SELECT version FROM cachesync.change_log ORDER BY version")
    ]


async def test_what_another_writer_changed_is_published_as_it_is_logged(
    admin: asyncpg.Connection, run_relay: RunRelay, reader: Reader
) -> None:
    async with run_relay():
        await admin.execute(INSERT, 1, 3)
        await admin.execute("UPDATE student SET name = 'Ümit' WHERE id = 1")
        await admin.execute("DELETE FROM student WHERE id = 2")
        await admin.execute("TRUNCATE student")
        await all_published(admin)
    changes = sorted(reader.changes(), key=lambda change: change.version)
    lines = await admin.fetch("SELECT * FROM cachesync.change_log ORDER BY version")
    assert [
        (c.version, c.key, c.operation, c.payload and c.payload.decode(), c.source, c.changed_at)
        for c in changes
    ] == [
        (
            line["version"],
            line["key"],
            line["operation"],
            line["payload"],
            line["source"],
            line["changed_at"],
        )
        for line in lines
    ]
    assert len(lines) == 6
