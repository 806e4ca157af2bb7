"""The stream, from a service's commit through a real Kafka to another service's Redis."""

from __future__ import annotations

import asyncio
import secrets
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import Mock

import pytest
import redis as redis_client
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer, TopicPartition
from prometheus_client import REGISTRY

from cachesync.change import Change, Operation
from cachesync.dead_letters.letter import Letter
from cachesync.dead_letters.sender import DeadLetterSender
from cachesync.errors import StreamError, TooManyDeadLettersError
from cachesync.kafka.errors import TIMED_OUT
from cachesync.kafka.event import (
    TRUNCATE_KEY,
    Headers,
    encode_headers,
    headers_of,
    message_key,
    message_value,
)
from cachesync.kafka.producer import producer_settings
from cachesync.kafka.topics import DEAD_LETTERS, create_topics
from cachesync.service.row_input import RowInput
from cachesync.slots import batch
from cachesync.slots.batch import Applier
from cachesync.slots.clients import scan
from cachesync.stream import watchdog
from cachesync.stream.stream import Stream, check_consumer_settings
from tests.faults.history.groups import delete_group
from tests.integration.changes import change, value
from tests.integration.raw_message import send
from tests.integration.refusals import denying

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping
    from contextlib import AbstractAsyncContextManager

    import asyncpg

    from cachesync.entity import Entity
    from cachesync.service.service import Service
    from local.kafka import Kafka
    from local.redis import Redis

    OpenService = Callable[..., AbstractAsyncContextManager[Service]]
    RunStream = Callable[..., AbstractContextManager[Stream]]


Poison = tuple[bytes, bytes, Headers, str]
RunWatched = Callable[..., AbstractContextManager[tuple["Patient", Stream, list[StreamError]]]]


@pytest.fixture
def slots(redis_sb: Redis) -> redis_client.Redis:
    return redis_client.Redis.from_url(redis_sb.url)


@pytest.fixture
def group() -> str:
    return f"test-{secrets.token_hex(4)}"


# How soon a client gives up a connection, and connects again.
QUICK = {
    "reconnect.backoff.max.ms": 500,
    "socket.connection.setup.timeout.ms": 2000,
    "socket.timeout.ms": 2000,
}


class Patient(Consumer):
    """A consumer that a test can harm, in its own thread because calls from another one can deadlock."""

    harm: Callable[[], None] | None = None

    def poll(self, timeout: float = -1) -> Message | None:
        if self.harm is not None:
            self.harm()
            self.harm = None
        return super().poll(timeout)


def consumer_settings(bootstrap_servers: str, group: str, reset: str = "latest") -> dict[str, Any]:
    return {
        "bootstrap.servers": bootstrap_servers,
        "group.id": group,
        "enable.auto.commit": False,
        "auto.offset.reset": reset,
        "fetch.wait.max.ms": 10,
        "session.timeout.ms": 6000,
        "heartbeat.interval.ms": 1000,
    }


def consumer(bootstrap_servers: str, group: str, reset: str = "latest") -> Patient:
    return Patient(consumer_settings(bootstrap_servers, group, reset))


@pytest.fixture
def run_stream(topics: str, entities: dict[str, Entity], redis_sb: Redis, group: str) -> RunStream:
    """Runs a stream to sb's cache in a thread, and waits until it has its partitions."""

    @contextmanager
    def run(kind: type[Stream] = Stream) -> Iterator[Stream]:
        client = redis_client.Redis.from_url(redis_sb.url, socket_timeout=2)
        letters = DeadLetterSender(lambda: Producer({"bootstrap.servers": topics}), "sb", group)
        settings = consumer_settings(topics, group)
        applier = Applier(client, "sb", entities)
        stream = kind(lambda: Consumer(settings), applier, letters, entities, "sb", settings=settings)
        thread = threading.Thread(target=stream.run, name="stream")
        thread.start()
        try:
            assert stream.assigned.wait(30)
            # `latest` is resolved after the assignment; messages produced before that would be missed.
            time.sleep(0.5)
            yield stream
        finally:
            stream.stop()
            thread.join(30)
            client.close()

    return run


def test_stream_that_gets_partitions_empties_what_others_may_not_have_followed(
    run_stream: RunStream, slots: redis_client.Redis
) -> None:
    slots.mset({"sb:grade@certificate:c/1": b"A", "sb:grade@certificate:c/2": b"V", "sb:grade:1/a": b"A"})
    with run_stream():
        wait_until(lambda: not slots.exists("sb:grade@certificate:c/1"), "the slot is emptied")
    assert slots.exists("sb:grade:1/a")


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 20) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.01)


def publish(bootstrap_servers: str, *changes: Change, topic: str = "cachesync.student") -> None:
    producer = Producer({"bootstrap.servers": bootstrap_servers})
    for each in changes:
        producer.produce(
            topic,
            key=message_key(each),
            value=message_value(each),
            headers=encode_headers(each),
        )
    assert producer.flush(30) == 0


def publish_transactions(bootstrap_servers: str, topic: str, sent: Change) -> None:
    """Publish a change twice, and discard the second message.

    The end of a transaction and what it discards take offsets that no consumer gets.
    """
    producer = Producer({"bootstrap.servers": bootstrap_servers, "transactional.id": secrets.token_hex(4)})
    producer.init_transactions(30)
    for finish in (producer.commit_transaction, producer.abort_transaction):
        producer.begin_transaction()
        producer.produce(topic, message_value(sent), message_key(sent), headers=encode_headers(sent))
        assert producer.flush(30) == 0
        finish(30)


def dead_letters(bootstrap_servers: str, group: str) -> list[Message]:
    """Return all dead letters of a consumer group."""
    reader = consumer(bootstrap_servers, f"reader-{secrets.token_hex(4)}", "earliest")
    reader.subscribe([DEAD_LETTERS])
    found: list[Message] = []
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline and not found:
        found += [
            message
            for message in reader.consume(100, 0.5)
            if dict(headers_of(message)).get("dead-letter-original-group") == group.encode()
        ]
    reader.close()
    return found


async def test_write_through_one_service_reaches_the_other_cache_and_is_marked_as_published(
    open_service: OpenService, run_stream: RunStream, admin: asyncpg.Connection
) -> None:
    async with open_service("sa") as sa, open_service("sb") as sb:
        with run_stream():
            await sa.caches["student"].insert(RowInput.from_json(b'{"id":1,"name":"Ann"}'))
            await sb.caches["student"].read("1")
            written = await sa.caches["student"].merge("1", RowInput.from_json(b'{"name":"Bea"}'), None)
            async with asyncio.timeout(10):
                while (await sb.caches["student"].read("1")).row != written.row:
                    await asyncio.sleep(0.002)
            await sa.caches["student"].delete("1", None)
            async with asyncio.timeout(10):
                while (await sb.caches["student"].read("1")).row is not None:
                    await asyncio.sleep(0.002)
    assert await admin.fetchval("SELECT count(*) FROM cachesync.change_log WHERE published_at IS NULL") == 0
    assert await admin.fetchval("SELECT count(*) FROM cachesync.change_log WHERE source = 'sa'") == 3


async def test_change_of_an_invalidated_entity_empties_the_slot_in_the_other_cache(
    open_service: OpenService, run_stream: RunStream
) -> None:
    async with open_service("sa") as sa, open_service("sb") as sb:
        with run_stream():
            row = (await sa.caches["course"].insert(RowInput.from_json(b'{"title":"Logic"}'))).row
            assert row is not None
            await sb.caches["course"].read(row.key)
            written = await sa.caches["course"].merge(row.key, RowInput.from_json(b'{"fee":3}'), None)
            async with asyncio.timeout(10):
                while (await sb.caches["course"].read(row.key)).row != written.row:
                    await asyncio.sleep(0.002)


def test_reordered_and_repeated_changes_leave_the_newest_value(
    run_stream: RunStream, topics: str, slots: redis_client.Redis
) -> None:
    slots.set("sb:student:1", value(10))
    with run_stream() as stream:
        publish(topics, change("1", 30), change("1", 20), change("1", 30), change("1", 10))
        wait_until(lambda: stream.applied_count == 4, "four changes are applied")
    assert slots.get("sb:student:1") == value(30)


def test_events_never_fill_an_empty_slot(
    run_stream: RunStream, topics: str, slots: redis_client.Redis
) -> None:
    with run_stream() as stream:
        publish(topics, change("1", 30))
        wait_until(lambda: stream.applied_count == 1, "the change is applied")
    assert slots.get("sb:student:1") is None


def test_truncate_empties_every_older_slot_of_its_entity(
    run_stream: RunStream, topics: str, slots: redis_client.Redis
) -> None:
    for key in range(2500):
        slots.set(f"sb:student:{key}", value(10))
    slots.set("sb:student:newer", value(60))
    slots.set("sb:student:absent", b"A")
    slots.set("sb:student:leased", b"L0000000000000000000token", px=60_000)
    slots.set("sb:course:1", value(10))
    slots.set("sa:student:1", value(10))
    with run_stream() as stream:
        publish(topics, change(None, 50, Operation.TRUNCATE))
        wait_until(lambda: stream.applied_count == 1, "the truncate is applied")
    assert {name.decode(): slots.get(name) for name in slots.scan_iter()} == {
        "sb:student:newer": value(60),
        "sb:student:leased": b"L0000000000000000050token",
        "sb:course:1": value(10),
        "sa:student:1": value(10),
    }


def test_three_consumers_share_six_partitions(
    run_stream: RunStream, topics: str, slots: redis_client.Redis
) -> None:
    keys = [str(key) for key in range(300)]
    for key in keys:
        slots.set(f"sb:student:{key}", value(10))
    with run_stream() as one, run_stream() as two, run_stream() as three:
        time.sleep(3)  # until the last rebalance ends: a new member has no partitions for a moment
        publish(topics, *(change(key, 20) for key in keys))
        wait_until(lambda: sum(each.applied_count for each in (one, two, three)) >= 300, "all are applied")
        shares = [each.applied_count for each in (one, two, three)]
    assert all(share > 0 for share in shares), shares
    assert all(slots.get(f"sb:student:{key}") == value(20) for key in keys)


@pytest.mark.parametrize(
    "poison",
    [
        (b"1", b"junk", [], "ce_specversion"),
        (b"1", b"{}", [("ce_specversion", b"1.0"), ("ce_type", b"cachesync.rename")], "unknown ce_type"),
        (b"\xff", value(5), [], "malformed"),
        (TRUNCATE_KEY, value(5), [], "cannot be the key"),
    ],
)
def test_message_that_cannot_be_decoded_becomes_a_dead_letter_and_the_stream_continues(
    run_stream: RunStream,
    topics: str,
    slots: redis_client.Redis,
    group: str,
    poison: Poison,
) -> None:
    key, content, headers, reason = poison
    slots.set("sb:student:1", value(10))
    with run_stream() as stream:
        producer = Producer({"bootstrap.servers": topics})
        producer.produce("cachesync.student", key=key, value=content, headers=headers, partition=0)
        assert producer.flush(30) == 0
        publish(topics, change("1", 20))
        wait_until(lambda: stream.applied_count == 1, "the next change is applied")
    assert slots.get("sb:student:1") == value(20)
    (letter,) = dead_letters(topics, group)
    fields = {name: text for name, text in headers_of(letter) if name.startswith("dead-letter-")}
    assert (letter.key(), letter.value()) == (key, content)
    assert headers_of(letter)[: len(headers)] == headers
    error = fields["dead-letter-error"]
    assert isinstance(error, bytes)
    assert reason.encode() in error
    assert fields["dead-letter-original-topic"] == b"cachesync.student"
    assert fields["dead-letter-original-partition"] == b"0"
    assert fields["dead-letter-stage"] == b"decode"
    assert fields["dead-letter-attempt"] == b"1"
    assert {
        "dead-letter-original-offset",
        "dead-letter-original-timestamp",
        "dead-letter-maximum",
        "dead-letter-first-failed-at",
        "dead-letter-last-failed-at",
        "dead-letter-not-before",
        "dead-letter-service",
    } <= fields.keys()


@pytest.mark.parametrize(
    "message",
    [
        {"reason": "not UTF-8", "headers": [(b"\xff\xfe", b"x"), (b"ce_type", b"cachesync.upsert")]},
        {"reason": "not UTF-8", "headers": [(b"\xff", b"x")] * 3, "value": None},
        {"reason": "not UTF-8", "headers": [(b"ce_specversion", b"1.0"), (b"\xff", b"x")]},
        {"reason": "ce_specversion", "headers": [(b"", b""), (b"x" * 40_000, b"\xff")], "key": b"\xff"},
        {"reason": "ce_specversion", "headers": [], "timestamp": -(2**62)},
        {"reason": "ce_specversion", "headers": [], "key": b"", "value": b"", "timestamp": -1},
        {"reason": "ce_specversion", "headers": [], "value": b"x" * 999_000},
        {"reason": "ce_specversion", "headers": [(b"x", b"x" * 999_000)]},
        {"reason": "ce_specversion", "headers": [], "key": b"x" * 999_000},
    ],
)
def test_nothing_in_a_message_stops_the_stream(
    run_stream: RunStream,
    topics: str,
    slots: redis_client.Redis,
    group: str,
    message: dict[str, Any],
) -> None:
    reason = message.pop("reason")
    slots.set("sb:student:1", value(10))
    with run_stream() as stream:
        send(topics, "cachesync.student", **message)
        publish(topics, change("1", 20))
        wait_until(lambda: stream.applied_count == 1, "the next change is applied")
        wait_until(lambda: bool(dead_letters(topics, group)), "the dead letter is sent")
    assert slots.get("sb:student:1") == value(20)
    (letter,) = dead_letters(topics, group)
    assert reason in Letter.from_message(letter).error


def test_change_without_its_payload_empties_the_slot(
    run_stream: RunStream, topics: str, slots: redis_client.Redis
) -> None:
    slots.set("sb:student:1", value(10))
    slots.set("sb:student:2", value(30))
    slots.set("sb:student:3", b"L0000000000000000000token", px=60_000)
    with run_stream() as stream:
        for key in ("1", "2", "3"):
            publish(topics, replace(change(key, 20), value=None))
        wait_until(lambda: stream.applied_count == 3, "the changes are applied")
    assert slots.get("sb:student:1") is None
    assert slots.get("sb:student:2") == value(30)
    assert slots.get("sb:student:3") == b"L0000000000000000020token"


async def test_row_that_is_too_large_for_a_message_empties_the_slot_in_the_other_cache(
    open_service: OpenService, run_stream: RunStream, monkeypatch: pytest.MonkeyPatch
) -> None:
    def narrow(kafka: Mapping[str, Any]) -> dict[str, Any]:
        return producer_settings({**kafka, "message.max.bytes": 10_000})

    monkeypatch.setattr("cachesync.service.publisher.producer_settings", narrow)
    async with open_service("sa") as sa, open_service("sb") as sb:
        with run_stream():
            await sa.caches["student"].insert(RowInput.from_json(b'{"id":1,"name":"Ann"}'))
            await sb.caches["student"].read("1")
            large = b'{"name":"%b"}' % (b"x" * 100_000)
            written = await sa.caches["student"].merge("1", RowInput.from_json(large), None)
            async with asyncio.timeout(10):
                while (await sb.caches["student"].read("1")).row != written.row:
                    await asyncio.sleep(0.01)


def test_of_several_truncates_in_a_batch_only_the_newest_scans_the_slots(
    entities: dict[str, Entity], slots: redis_client.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    scanned = Mock(side_effect=scan)
    monkeypatch.setattr(batch, "scan", scanned)
    for name in ("sb:student:1", "sb:course:1"):
        slots.set(name, value(10))
    truncates = [change(None, version, Operation.TRUNCATE) for version in (20, 40, 30)]
    other = replace(change(None, 20, Operation.TRUNCATE), entity="course")
    assert Applier(slots, "sb", entities).apply([*truncates, other]) == []
    assert scanned.call_count == 2
    assert slots.dbsize() == 0


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the watchdog look often, and give up soon."""
    monkeypatch.setattr(watchdog, "_LOOK_SECONDS", 0.2)
    monkeypatch.setattr(watchdog, "_PATIENCE_SECONDS", 4.0)


@pytest.fixture
def watched(topics: str, entities: dict[str, Entity], group: str, slots: redis_client.Redis) -> RunWatched:
    """Runs a stream in a thread, with access to its consumer; the error that ended it is in the list."""

    @contextmanager
    def run(entity: str = "student") -> Iterator[tuple[Patient, Stream, list[StreamError]]]:
        declared = {entity: entities["student"].model_copy(update={"name": entity})}
        create_topics({"bootstrap.servers": topics}, declared.values(), partitions=1, replication=1)
        errors: list[StreamError] = []
        settings = {**consumer_settings(topics, group), **QUICK}
        consumers: list[Patient] = []

        def connect() -> Consumer:
            consumers.append(Patient(settings))
            return consumers[-1]

        letters = DeadLetterSender(lambda: Producer({"bootstrap.servers": topics}), "sb", group)
        stream = Stream(connect, Applier(slots, "sb", declared), letters, declared, "sb", settings=settings)

        def work() -> None:
            try:
                stream.run()
            except StreamError as error:
                errors.append(error)

        thread = threading.Thread(target=work, name="stream")
        thread.start()
        try:
            yield consumers[0], stream, errors
        finally:
            stream.stop()
            thread.join(30)

    return run


def require_progress(stream: Stream, bootstrap_servers: str) -> None:
    before = stream.applied_count

    def progressed() -> bool:
        publish(bootstrap_servers, change("1", 20))
        return stream.applied_count > before

    wait_until(progressed, "the stream applies a change", 60)


@pytest.mark.usefixtures("impatient")
def test_stream_ends_if_its_consumer_is_out_of_its_group(watched: RunWatched) -> None:
    with watched() as (reading, stream, errors):
        assert stream.assigned.wait(30)
        reading.harm = reading.unsubscribe
        wait_until(lambda: bool(errors), "the stream ends")
    assert "has not been in its group" in str(errors[0])


@pytest.mark.usefixtures("impatient")
def test_stream_ends_if_messages_arrive_and_its_consumer_does_not_get_them(
    watched: RunWatched, topics: str
) -> None:
    with watched() as (reading, stream, errors):
        require_progress(stream, topics)
        reading.harm = lambda: reading.pause(reading.assignment())
        wait_until(lambda: reading.harm is None, "the partition is paused")
        publish(topics, change("1", 30))
        wait_until(lambda: bool(errors), "the stream ends")
    assert "no progress in cachesync.student[" in str(errors[0])


def test_stream_goes_on_after_its_group_was_deleted(watched: RunWatched, topics: str, group: str) -> None:
    with watched() as (_, stream, errors):
        require_progress(stream, topics)
        assert delete_group(topics, group)
        require_progress(stream, topics)
        assert not errors


@pytest.mark.usefixtures("impatient")
def test_stream_does_not_end_while_it_has_no_partition_because_another_has_it(
    watched: RunWatched, topics: str
) -> None:
    with watched("single") as (_, one, errors), watched("single") as (_, other, more_errors):
        # Longer than the watchdog's patience.
        until = time.monotonic() + 6
        while time.monotonic() < until or not one.assigned.is_set() ^ other.assigned.is_set():
            publish(topics, change("1", 20), topic="cachesync.single")
            time.sleep(0.1)
            assert not errors
            assert not more_errors
        publish_transactions(topics, "cachesync.single", change("1", 30))
        idle = other if one.assigned.is_set() else one
        seen = idle._watchdog._partitions  # noqa: SLF001
        wait_until(lambda: any(place.clear_to > place.done for place in seen.values()), "the end is examined")
        assert not errors
        assert not more_errors
    assert one.applied_count + other.applied_count > 0


@pytest.mark.usefixtures("impatient")
@pytest.mark.parametrize("server", ["redis_sb", "kafka"])
def test_stream_does_not_end_while_redis_or_kafka_is_unavailable(
    watched: RunWatched, topics: str, server: str, request: pytest.FixtureRequest
) -> None:
    unavailable = request.getfixturevalue(server)
    with watched() as (_, stream, errors):
        require_progress(stream, topics)
        unavailable.freeze()
        try:
            # Longer than the watchdog's patience.
            time.sleep(6)
        finally:
            unavailable.thaw()
        require_progress(stream, topics)
        assert not errors


@pytest.mark.usefixtures("impatient")
def test_stream_does_not_end_while_it_waits_for_another_member_of_its_group(
    watched: RunWatched, topics: str, group: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "_PATIENCE_SECONDS", 1.0)
    other = consumer(topics, group)
    assigned = threading.Event()
    other.subscribe(["cachesync.student"], on_assign=lambda *_: assigned.set())
    wait_until(lambda: other.poll(0.1) is None and assigned.is_set(), "the other has its partitions", 60)
    with watched() as (_, stream, errors):
        # The other one does not poll, but sends heartbeats, so that the group waits for it. Each look at the
        # consumer takes seconds, and this is longer than the watchdog's patience and the time to recover.
        time.sleep(14)
        assert not errors
        assert not stream.assigned.is_set()
        other.close()
        require_progress(stream, topics)
        assert not errors


@pytest.mark.usefixtures("impatient")
def test_stream_ends_if_only_its_consumer_gets_no_response(watched: RunWatched) -> None:
    with watched() as (_, stream, errors), pytest.MonkeyPatch.context() as patch:
        assert stream.assigned.wait(30)

        def no_response(*_: object, **__: object) -> None:
            raise KafkaException(KafkaError(TIMED_OUT))

        patch.setattr(stream._watchdog, "_consumer", SimpleNamespace(assignment=no_response))  # noqa: SLF001
        wait_until(lambda: bool(errors), "the stream ends")
    assert "although Kafka responds to others" in str(errors[0])


def test_change_of_a_slot_that_the_login_may_not_access_becomes_a_dead_letter(
    run_stream: RunStream, topics: str, slots: redis_client.Redis, group: str
) -> None:
    slots.set("sb:student:2", value(10))
    with denying(slots, "1"), run_stream():
        publish(topics, change("1", 20), change("2", 20))
        wait_until(lambda: slots.get("sb:student:2") == value(20), "the other change is applied")
        wait_until(lambda: bool(dead_letters(topics, group)), "the dead letter is sent")
    (letter,) = dead_letters(topics, group)
    assert ("dead-letter-stage", b"cache") in headers_of(letter)


@pytest.mark.parametrize("poisoned", ["undecodable", "refused"])
def test_too_many_failing_messages_stop_the_stream_instead_of_becoming_dead_letters(
    topics: str, entities: dict[str, Entity], slots: redis_client.Redis, group: str, poisoned: str
) -> None:
    reading = consumer(topics, group)
    places = [TopicPartition("cachesync.student", number) for number in range(6)]
    for place in places:
        _, place.offset = reading.get_watermark_offsets(place, 30)
    reading.commit(offsets=places, asynchronous=False)
    producer = Producer({"bootstrap.servers": topics})
    content = value(20) if poisoned == "refused" else b"{}"
    for _ in range(101):
        producer.produce("cachesync.student", key=b"1", value=content, partition=3)
    assert producer.flush(30) == 0
    stream = Stream(
        lambda: reading,
        Applier(slots, "sb", entities),
        DeadLetterSender(lambda: Producer({"bootstrap.servers": topics}), "sb", group),
        {"student": entities["student"]},
        "sb",
        settings=consumer_settings(topics, group),
    )
    with (
        denying(slots, "1"),
        pytest.raises(TooManyDeadLettersError, match=r"101 messages in a row.*cachesync\.student\[3\]@"),
    ):
        stream.run()
    assert len(dead_letters(topics, group)) <= 100


def test_stream_commits_nothing_while_redis_is_unavailable_and_then_applies_everything(
    run_stream: RunStream, topics: str, redis_sb: Redis, slots: redis_client.Redis, group: str
) -> None:
    keys = [str(key) for key in range(50)]
    for key in keys:
        slots.set(f"sb:student:{key}", value(10))
    with run_stream() as stream:
        redis_sb.freeze()
        try:
            publish(topics, *(change(key, 20) for key in keys))
            time.sleep(7)  # longer than the session timeout: the consumer must stay in its group
            assert stream.applied_count == 0
            assert committed(topics, group) == 0
        finally:
            redis_sb.thaw()
        wait_until(lambda: stream.applied_count >= 50, "all are applied")
        wait_until(lambda: committed(topics, group) > 0, "offsets are committed")
    assert all(slots.get(f"sb:student:{key}") == value(20) for key in keys)


def test_stream_that_has_ended_has_no_connection_to_redis(
    topics: str, slots: redis_client.Redis, redis_sb: Redis, entities: dict[str, Entity], group: str
) -> None:
    settings = consumer_settings(topics, group)
    client = redis_client.Redis.from_url(redis_sb.url, client_name=group)
    client.ping()
    letters = DeadLetterSender(lambda: Producer({"bootstrap.servers": topics}), "sb", group)
    applier = Applier(client, "sb", entities)
    stream = Stream(lambda: Consumer(settings), applier, letters, entities, "sb", settings=settings)
    stream.stop()
    stream.run()
    assert group not in {connection["name"] for connection in slots.client_list()}


def test_stream_that_ends_in_a_pause_is_no_longer_reported_as_paused(
    run_stream: RunStream, topics: str, redis_sb: Redis
) -> None:
    def paused() -> float | None:
        return REGISTRY.get_sample_value("cachesync_paused", {"service": "sb"})

    try:
        with run_stream():
            redis_sb.freeze()
            publish(topics, change("1", 20))
            wait_until(lambda: paused() == 1, "the stream is paused")
    finally:
        redis_sb.thaw()
    assert paused() is None
    with run_stream():
        assert paused() == 0


def test_no_partition_stays_paused_if_redis_recovers_during_a_rebalance(
    run_stream: RunStream, topics: str, redis_sb: Redis, slots: redis_client.Redis, group: str
) -> None:
    class Thawing(Stream):
        """Redis recovers while it has no partitions; the paused ones are assigned to it again later."""

        def _on_revoke(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
            super()._on_revoke(consumer, partitions)
            redis_sb.thaw()

    keys = [str(key) for key in range(50)]
    for key in keys:
        slots.set(f"sb:student:{key}", value(10))
    with run_stream(Thawing) as stream:
        publish(topics, *(change(key, 20) for key in keys))
        wait_until(lambda: committed(topics, group) == 6, "each partition has a committed offset")
        redis_sb.freeze()
        try:
            publish(topics, *(change(key, 30) for key in keys))
            with run_stream():
                pass
        finally:
            redis_sb.thaw()
        wait_until(stream.assigned.is_set, "it has all partitions again")
        publish(topics, *(change(key, 40) for key in keys))
        wait_until(lambda: {slots.get(f"sb:student:{key}") for key in keys} == {value(40)}, "all are applied")


def committed(bootstrap_servers: str, group: str) -> int:
    """Return the number of partitions of the topic with a committed offset."""
    reader = consumer(bootstrap_servers, group)
    offsets = reader.committed(
        [TopicPartition("cachesync.student", number) for number in range(6)], timeout=10
    )
    reader.close()
    return sum(offset.offset >= 0 for offset in offsets)


def test_next_consumer_resumes_at_the_committed_offset(
    run_stream: RunStream, topics: str, slots: redis_client.Redis
) -> None:
    slots.set("sb:student:1", value(10))
    with run_stream() as stream:
        publish(topics, change("1", 15))
        wait_until(lambda: stream.applied_count == 1, "the first change is applied")
    publish(topics, change("1", 20))
    with run_stream() as stream:
        wait_until(lambda: stream.applied_count == 1, "the change published in between is applied")
    assert slots.get("sb:student:1") == value(20)


def test_stream_survives_a_kill_of_the_broker(
    run_stream: RunStream, topics: str, kafka: Kafka, slots: redis_client.Redis, group: str
) -> None:
    slots.set("sb:student:1", value(10))
    with run_stream():
        publish(topics, change("1", 20))
        wait_until(lambda: slots.get("sb:student:1") == value(20), "the first change is applied")
        # Without a committed offset, `latest` would make it skip the messages published in the meantime.
        wait_until(lambda: committed(topics, group) > 0, "the offset is committed")
        kafka.kill()
        kafka.start()
        publish(topics, change("1", 30))
        wait_until(lambda: slots.get("sb:student:1") == value(30), "the second change is applied", 60)


async def test_dead_broker_neither_fails_nor_delays_a_write(
    open_service: OpenService, admin: asyncpg.Connection
) -> None:
    async with open_service("sa", kafka_bootstrap_servers="127.0.0.1:1") as sa:
        async with asyncio.timeout(10):
            for key in range(200):
                body = b'{"id":%d,"name":"x"}' % key
                written = await sa.caches["student"].insert(RowInput.from_json(body))
                assert written.cached
        assert (await sa.health())["kafka"] is False
    unpublished = "SELECT count(*) FROM cachesync.change_log WHERE published_at IS NULL"
    assert await admin.fetchval(unpublished) == 200


async def test_full_queue_neither_fails_nor_delays_a_write(
    open_service: OpenService, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    def short_queue(kafka: Mapping[str, Any]) -> dict[str, Any]:
        return producer_settings(kafka) | {"queue.buffering.max.messages": 10}

    monkeypatch.setattr("cachesync.service.publisher.producer_settings", short_queue)
    async with open_service("sa", kafka_bootstrap_servers="127.0.0.1:1") as sa, asyncio.timeout(20):
        for key in range(50):
            await sa.caches["student"].insert(RowInput.from_json(b'{"id":%d,"name":"x"}' % key))
    unpublished = "SELECT count(*) FROM cachesync.change_log WHERE published_at IS NULL"
    assert await admin.fetchval(unpublished) == 50


@pytest.mark.parametrize("settings", [{}, {"enable.auto.commit": True}, {"enable.auto.commit": "true"}])
def test_consumer_with_automatic_commits_is_rejected(settings: dict[str, object]) -> None:
    with pytest.raises(StreamError, match=r"enable\.auto\.commit must be false"):
        check_consumer_settings({"auto.offset.reset": "earliest", **settings})


@pytest.mark.parametrize("settings", [{}, {"auto.offset.reset": "latest"}, {"auto.offset.reset": "error"}])
def test_consumer_that_would_skip_earlier_changes_is_rejected(settings: dict[str, object]) -> None:
    with pytest.raises(StreamError, match=r"auto\.offset\.reset must be earliest"):
        check_consumer_settings({"enable.auto.commit": "false", **settings})
