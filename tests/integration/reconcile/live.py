"""Writers, and the relay and stream that bring their changes to sb's cache, in their own processes.

They keep their rate regardless of what the test does.
"""

from __future__ import annotations

import asyncio
import multiprocessing
import random
import secrets
import threading
import time
from contextlib import AsyncExitStack, ExitStack, contextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from itertools import count
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import redis
import uvloop
from confluent_kafka import Consumer, Producer

from cachesync.dead_letters.sender import DeadLetterSender
from cachesync.entity import load_entities
from cachesync.errors import RowError
from cachesync.relay.relay import Relay
from cachesync.service.row_input import RowInput
from cachesync.service.service import Service
from cachesync.slots.batch import Applier
from cachesync.stream.stream import Stream
from local.postgres import run_sql

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterator
    from multiprocessing.connection import Connection

    from cachesync.service.cache import EntityCache
    from cachesync.service.settings import ServiceSettings

KEYS: Final = range(1, 5_001)
"""Those that are written to."""

# Together more than 1,000 rows per second: a statement finds about three quarters of its rows.
SERVICES_RATE: Final = 520
STATEMENTS_RATE: Final = 65
ROWS_PER_STATEMENT: Final = 16

# An insert or a delete returns a version below the final version of its change.
_STATEMENTS: Final = (
    *["UPDATE student SET age = (age + 1) % 100 WHERE id BETWEEN $1 AND $2 RETURNING id, row_version"] * 6,
    "DELETE FROM student WHERE id BETWEEN $1 AND $2 RETURNING id, row_version",
    """
    INSERT INTO student SELECT i, 'psql', 1 FROM generate_series($1::int, $2) AS i
    ON CONFLICT DO NOTHING RETURNING id, row_version
    """,
)
# Maximum number of concurrent writes in one process; if they take too long, the rate is not reached.
_MAX_IN_PROGRESS: Final = 32
_START_SECONDS: Final = 60


@dataclass
class Record:
    """A record of the writes.

    Attributes:
        times: when each write was acknowledged, by the monotonic clock that all processes share.
        versions: the highest acknowledged version by key.
        undone: reads that returned an older version than one acknowledged before them.
    """

    times: list[float] = field(default_factory=list)
    versions: dict[int, int] = field(default_factory=dict)
    undone: list[str] = field(default_factory=list)

    def acknowledge(self, key: int, version: int) -> None:
        self.times.append(time.monotonic())
        self.versions[key] = max(version, self.versions.get(key, 0))

    def add(self, other: Record) -> None:
        self.times += other.times
        for key, version in other.versions.items():
            self.versions[key] = max(version, self.versions.get(key, 0))
        self.undone += other.undone

    def rate(self, began: float, ended: float) -> float:
        return sum(began <= when < ended for when in self.times) / (ended - began)


@contextmanager
def live_writes(sa: ServiceSettings, sb: ServiceSettings, dsn: str) -> Iterator[Record]:
    """Keep writing through both services and in SQL; the record is complete at the end.

    By then, all changes have been applied to sb's cache.
    """
    record = Record()
    with ExitStack() as stack:
        follower, *writers = [
            stack.enter_context(_running(target, *arguments))
            for target, *arguments in (
                (_follow, dsn, sb),
                (_write_in_sql, dsn),
                (_write_through_services, sa, sb),
            )
        ]
        for each in (follower, *writers):
            assert each.poll(_START_SECONDS)
            each.recv()
        for writer in writers:
            writer.send(None)
        yield record
        # The relay and the stream end once they have brought all changes of the writers to the cache.
        for each in (*writers, follower):
            each.send(None)
            record.add(each.recv())


@contextmanager
def _running(target: Callable[..., None], *arguments: Any) -> Iterator[Connection]:
    """Run a process that ends when the yielded connection to it is closed."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments))
    process.start()
    theirs.close()
    try:
        with ours:
            yield ours
    finally:
        process.join()


def _write_through_services(parent: Connection, *settings: ServiceSettings) -> None:
    async def run() -> Record:
        record = Record()
        chance = random.Random(1)
        async with AsyncExitStack() as stack:
            caches: list[EntityCache] = []
            for each in settings:
                service = await Service.open(each)
                stack.push_async_callback(service.close)
                caches.append(service.caches["student"])
            number = count()

            async def write() -> None:
                key = chance.choice(KEYS)
                cache = chance.choice(caches)
                try:
                    if chance.random() < 0.1:
                        written = await cache.delete(str(key), None)
                    else:
                        body = b'{"id":%d,"name":"%d","age":1}' % (key, next(number))
                        written = await cache.replace(str(key), RowInput.from_json(body), None)
                except RowError:
                    return
                record.acknowledge(key, written.version)
                if written.cached and chance.random() < 0.2:
                    read = await cache.read(str(key))
                    if read.row is not None and read.row.version < written.version:
                        record.undone.append(f"{written} was acknowledged, then read was {read}")

            await _keep_writing(parent, write, SERVICES_RATE)
        return record

    parent.send(uvloop.run(run()))


def _write_in_sql(parent: Connection, dsn: str) -> None:
    async def run() -> Record:
        record = Record()
        chance = random.Random(2)
        # Rows are locked in index order, so that statements cannot deadlock.
        async with asyncpg.create_pool(dsn, server_settings={"enable_bitmapscan": "off"}) as pool:

            async def write() -> None:
                first = chance.choice(KEYS[:-ROWS_PER_STATEMENT])
                keys = range(first, first + ROWS_PER_STATEMENT)
                rows = await pool.fetch(chance.choice(_STATEMENTS), keys[0], keys[-1])
                for row in rows:
                    record.acknowledge(row["id"], row["row_version"])

            await _keep_writing(parent, write, STATEMENTS_RATE)
        return record

    parent.send(uvloop.run(run()))


async def _keep_writing(parent: Connection, write: Callable[[], Awaitable[None]], rate: int) -> None:
    """Write at a fixed rate from the parent's first message to its second, however long each write takes."""
    parent.send(None)
    await asyncio.to_thread(parent.recv)
    begin = time.monotonic()
    turn = count()
    stopping = False

    async def keep() -> None:
        while not stopping:
            await asyncio.sleep(begin + next(turn) / rate - time.monotonic())
            await write()

    under_way = asyncio.gather(*(keep() for _ in range(_MAX_IN_PROGRESS)))
    asked = asyncio.ensure_future(asyncio.to_thread(parent.recv))
    await asyncio.wait({under_way, asked}, return_when=asyncio.FIRST_COMPLETED)
    stopping = True
    await under_way


def _follow(parent: Connection, dsn: str, settings: ServiceSettings) -> None:
    """Run the relay and the stream of one service's cache until every change has been applied."""
    entities = load_entities(settings.cachesync_entities)
    kafka = {"bootstrap.servers": settings.kafka_bootstrap_servers}
    group = f"test-{secrets.token_hex(4)}"
    consumer = {
        **kafka,
        "group.id": group,
        "enable.auto.commit": False,
        "auto.offset.reset": "latest",
        "fetch.wait.max.ms": 10,
    }
    applier = Applier(redis.Redis.from_url(settings.redis_url), settings.service, entities)
    letters = DeadLetterSender(lambda: Producer(kafka), settings.service, group)
    stream = Stream(
        lambda: Consumer(consumer), applier, letters, entities, settings.service, settings=consumer
    )
    relay = Relay(dsn, kafka, entities, timedelta(days=1))
    threads = [threading.Thread(target=part.run, daemon=True) for part in (stream, relay)]
    for thread in threads:
        thread.start()
    assert stream.assigned.wait(_START_SECONDS)
    # `latest` is resolved after the assignment; messages published before that would be missed.
    time.sleep(0.5)
    parent.send(None)
    parent.recv()
    while run_sql(dsn, "SELECT FROM cachesync.change_log WHERE published_at IS NULL LIMIT 1"):
        time.sleep(0.1)
    applied = -1
    while applied != stream.applied_count:
        applied = stream.applied_count
        time.sleep(1)
    stream.stop()
    relay.stop()
    for thread in threads:
        thread.join()
    parent.send(Record())
