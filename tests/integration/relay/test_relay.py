"""The relay, from a commit in a real PostgreSQL to a real Kafka and the mark in the change log."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import AsyncExitStack, asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, TopicPartition
from prometheus_client import REGISTRY

from cachesync.backoff import Backoff
from cachesync.errors import NotInstalledError, PrivilegeError
from cachesync.install.installer import install
from cachesync.kafka.event import decode_message
from cachesync.kafka.producer import producer_settings
from cachesync.postgres.change_log import change_of
from cachesync.postgres.statements import statement
from cachesync.relay import backlog, relay
from cachesync.relay.backlog import Backlog
from cachesync.relay.relay import (
    _BULK_LINES,
    _MAX_BYTES,
    _NEWEST_LINES,
    _OLDEST_LINES,
    CHANNEL,
    Relay,
    _Failure,
)
from local.silent import Silent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from cachesync.change import Change
    from cachesync.entity import Entity
    from local.kafka import Kafka
    from local.postgres import Postgres

    RunRelay = Callable[..., AbstractAsyncContextManager[Relay]]

INSERT = (
    "INSERT INTO student (id, name, age) SELECT i, 'n' || i, 20 FROM generate_series($1::int, $2::int) AS i"
)
BEFORE_ALL = datetime(1970, 1, 1, tzinfo=UTC)
UNLOCKED = "SELECT FROM cachesync.change_log WHERE published_at IS NULL FOR UPDATE SKIP LOCKED"
UNPUBLISHED = (
    "SELECT coalesce(sum(coalesce(cardinality(keys), 1)), 0)::int FROM cachesync.change_log"
    " WHERE published_at IS NULL"
)


class Reader:
    """Reads the messages that arrive in the topic of an entity from now on."""

    def __init__(self, bootstrap_servers: str, entity: str = "student") -> None:
        self._entity = entity
        self._topic = f"cachesync.{entity}"
        self._settings = {
            "bootstrap.servers": bootstrap_servers,
            "group.id": "unused",
            "enable.auto.commit": False,
            "fetch.wait.max.ms": 10,
        }
        self._consumer = Consumer(self._settings)
        self._read_to = self._ends()
        self._consumer.assign(
            [TopicPartition(self._topic, number, end) for number, end in self._read_to.items()]
        )
        self.messages: list[Message] = []

    def _ends(self) -> dict[int, int]:
        partitions = [TopicPartition(self._topic, number) for number in range(6)]
        deadline = time.monotonic() + 120
        while True:
            # A consumer to which a frozen broker has once replied "no such partition" repeats it for minutes.
            consumer = Consumer(self._settings)
            try:
                return {
                    partition.partition: consumer.get_watermark_offsets(partition, timeout=30)[1]
                    for partition in partitions
                }
            except KafkaException:
                assert time.monotonic() < deadline
                time.sleep(0.1)
            finally:
                consumer.close()

    def changes(self) -> list[Change]:
        """Return all changes published so far, however long the consumer takes to reconnect to Kafka."""
        ends = self._ends()
        deadline = time.monotonic() + 120
        while any(self._read_to[number] < end for number, end in ends.items()):
            assert time.monotonic() < deadline, "not all messages could be read"
            for message in self._consumer.consume(10_000, 0.1):
                number, offset = message.partition(), message.offset()
                assert number is not None
                assert offset is not None
                self._read_to[number] = offset + 1
                self.messages.append(message)
        return [decode_message(self._entity, message) for message in self.messages]

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
def worker(worker_dsn: str) -> str:
    """The DSN of the sample database for a user with the worker role."""
    return worker_dsn


@pytest.fixture
def new_relay(worker: str, topics: str, entities: dict[str, Entity]) -> Callable[..., Relay]:
    """Creates a relay, with the given changes to its Kafka settings."""
    return lambda **kafka: Relay(worker, {"bootstrap.servers": topics, **kafka}, entities, timedelta(days=1))


@pytest.fixture
def run_relay(new_relay: Callable[..., Relay]) -> RunRelay:
    """Runs a relay in a thread, as the Airflow triggerer does."""

    @asynccontextmanager
    async def run(**kafka: Any) -> AsyncIterator[Relay]:
        relay = new_relay(**kafka)
        thread = threading.Thread(target=relay.run, name="relay")
        thread.start()
        try:
            yield relay
        finally:
            relay.stop()
            await asyncio.to_thread(thread.join, 10)
            assert not thread.is_alive()

    return run


async def wait_until(admin: asyncpg.Connection, condition: str, seconds: float = 60) -> None:
    """Wait until an SQL condition holds."""
    async with asyncio.timeout(seconds):
        while not await admin.fetchval(f"SELECT {condition}"):
            await asyncio.sleep(0.02)


async def all_published(admin: asyncpg.Connection) -> None:
    await wait_until(admin, f"({UNPUBLISHED}) = 0")


async def logged(admin: asyncpg.Connection) -> list[int]:
    changes = await admin.fetch(
        "SELECT generate_series(version - coalesce(cardinality(keys), 1) + 1, version) AS version"
        " FROM cachesync.change_log ORDER BY version"
    )
    return [change["version"] for change in changes]


async def test_changes_of_other_writers_are_published_as_they_are_logged(
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
    assert [(c.version, c.key, c.operation, c.value) for c in changes] == [
        (line["version"], line["key"], line["operation"], change_of(line).value) for line in lines
    ]
    for change, line in zip(changes, lines, strict=True):
        assert timedelta(0) <= line["changed_at"] - change.changed_at < timedelta(milliseconds=1)
    assert {c.source for c in changes if c.value is None} == {"postgres"}
    assert len(lines) == 6


async def test_changes_that_a_service_did_not_publish_are_published_after_a_grace_period(
    sample: str, admin: asyncpg.Connection, run_relay: RunRelay, reader: Reader
) -> None:
    service = await asyncpg.connect(sample, server_settings={"cachesync.source": "sa"})
    async with run_relay():
        await service.execute(INSERT, 1, 1)
        await admin.execute(INSERT, 2, 2)
        other = await admin.fetchval("SELECT max(version) FROM cachesync.change_log")
        await wait_until(admin, f"published_at IS NOT NULL FROM cachesync.change_log WHERE version = {other}")
        assert await admin.fetchval(UNPUBLISHED) == 1
        await all_published(admin)
    await service.close()
    assert await admin.fetchval(
        "SELECT published_at >= changed_at + interval '2 s' FROM cachesync.change_log WHERE source = 'sa'"
    )
    assert reader.versions() == await logged(admin)


async def test_only_changes_that_no_service_publishes_are_announced(
    sample: str, admin: asyncpg.Connection
) -> None:
    announced: list[object] = []
    await admin.add_listener(CHANNEL, lambda *notification: announced.append(notification))
    service = await asyncpg.connect(sample, server_settings={"cachesync.source": "sa"})
    await service.execute(INSERT, 1, 1)
    await service.close()
    await admin.execute("SELECT 1")
    assert announced == []
    other = await asyncpg.connect(sample, server_settings={"session_replication_role": "replica"})
    await other.execute(INSERT, 2, 2)
    await admin.execute("SELECT 1")
    assert announced == []  # no relay sleeps
    relay, second = [await asyncpg.connect(sample) for _ in range(2)]
    assert await relay.fetchval("SELECT cachesync.fall_asleep()")
    assert not await second.fetchval("SELECT cachesync.fall_asleep()")
    for key in (3, 4):
        await other.execute(INSERT, key, key)
        await admin.execute("SELECT 1")
        assert len(announced) == key - 2
    async with other.transaction():
        await other.execute("SAVEPOINT s")
        await other.execute(INSERT, 5, 5)
        await other.execute("ROLLBACK TO s")
        await other.execute(INSERT, 6, 6)
        await other.execute("UPDATE student SET id = -id")
    await admin.execute("SELECT 1")
    assert len(announced) == 3
    assert await relay.fetchval("SELECT cachesync.stay_awake()")
    async with other.transaction():
        await other.execute(INSERT, 7, 7)
        # No writer holds the lock for longer than it looks.
        assert await second.fetchval("SELECT cachesync.fall_asleep()")
        await other.execute(INSERT, 8, 8)
    await admin.execute("SELECT 1")
    assert len(announced) == 4
    # A relay that has died does not sleep.
    await second.close()
    await other.execute(INSERT, 9, 9)
    await admin.execute("SELECT 1")
    assert len(announced) == 4
    await relay.close()
    await other.close()


async def test_several_relays_share_the_work(
    admin: asyncpg.Connection, run_relay: RunRelay, reader: Reader
) -> None:
    async with run_relay(), run_relay(), run_relay():
        for number in range(0, 3000, 100):
            await admin.execute(INSERT, number, number + 99)
        await all_published(admin)
    assert reader.versions() == await logged(admin)


async def test_bulk_change_arrives_complete_and_does_not_delay_a_single_change(
    admin: asyncpg.Connection, run_relay: RunRelay, reader: Reader
) -> None:
    await admin.execute(INSERT, 1, 20_000)
    async with run_relay():
        await wait_until(admin, f"({UNPUBLISHED}) < 20000")
        await admin.execute(INSERT, 0, 0)
        await wait_until(admin, "published_at IS NOT NULL FROM cachesync.change_log WHERE key = '0'")
        assert await admin.fetchval(UNPUBLISHED) > 0
        await all_published(admin)
    assert reader.versions() == await logged(admin)


async def test_changes_that_cannot_be_published_stay_and_do_not_block_others(
    admin: asyncpg.Connection, run_relay: RunRelay, reader: Reader
) -> None:
    """Changes of an entity without a topic precede the others."""
    await admin.execute("INSERT INTO course (title) SELECT 'x' FROM generate_series(1, 1000)")
    await admin.execute(INSERT, 2, 100)
    async with run_relay() as relay:
        # Deleting a topic would disturb the other tests.
        relay._entities = {  # noqa: SLF001
            name: entity.model_copy(update={"name": "missing"}) if name == "course" else entity
            for name, entity in relay._entities.items()  # noqa: SLF001
        }
        unpublished = f"{UNPUBLISHED} AND entity = 'student'"
        await wait_until(admin, f"({unpublished}) = 0")
        for key in range(200, 210):
            await admin.execute(INSERT, key, key)
            await wait_until(admin, f"({unpublished}) = 0", 5)
    assert await admin.fetchval(f"{UNPUBLISHED} AND entity = 'course'") == 1000
    assert len(reader.versions()) == 109
    # The second if the client knows already that the topic is missing.
    assert any(
        REGISTRY.get_sample_value("cachesync_unrelayable_total", {"entity": "course", "reason": reason})
        for reason in ("UNKNOWN_TOPIC_OR_PART", "_UNKNOWN_TOPIC")
    )


async def test_change_that_is_too_large_for_a_message_is_published_without_its_payload(
    admin: asyncpg.Connection, run_relay: RunRelay, reader: Reader
) -> None:
    await admin.execute("INSERT INTO student VALUES (1, repeat('x', 2000000), 20)")
    await admin.execute(INSERT, 2, 3)
    async with run_relay():
        await all_published(admin)
    values = {change.key: change.value for change in reader.changes()}
    assert values.keys() == {"1", "2", "3"}
    assert values["1"] is None
    assert values["2"]
    assert {message.key(): message.value() for message in reader.messages}[b"1"] == b""
    assert {change.operation for change in reader.changes()} == {"upsert"}
    assert REGISTRY.get_sample_value("cachesync_published_without_payload_total", {"entity": "student"})


async def test_change_without_its_payload_has_the_values_of_unique_lookups(
    admin: asyncpg.Connection, run_relay: RunRelay, topics: str
) -> None:
    # The second is only too large together with its key and its headers.
    for subject, size, certificate in (("a", 100_000, "c/1"), ("b", 49_910, "c/2"), ("c", 100_000, None)):
        await admin.execute(
            "INSERT INTO grade (student_id, subject, remark, certificate)"
            " VALUES (1, $1, repeat('x', $2), $3)",
            subject,
            size,
            certificate,
        )
    grades = Reader(topics, "grade")
    async with run_relay(**{"message.max.bytes": 50_000}):
        await all_published(admin)
    changes = {change.key: change for change in grades.changes()}
    grades.close()
    assert {key: (change.value, change.unique) for key, change in changes.items()} == {
        "1/a": (None, b'{"certificate":"c/1"}'),
        "1/b": (None, b'{"certificate":"c/2"}'),
        "1/c": (None, b'{"certificate":null}'),
    }


async def test_change_whose_key_is_too_large_is_published_as_a_truncate(
    admin: asyncpg.Connection, run_relay: RunRelay, reader: Reader
) -> None:
    add = (
        "INSERT INTO cachesync.change_log (version, entity, key, operation, source)"
        " VALUES (nextval('cachesync.row_version'), 'student', repeat('k', 100000), 'delete', 'psql')"
        " RETURNING version"
    )
    version = await admin.fetchval(add)
    await admin.execute(INSERT, 1, 2)
    async with run_relay(**{"message.max.bytes": 50_000}):
        await all_published(admin)
    changes = {change.key: change for change in reader.changes()}
    assert changes.keys() == {None, "1", "2"}
    assert (changes[None].operation, changes[None].version) == ("truncate", version)
    assert changes["1"].value
    assert REGISTRY.get_sample_value("cachesync_published_without_key_total", {"entity": "student"})


async def test_change_with_a_source_of_any_length_is_published(
    admin: asyncpg.Connection, run_relay: RunRelay, reader: Reader
) -> None:
    await admin.execute("SELECT set_config('cachesync.source', repeat('x', 2000000), false)")
    await admin.execute(INSERT, 1, 1)
    await admin.execute("DELETE FROM student")
    async with run_relay():
        await all_published(admin)
    assert {change.source for change in reader.changes() if change.value is None} == {"x" * 100}


async def test_payload_that_is_too_large_is_not_even_read(admin: asyncpg.Connection) -> None:
    # Not compressible, so that reading it takes hundreds of blocks.
    await admin.execute(
        "INSERT INTO student SELECT 1, string_agg(md5(i::text), ''), 20 FROM generate_series(1, 62500) AS i"
    )

    async def blocks() -> int:
        # Takes effect at the end of the statement.
        await admin.execute("SELECT pg_stat_force_next_flush()")
        count: int = await admin.fetchval(
            "SELECT toast_blks_read + toast_blks_hit FROM pg_statio_all_tables"
            " WHERE relid = 'cachesync.change_log'::regclass"
        )
        return count

    before = await blocks()
    (line,) = await admin.fetch(
        statement("relay/take"), ["student"], BEFORE_ALL, [], 900, 100, 8 << 20, 1_000_000, []
    )
    assert line["payload"] is None
    assert await blocks() == before


async def test_line_that_is_too_large_is_closed_if_a_newer_change_of_its_key_is_published(
    admin: asyncpg.Connection, run_relay: RunRelay, reader: Reader
) -> None:
    large = "UPDATE student SET name = repeat('x', 2000000) WHERE id = $1"
    await admin.execute(INSERT, 1, 3)
    await admin.execute(large, 1)
    await admin.execute(large, 2)
    await admin.execute("UPDATE student SET name = 'y' WHERE id = 1")
    await admin.execute("DELETE FROM student WHERE id = 3")
    versions = await logged(admin)
    async with run_relay():
        await all_published(admin)
    assert reader.versions() == [version for version in versions if version != versions[3]]
    assert [
        change.version for change in reader.changes() if change.operation == "upsert" and not change.value
    ] == [versions[4]]


async def test_lines_of_a_round_that_are_not_acknowledged_stay_unpublished(
    admin: asyncpg.Connection, run_relay: RunRelay, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered = Relay._deliver  # noqa: SLF001
    await admin.execute(INSERT, 1, 10)
    versions = await logged(admin)
    failed: list[int] = []

    async def deliver(self: Relay, taken: relay._Round) -> Any:
        failures = await delivered(self, taken)
        if failed:
            return failures
        failed.extend(versions[:3])
        return failures | dict.fromkeys(failed, _Failure("student", KafkaError(KafkaError.INVALID_RECORD)))

    monkeypatch.setattr(Relay, "_deliver", deliver)
    async with run_relay():
        await wait_until(admin, f"({UNPUBLISHED}) = 3")
        await all_published(admin)
    assert reader.versions() == sorted(versions + failed)


async def test_row_that_is_rejected_is_separated_from_those_in_its_line(
    admin: asyncpg.Connection, run_relay: RunRelay, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered = Relay._deliver  # noqa: SLF001
    await admin.execute(INSERT, 1, 500)
    versions = await logged(admin)
    # In the middle, and the last one, of a line, and a whole line.
    failed = [versions[150], versions[299], *versions[300:400]]
    rejected = False

    async def deliver(self: Relay, taken: relay._Round) -> Any:
        nonlocal rejected
        failures = await delivered(self, taken)
        if rejected or versions[450] not in [version for _, version in taken.versions()]:
            return failures
        rejected = True
        return failures | dict.fromkeys(failed, _Failure("student", KafkaError(KafkaError.INVALID_RECORD)))

    monkeypatch.setattr(Relay, "_deliver", deliver)
    async with run_relay():
        await wait_until(admin, f"({UNPUBLISHED}) = {len(failed)}")
        assert await logged(admin) == versions
        assert await admin.fetchval("SELECT count(*) FROM cachesync.change_log WHERE keys IS NOT NULL") == 1
        await all_published(admin)
    assert reader.versions() == sorted(versions + failed)
    values = {change.key: change.value for change in reader.changes()}
    rows: Any = await admin.fetch("SELECT key::text, payload FROM cachesync.student")
    assert {key: value[28:].decode() for key, value in values.items() if key and value} == dict(rows)


async def test_line_whose_rows_are_all_rejected_is_separated_although_nothing_else_is_published(
    admin: asyncpg.Connection, run_relay: RunRelay, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A broker can reject a batch because of one of its messages, which it then rejects for good."""
    delivered = Relay._deliver  # noqa: SLF001
    await admin.execute(INSERT, 1, 200)
    versions = await logged(admin)
    await admin.execute("UPDATE cachesync.change_log SET published_at = now() WHERE keys IS NULL")

    async def deliver(self: Relay, taken: relay._Round) -> Any:
        policy = _Failure("student", KafkaError(KafkaError.POLICY_VIOLATION))
        if taken.upserts:
            return {version: policy for _, version in taken.versions()}
        kept = [change for change in taken.changes if change.version == versions[150]]
        taken.changes = [change for change in taken.changes if change not in kept]
        return await delivered(self, taken) | {change.version: policy for change in kept}

    monkeypatch.setattr(Relay, "_deliver", deliver)
    monkeypatch.setattr(relay, "_REFUSAL_BACKOFF", Backoff(first=0.01, longest=0.01))
    async with run_relay():
        await wait_until(admin, f"({UNPUBLISHED}) = 1")
        assert await admin.fetchval(f"{UNPUBLISHED} AND version = {versions[150]}") == 1
    assert await logged(admin) == versions
    assert reader.versions() == [*versions[100:150], *versions[151:]]


async def test_row_that_shares_a_line_and_is_too_large_for_a_message_is_published_without_its_payload(
    admin: asyncpg.Connection, run_relay: RunRelay, reader: Reader
) -> None:
    await admin.execute(
        "INSERT INTO student SELECT i, repeat('x', CASE i WHEN 150 THEN 40000 ELSE 1 END), 20"
        " FROM generate_series(1, 200) AS i"
    )
    assert (
        await admin.fetchval("SELECT keys[50] FROM cachesync.change_log WHERE cardinality(keys) = 100")
        == "150"
    )
    async with run_relay(**{"message.max.bytes": 20_000}):
        await all_published(admin)
    assert reader.versions() == await logged(admin)
    assert [change.key for change in reader.changes() if change.value is None] == ["150"]


async def test_bulk_changes_of_several_entities_are_published_to_their_topics(
    admin: asyncpg.Connection, topics: str, run_relay: RunRelay, reader: Reader
) -> None:
    courses = Reader(topics, "course")
    async with run_relay(), admin.transaction():
        await admin.execute(INSERT, 1, 350)
        await admin.execute("INSERT INTO course (title) SELECT 'x' FROM generate_series(1, 350)")
        await admin.execute("DELETE FROM student WHERE id <= 150")
        await admin.execute("UPDATE course SET fee = 2")
    async with run_relay():
        await all_published(admin)
    newest: dict[str, dict[str | None, Change]] = {}
    for entity, changes in (("student", reader.changes()), ("course", courses.changes())):
        for change in sorted(changes, key=lambda change: change.version):
            newest.setdefault(entity, {})[change.key] = change
    courses.close()
    for entity, of_keys in newest.items():
        values = {key: change.value[28:].decode() for key, change in of_keys.items() if change.value}
        rows: Any = await admin.fetch(f"SELECT key::text, payload FROM cachesync.{entity}")
        assert values == dict(rows)
    assert len(newest["student"]) == len(newest["course"]) == 350


async def test_bulk_change_that_commits_late_is_published(
    sample: str, admin: asyncpg.Connection, run_relay: RunRelay, reader: Reader
) -> None:
    late = await asyncpg.connect(sample)
    async with run_relay():
        async with late.transaction():
            await late.execute(INSERT, 1, 350)
            await late.execute("UPDATE student SET age = 21")
            await admin.execute(INSERT, 1000, 1200)
            await all_published(admin)
            # Longer than lines are among the newest.
            await asyncio.sleep(2.2)
        await all_published(admin)
    await late.close()
    assert reader.versions() == await logged(admin)


async def test_worker_can_separate_rows_but_not_write_lines(worker: str, admin: asyncpg.Connection) -> None:
    await admin.execute(INSERT, 1, 200)
    versions = await logged(admin)
    connection = await asyncpg.connect(worker)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await connection.execute(
            "INSERT INTO cachesync.change_log (version, entity, operation, source)"
            " VALUES (1, 'student', 'truncate', 'x')"
        )
    await connection.execute("SELECT cachesync.unpublish($1)", [versions[150]])
    await connection.close()
    assert await logged(admin) == versions
    assert await admin.fetchval("SELECT count(*) FROM cachesync.change_log") == 200


async def test_line_stays_open_while_the_newer_change_of_its_key_is_not_acknowledged(
    admin: asyncpg.Connection, run_relay: RunRelay, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An older change of the key that was acknowledged does not replace it."""
    delivered = Relay._deliver  # noqa: SLF001
    await admin.execute(INSERT, 1, 1)
    await admin.execute("UPDATE student SET name = repeat('x', 2000000)")
    await admin.execute("UPDATE student SET name = 'y'")
    versions = await logged(admin)
    rounds = 0

    async def deliver(self: Relay, taken: relay._Round) -> Any:
        nonlocal rounds
        failures = await delivered(self, taken)
        rounds += 1
        return failures if rounds > 1 else failures | {versions[2]: _Failure("student", None)}

    monkeypatch.setattr(Relay, "_deliver", deliver)
    monkeypatch.setattr(relay, "_SWEEP_SECONDS", 3.0)
    async with run_relay():
        await wait_until(admin, f"({UNPUBLISHED}) = 2")
        assert await admin.fetchval(f"{UNPUBLISHED} AND version = {versions[1]}") == 1
        await all_published(admin)
    assert sorted(set(reader.versions())) == [versions[0], versions[2]]


async def test_round_takes_no_more_changes_than_the_queue_of_the_producer_holds(
    admin: asyncpg.Connection,
) -> None:
    await admin.execute(INSERT, 1, 30_000)
    limits = _OLDEST_LINES.stop, _NEWEST_LINES, _MAX_BYTES, 1_000_000
    async with admin.transaction():
        lines = await admin.fetch(statement("relay/take"), ["student"], BEFORE_ALL, [], *limits, [])
    taken = sum(len(line["keys"]) for line in lines)
    assert _BULK_LINES < taken < producer_settings({})["queue.buffering.max.messages"]


async def test_relay_announces_that_it_sleeps_unless_there_are_many_changes(
    admin: asyncpg.Connection, run_relay: RunRelay
) -> None:
    asleep = (
        "EXISTS (SELECT FROM pg_locks AS k JOIN pg_stat_activity AS a ON a.pid = k.pid"
        " WHERE k.locktype = 'advisory' AND k.mode = 'ExclusiveLock'"
        " AND a.application_name = 'cachesync-relay' AND a.datname = current_database())"
    )
    async with run_relay():
        await wait_until(admin, asleep)
        await admin.execute(INSERT, 1000, 3000)
        await wait_until(admin, f"NOT {asleep}")
        await all_published(admin)
        await wait_until(admin, asleep)


async def test_of_several_relays_another_announces_that_it_sleeps_after_the_first_has_ended(
    admin: asyncpg.Connection, run_relay: RunRelay
) -> None:
    holder = (
        "(SELECT k.pid FROM pg_locks AS k JOIN pg_stat_activity AS a ON a.pid = k.pid"
        " WHERE k.locktype = 'advisory' AND k.mode = 'ExclusiveLock' AND a.datname = current_database())"
    )
    async with AsyncExitStack() as first:
        await first.enter_async_context(run_relay())
        await wait_until(admin, f"{holder} IS NOT NULL")
        pid = await admin.fetchval(f"SELECT {holder}")
        async with run_relay():
            await first.aclose()
            await wait_until(admin, f"{holder} <> {pid}")


@pytest.mark.parametrize("rejected", ["older", "newer"])
async def test_rejected_line_is_closed_only_if_the_newer_change_of_its_key_is_acknowledged(
    admin: asyncpg.Connection,
    run_relay: RunRelay,
    reader: Reader,
    monkeypatch: pytest.MonkeyPatch,
    rejected: str,
) -> None:
    delivered = Relay._deliver  # noqa: SLF001
    rounds = 0

    async def deliver(self: Relay, taken: relay._Round) -> Any:
        nonlocal rounds
        rounds += 1
        if rounds == 1:
            # As a broker may do, for example because of a policy.
            unanswered = {version: _Failure(entity, None) for entity, version in taken.versions()}
            place = min if rejected == "older" else max
            rejection = _Failure("student", KafkaError(KafkaError.POLICY_VIOLATION))
            return unanswered | {place(unanswered): rejection}
        return await delivered(self, taken)

    await admin.execute(INSERT, 1, 1)
    await admin.execute("UPDATE student SET name = 'x'")
    versions = await logged(admin)
    monkeypatch.setattr(Relay, "_deliver", deliver)
    monkeypatch.setattr(relay, "_REFUSAL_BACKOFF", Backoff(first=0.01, longest=0.01))
    async with run_relay():
        await all_published(admin)
    assert reader.versions() == (versions[1:] if rejected == "older" else versions)


async def test_change_that_the_broker_rejects_does_not_affect_the_others(
    admin: asyncpg.Connection, run_relay: RunRelay, reader: Reader
) -> None:
    """A broker rejects a whole batch of messages because of its size."""
    await admin.execute(
        "INSERT INTO student SELECT 6 * i, repeat('x', 400000), 20 FROM generate_series(1, 20) AS i"
    )
    await admin.execute("INSERT INTO student VALUES (0, repeat('x', 2000000), 20)")
    async with run_relay(**{"message.max.bytes": 10_000_000}):
        await all_published(admin)
    assert [change.key for change in reader.changes() if change.value is None] == ["0"]
    assert len(reader.versions()) == 21


async def test_changes_wait_while_kafka_is_unavailable_and_are_published_afterwards(
    admin: asyncpg.Connection, run_relay: RunRelay, kafka: Kafka, reader: Reader
) -> None:
    async with run_relay():
        await admin.execute(INSERT, 1, 10)
        await all_published(admin)
        kafka.freeze()
        try:
            await admin.execute(INSERT, 11, 20)
            # The relay takes the lines, and gives them back when nobody acknowledges them.
            await wait_until(admin, f"NOT EXISTS ({UNLOCKED})")
            await wait_until(admin, f"EXISTS ({UNLOCKED})")
            assert await admin.fetchval(UNPUBLISHED) == 10
        finally:
            kafka.thaw()
        await all_published(admin)
    assert sorted(set(reader.versions())) == await logged(admin)


async def test_relay_reconnects_after_its_database_sessions_are_terminated(
    admin: asyncpg.Connection, run_relay: RunRelay, reader: Reader
) -> None:
    end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'cachesync-relay'"
    async with run_relay():
        for key in range(3):
            await wait_until(
                admin, "EXISTS (SELECT FROM pg_stat_activity WHERE application_name = 'cachesync-relay')"
            )
            await admin.execute(end)
            await admin.execute(INSERT, key, key)
        await all_published(admin)
    assert sorted(set(reader.versions())) == await logged(admin)


async def test_changes_that_were_acknowledged_but_not_marked_are_published_again(
    admin: asyncpg.Connection, run_relay: RunRelay, reader: Reader, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered = Relay._deliver  # noqa: SLF001

    async def die(self: Relay, taken: relay._Round) -> Any:
        await delivered(self, taken)
        monkeypatch.undo()
        message = "as if the connection were lost"
        raise OSError(message)

    await admin.execute(INSERT, 1, 10)
    monkeypatch.setattr(Relay, "_deliver", die)
    async with run_relay():
        await all_published(admin)
    assert reader.versions() == sorted(2 * await logged(admin))


async def test_stopped_relay_ends_soon_even_if_the_database_is_frozen(
    admin: asyncpg.Connection, run_relay: RunRelay, postgres: Postgres
) -> None:
    async with run_relay():
        await admin.execute(INSERT, 1, 1)
        await all_published(admin)
        postgres.freeze()
        await asyncio.sleep(1.5)
    postgres.thaw()


async def test_old_lines_are_pruned_in_batches_except_unpublished_ones(
    admin: asyncpg.Connection, run_relay: RunRelay
) -> None:
    # Rows that a service changes have lines of their own.
    await admin.execute("SET cachesync.source = 'sa'")
    await admin.execute(INSERT, 1, 12_000)
    await admin.execute("RESET cachesync.source")
    old = "now() - interval '25 hours'"
    await admin.execute(
        f"UPDATE cachesync.change_log SET changed_at = {old}, relay_at = 'infinity',"
        f" published_at = CASE WHEN key::int % 100 <> 0 THEN {old} END"
    )
    await admin.execute(INSERT, 12_001, 12_010)
    await admin.execute("UPDATE cachesync.change_log SET published_at = now() WHERE key::int > 12000")
    async with run_relay():
        await wait_until(admin, "count(*) = 130 FROM cachesync.change_log")
    assert await admin.fetchval(UNPUBLISHED) == 120


async def test_missing_versions_are_counted_once_no_transaction_can_still_log_them(
    sample: str, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(backlog, "_SAMPLE_SECONDS", 0.0)
    monkeypatch.setattr(backlog, "_SETTLED_SECONDS", 0.0)
    work = Backlog()

    async def counted() -> float:
        for _ in range(3):
            await work.step(admin)
        return REGISTRY.get_sample_value("cachesync_gap_total") or 0.0

    await admin.execute(INSERT, 0, 0)
    before = await counted()
    other = await asyncpg.connect(sample)
    transaction = other.transaction()
    await transaction.start()
    await other.execute(INSERT, 1, 5)
    await admin.execute(INSERT, 10, 12)
    await admin.execute(INSERT, 1000, 1349)
    assert await counted() == before
    await transaction.commit()
    await other.close()
    assert await counted() == before
    with pytest.raises(asyncpg.UniqueViolationError):
        await admin.execute(INSERT, 12, 12)
    await admin.execute("ALTER TABLE student DISABLE TRIGGER cachesync_log_insert")
    await admin.execute(INSERT, 20, 23)
    await admin.execute("ALTER TABLE student ENABLE ALWAYS TRIGGER cachesync_log_insert")
    assert await counted() == before + 5


async def test_sweeps_start_at_the_oldest_change_that_can_still_be_unpublished(
    sample: str, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_COUNT_SECONDS", "_SAMPLE_SECONDS", "_SETTLED_SECONDS"):
        monkeypatch.setattr(backlog, name, 0.0)
    work = Backlog()

    async def begin() -> datetime:
        for _ in range(3):
            await work.step(admin)
        return work.start

    publish = "UPDATE cachesync.change_log SET published_at = now() WHERE key <> '1'"
    other = await asyncpg.connect(sample)
    transaction = other.transaction()
    await transaction.start()
    await other.execute(INSERT, 1, 1)
    await admin.execute(INSERT, 2, 9)
    await admin.execute(publish)
    under_way = await begin()
    await transaction.commit()
    await other.close()
    due = await admin.fetchval("SELECT relay_at FROM cachesync.change_log WHERE key = '1'")
    assert under_way <= due
    assert await begin() == due
    await admin.execute(publish.replace("<>", "="))
    assert await begin() > due


async def test_backlog_is_reported(admin: asyncpg.Connection) -> None:
    await admin.execute(INSERT, 1, 700)
    await admin.execute("UPDATE cachesync.change_log SET changed_at = now() - interval '90 s'")
    await admin.execute("UPDATE cachesync.change_log SET relay_at = changed_at")
    backlog = Backlog()
    await backlog.step(admin)
    assert REGISTRY.get_sample_value("cachesync_backlog") == 700
    assert 90 <= (REGISTRY.get_sample_value("cachesync_backlog_age_seconds") or 0) < 120


@pytest.mark.parametrize("revoked", ["SELECT", "UPDATE (published_at)", "DELETE"])
async def test_relay_that_loses_a_privilege_ends_with_what_to_run(
    admin: asyncpg.Connection, new_relay: Callable[..., Relay], revoked: str
) -> None:
    await admin.execute(f"REVOKE {revoked} ON cachesync.change_log FROM cachesync_worker")
    with pytest.raises(PrivilegeError, match=r"denied for table change_log.*or `cachesync install`"):
        await asyncio.to_thread(new_relay().run)


async def test_change_log_of_an_earlier_version_is_upgraded_in_place(
    admin: asyncpg.Connection,
    run_relay: RunRelay,
    new_relay: Callable[..., Relay],
    entities: dict[str, Entity],
    reader: Reader,
) -> None:
    await admin.execute(INSERT, 1, 3)
    await admin.execute(
        "CREATE FUNCTION cachesync.announce() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER announce AFTER INSERT ON cachesync.change_log EXECUTE FUNCTION cachesync.announce();"
        "ALTER TABLE cachesync.change_log ADD CHECK (operation IN ('upsert', 'delete', 'truncate'));"
        "DROP FUNCTION cachesync.announce_change;"
        "DROP INDEX cachesync.change_log_unpublished;"
        "DROP FUNCTION cachesync.latest_version, cachesync.transaction_changes;"
        "ALTER TABLE cachesync.change_log DROP COLUMN relay_at, DROP COLUMN keys, DROP COLUMN payloads;"
        "ALTER TABLE cachesync.entity DROP COLUMN relation, DROP COLUMN shape, DROP COLUMN objects,"
        " DROP COLUMN lost_at;"
        "CREATE INDEX change_log_unpublished ON cachesync.change_log (version) WHERE published_at IS NULL"
    )
    with pytest.raises(NotInstalledError, match="run `cachesync install`"):
        await asyncio.to_thread(new_relay().run)
    await install(admin, entities, Silent())
    left = "SELECT count(*) FROM {} WHERE {} = 'cachesync.change_log'::regclass AND {}"
    assert await admin.fetchval(left.format("pg_constraint", "conrelid", "contype = 'c'")) == 0
    assert await admin.fetchval(left.format("pg_trigger", "tgrelid", "NOT tgisinternal")) == 0
    # The lines of the earlier version wait next to lines that rows share.
    await admin.execute(INSERT, 4, 300)
    async with run_relay():
        await all_published(admin)
    assert reader.versions() == await logged(admin)
    assert len(reader.versions()) == 300
