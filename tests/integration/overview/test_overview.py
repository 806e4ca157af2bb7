"""The overview of a real system: faults are staged, and `show` and `status` say what they are."""

from __future__ import annotations

import asyncio
import secrets
import threading
from contextlib import asynccontextmanager, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from confluent_kafka import Consumer, Producer

from cachesync.dead_letters.letter import RetryPolicy
from cachesync.errors import DeclarationError, InvalidValueError
from cachesync.kafka.groups import consumer_settings, group_of
from cachesync.overview.overview import Overview
from cachesync.postgres.rows import Rows
from cachesync.relay.relay import Relay
from cachesync.slots.clients import blocking_client
from cachesync.slots.layout import slot_name, value_of
from cachesync.stream.stream import open_stream
from tests.integration.conftest import copied_database
from tests.integration.refusals import refusing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from cachesync.entity import Entity
    from cachesync.overview.models import KeyReport, Status
    from local.postgres import Postgres
    from local.redis import Redis


class System:
    """A database, a Kafka and the Redis of one service, whose name no other test has."""

    def __init__(self, dsn: str, broker: str, redis_url: str, entities: dict[str, Entity]) -> None:
        self.service = f"s{secrets.token_hex(4)}"
        self.dsn = dsn
        self.kafka = {"bootstrap.servers": broker}
        self.entities = entities
        self.redis = blocking_client(redis_url, 5)
        self.redis_url = redis_url

    @asynccontextmanager
    async def overview(self, **changed: Any) -> AsyncIterator[Overview]:
        arguments = {
            "dsn": self.dsn,
            "kafka": self.kafka,
            "clients": {self.service: self.redis},
            "entities": self.entities,
            **changed,
        }
        overview = Overview(**arguments)
        yield overview
        overview.close()

    async def sql(self, *statements: str) -> None:
        connection = await asyncpg.connect(self.dsn)
        for statement in statements:
            await connection.execute(statement)
        await connection.close()

    async def cache(self, key: str, entity: str = "student") -> None:
        """Cache a row as a read would."""
        connection = await asyncpg.connect(self.dsn)
        rows = await Rows.open(connection, self.entities[entity])
        row = (await rows.read([key]))[key]
        await connection.close()
        self.redis.set(slot_name(self.service, entity, key), value_of(row), px=3_600_000)

    @contextmanager
    def relay(self) -> Iterator[None]:
        with working(Relay(self.dsn, self.kafka, self.entities, timedelta(days=1))):
            yield

    @contextmanager
    def stream(self) -> Iterator[None]:
        settings = consumer_settings(self.kafka, group_of(self.service))
        stream = open_stream(
            self.service,
            self.entities,
            blocking_client(self.redis_url, 1),
            settings,
            RetryPolicy(),
            connect=lambda: Consumer(settings),
            connect_producer=lambda: Producer(self.kafka),
        )
        with working(stream):
            yield


@contextmanager
def working(work: Any) -> Iterator[None]:
    thread = threading.Thread(target=work.run)
    thread.start()
    try:
        yield
    finally:
        work.stop()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def system(
    postgres: Postgres, sample_template: str, redis_sb: Redis, topics: str, entities: dict[str, Entity]
) -> Iterator[System]:
    with copied_database(postgres, sample_template) as dsn:
        yield System(dsn, topics, redis_sb.url, entities)


async def shown(
    overview: Overview, key: str, condition: Callable[[KeyReport], bool], entity: str = "student"
) -> KeyReport:
    async with asyncio.timeout(60):
        while True:
            report = await overview.show(entity, key)
            if condition(report):
                return report


async def test_show_says_why_a_cache_is_stale_until_it_is_right(system: System) -> None:
    await system.sql("INSERT INTO student VALUES (7, 'Ann', 20)")
    await system.cache("7")
    await system.sql("UPDATE student SET age = 21 WHERE id = 7")
    async with system.overview() as overview:
        report = await overview.show("student", "7")
        print(report.model_dump_json(indent=1))
        status = await overview.status()
        print(status.model_dump_json(indent=1))
