"""The dead letters of a test, and the actions on them."""

from __future__ import annotations

import secrets
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from confluent_kafka import Consumer, Producer, TopicPartition

from cachesync.dead_letters.letter import DEFAULT_POLICY, Letter, RetryPolicy
from cachesync.dead_letters.reader import DeadLetterReader
from cachesync.dead_letters.retry import NullWatcher, Retrier
from cachesync.kafka.topics import DEAD_LETTERS
from cachesync.value import encode_value

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    import asyncpg

    from cachesync.dead_letters.audit import AuditEntry
    from cachesync.entity import Entity
    from cachesync.kafka.event import Headers
    from cachesync.slots.clients import BlockingRedis

LONG_AGO = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
PAYLOAD = b"\xff any bytes \x00"


class Watching(NullWatcher):
    """Records the actions on letters."""

    def __init__(self) -> None:
        self.entries: list[AuditEntry] = []

    def on_action(self, entry: AuditEntry) -> None:
        self.entries.append(entry)

    @property
    def actions(self) -> list[str]:
        return [entry.action.value for entry in self.entries]


class Post:
    """A service of one test, with its letters and the actions on them."""

    def __init__(
        self,
        admin: asyncpg.Connection,
        worker: asyncpg.Connection,
        broker: str,
        slots: BlockingRedis,
        entities: dict[str, Entity],
    ) -> None:
        self.service = f"s{secrets.token_hex(4)}"
        self.admin = admin
        self.worker = worker
        self.slots = slots
        self.kafka = {"bootstrap.servers": broker}
        self._entities = entities

    @contextmanager
    def open(
        self,
        connection: asyncpg.Connection | None = None,
        clients: Mapping[str, BlockingRedis] | None = None,
        policy: RetryPolicy = DEFAULT_POLICY,
    ) -> Iterator[tuple[Retrier, Watching]]:
        """Open a retrier for the service of the test, or for the given ones."""
        watching = Watching()
        with DeadLetterReader(self.kafka) as reader:
            retrier = Retrier(
                connection or self.worker,
                settings=self.kafka,
                reader=reader,
                clients=clients or {self.service: self.slots},
                entities=self._entities,
                actor="test",
                policy=policy,
                watcher=watching,
            )
            yield retrier, watching

    async def retry(self) -> list[str]:
        """Retry the letters of the service once; return the actions."""
        with self.open() as (retrier, watching):
            await retrier.retry(self.mine)
        return watching.actions

    def mine(self, letter: Letter) -> bool:
        return letter.service == self.service

    def put(self, key: bytes, version: int | bytes, operation: str = "upsert", **special: Any) -> None:
        """Send `count` letters to `topic` at `timestamp`; the other keywords replace header fields."""
        topic, count = special.pop("topic", DEAD_LETTERS), special.pop("count", 1)
        timestamp = special.pop("timestamp", 0)
        fields = {
            "service": self.service,
            "original-topic": "cachesync.student",
            "original-partition": "3",
            "original-offset": "77",
            "original-timestamp": "1767323045000",
            "original-group": "a group",
            "stage": "cache",
            "error": "the first error",
            "attempt": "1",
            "maximum": "5",
            "first-failed-at": LONG_AGO.isoformat(),
            "last-failed-at": LONG_AGO.isoformat(),
            "not-before": LONG_AGO.isoformat(),
        } | {name.replace("_", "-"): value for name, value in special.items()}
        own = [(f"dead-letter-{name}", value.encode()) for name, value in fields.items()]
        self.send(
            topic,
            key,
            PAYLOAD if operation == "upsert" else None,
            [*content_headers(version, operation), *own],
            count=count,
            timestamp=timestamp,
        )

    def send(
        self,
        topic: str,
        key: bytes,
        value: bytes | None,
        headers: Headers,
        *,
        count: int = 1,
        timestamp: int = 0,
    ) -> None:
        producer = Producer(self.kafka)
        for _ in range(count):
            producer.produce(topic, key=key, value=value, headers=headers, timestamp=timestamp)
        assert producer.flush(30) == 0

    def letters(self, topic: str = DEAD_LETTERS, service: str | None = None) -> list[Letter]:
        """Return all letters of the service, open or closed."""
        reader = Consumer(
            {**self.kafka, "group.id": "test", "enable.partition.eof": True, "fetch.wait.max.ms": 10}
        )
        reader.assign([TopicPartition(topic, 0, 0)])
        found: list[Letter] = []
        while (message := reader.poll(10)) is not None and message.error() is None:
            letter = Letter.from_message(message)
            if letter.service == (self.service if service is None else service):
                found.append(letter)
        reader.close()
        return found

    async def insert(self, key: int) -> tuple[int, bytes]:
        """Insert a row; return its version and the slot that holds it."""
        await self.admin.execute("INSERT INTO student (id, name, age) VALUES ($1, 'Ann', 20)", key)
        record = await self.admin.fetchrow(
            "SELECT v.version, v.payload, e.fingerprint FROM cachesync.student AS v, cachesync.entity AS e"
            " WHERE v.key = $1 AND e.name = 'student'",
            key,
        )
        assert record is not None
        slot = encode_value(record["version"], record["fingerprint"].encode(), record["payload"].encode())
        return record["version"], slot

    async def audit(self, service: str = "") -> list[dict[str, Any]]:
        """Return the recorded actions on letters of the service."""
        query = "SELECT * FROM cachesync.dead_letter_action WHERE service = $1 ORDER BY id"
        return [dict(record) for record in await self.admin.fetch(query, service or self.service)]


def content_headers(version: int | bytes, operation: str = "upsert") -> Headers:
    return [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"any"),
        ("ce_source", b"/cachesync/test"),
        ("ce_type", b"cachesync." + operation.encode()),
        ("ce_time", b"2026-01-02T03:04:05+00:00"),
        ("ce_rowversion", version if isinstance(version, bytes) else b"%d" % version),
        *([("ce_fingerprint", b"01234567")] if operation == "upsert" else []),
        ("other", None),
        ("other", b"\xfe twice"),
    ]
