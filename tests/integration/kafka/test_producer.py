"""A producer of changes, and what it does with changes that it cannot deliver."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Consumer, KafkaError, KafkaException, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from cachesync.backoff import Backoff
from cachesync.change import Operation, Upserts
from cachesync.kafka import producer
from cachesync.kafka.clients import open_client
from cachesync.kafka.errors import MSG_TIMED_OUT, QUEUE_FULL, UNKNOWN_TOPIC
from cachesync.kafka.event import decode_message
from cachesync.kafka.producer import Sender, producer_settings
from cachesync.value import UP_TO_PAYLOAD, encode_value
from tests.integration.changes import FINGERPRINT, change
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cachesync.change import Change
    from local.kafka import Kafka

TOPIC = "cachesync.student"
# How soon a producer gives up a message, a connection, and connects again.
QUICK = {
    "message.timeout.ms": 500,
    "reconnect.backoff.max.ms": 200,
    "socket.connection.setup.timeout.ms": 1000,
    "socket.timeout.ms": 1000,
}
NOWHERE = "127.0.0.1:1"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a failing producer be replaced soon."""
    monkeypatch.setattr(producer, "_PATIENCE", Backoff(first=1, longest=10, jitter=0))
    monkeypatch.setattr(producer, "_TRIAL_SECONDS", 0.5)


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Producer]:
    """The producers opened so far; the first one never gets a response."""
    opened: list[Producer] = []

    def opening(kind: Callable[..., Producer], settings: Mapping[str, Any]) -> Producer:
        reachable = settings if opened else {**settings, "bootstrap.servers": NOWHERE}
        opened.append(open_client(kind, reachable))
        return opened[-1]

    monkeypatch.setattr(producer, "open_client", opening)
    return opened


def create_topic(settings: dict[str, Any], name: str, max_bytes: int) -> None:
    admin = AdminClient(settings)
    topic = NewTopic(name, 1, 1, config={"max.message.bytes": str(max_bytes)})

    def is_created() -> bool:
        try:
            admin.create_topics([topic], request_timeout=10)[name].result(30)
        except KafkaException as error:
            return bool(error.args[0].code() == KafkaError.TOPIC_ALREADY_EXISTS)
        return True

    # A broker that has just been frozen in the test before may not answer the first request.
    wait_until(is_created, f"the topic {name} exists")


def read(settings: Mapping[str, Any], topic: str, count: int) -> list[Change]:
    """Return the changes in a topic."""
    reader = Consumer({**settings, "group.id": "unused", "enable.auto.commit": False})
    reader.assign([TopicPartition(topic, 0, 0)])
    messages = reader.consume(count, 30)
    reader.close()
    return [decode_message("student", one) for one in messages]


def deliver(sender: Sender, sent: Change, seconds: float = 30) -> KafkaError | None:
    """Send a change until it is delivered, as the relay does; return the last error."""
    outcomes: list[KafkaError | None] = []
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and (not outcomes or outcomes[-1] is not None):
        sender.send(TOPIC, sent, outcomes.append)
        count = len(outcomes)
        while len(outcomes) == count and time.monotonic() < deadline:
            sender.poll(0.1)
    return outcomes[-1]


@pytest.mark.usefixtures("impatient")
def test_producer_that_only_times_out_is_replaced_while_kafka_responds_to_others(
    topics: str, opened: list[Producer]
) -> None:
    sender = Sender(producer_settings({"bootstrap.servers": topics, **QUICK}), {})
    assert deliver(sender, change("1", 20)) is None
    assert len(opened) == 2
    assert deliver(sender, change("1", 30)) is None
    assert len(opened) == 2


@pytest.mark.usefixtures("impatient")
def test_producer_that_gets_no_response_is_replaced_although_nothing_is_sent(
    topics: str, opened: list[Producer]
) -> None:
    sender = Sender(producer_settings({"bootstrap.servers": topics, **QUICK}), {})
    deadline = time.monotonic() + 30
    while not sender.is_available(0.1):
        assert time.monotonic() < deadline
        sender.poll(0)
    assert len(opened) == 2


@pytest.mark.usefixtures("impatient")
def test_producer_is_kept_if_kafka_was_unavailable_to_all(
    topics: str, kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[Producer] = []

    def opening(kind: Callable[..., Producer], settings: Mapping[str, Any]) -> Producer:
        opened.append(open_client(kind, settings))
        return opened[-1]

    monkeypatch.setattr(producer, "open_client", opening)
    sender = Sender(producer_settings({"bootstrap.servers": topics, **QUICK}), {})
    kafka.freeze()
    try:
        assert deliver(sender, change("1", 20), 5) is not None
    finally:
        kafka.thaw()
    # Nothing is sent for longer than a producer can need to connect again.
    until = time.monotonic() + 3
    while time.monotonic() < until:
        sender.poll(0.1)
    assert deliver(sender, change("1", 20)) is None
    assert sender._producer is opened[0]  # noqa: SLF001
    assert len(opened) <= 2


def test_queue_takes_a_bounded_amount_of_memory() -> None:
    sender = Sender(producer_settings({"bootstrap.servers": NOWHERE}), {})
    outcomes: list[KafkaError | None] = []
    large = replace(change("1", 20), value=b"x" * 250_000)
    for _ in range(708):
        sender.send(TOPIC, large, outcomes.append)
    assert {error.code() for error in outcomes if error is not None} == {QUEUE_FULL}
    assert 708 - len(outcomes) == (32 << 20) // 250_001


def test_limit_of_the_topic_counts_even_if_it_is_lower_than_that_of_the_producer(kafka: Kafka) -> None:
    """Small changes in the same batch keep their payload."""
    settings: dict[str, Any] = {"bootstrap.servers": kafka.bootstrap_servers}
    create_topic(settings, "narrow", 100_000)
    sender = Sender(producer_settings(settings), {})
    sizes = [10, 150_000, 20, 90_000, 90_000, 990_000, 30, 2_000_000, 40]
    outcomes: list[KafkaError | None] = []
    for number, size in enumerate(sizes):
        sent = replace(
            change(str(number), 20 + number), value=encode_value(20 + number, FINGERPRINT, b"x" * size)
        )
        sender.send("narrow", sent, outcomes.append)
    assert sender.flush(30) == 0
    assert outcomes == [None] * len(sizes)
    changes = read(settings, "narrow", len(sizes))
    assert {one.operation for one in changes} == {Operation.UPSERT}
    assert {one.key: max(0, len(one.value or b"") - UP_TO_PAYLOAD) for one in changes} == {
        str(number): size if size < 100_000 else 0 for number, size in enumerate(sizes)
    }


def upserts(first: int, sizes: list[int]) -> Upserts:
    versions = range(first, first + len(sizes))
    return Upserts(
        entity="student",
        keys=[str(version) for version in versions],
        values=[
            encode_value(version, FINGERPRINT, b"x" * size)
            for version, size in zip(versions, sizes, strict=True)
        ],
        times=[1_700_000_000_000 + version for version in versions],
    )


@pytest.mark.parametrize("only_errors", [True, False])
def test_upserts_are_delivered_with_their_times_and_without_payloads_that_are_too_large(
    kafka: Kafka, *, only_errors: bool
) -> None:
    settings: dict[str, Any] = {"bootstrap.servers": kafka.bootstrap_servers}
    topic = f"batch-{only_errors}"
    create_topic(settings, topic, 100_000)
    sender = Sender(producer_settings({**settings, "delivery.report.only.error": only_errors}), {})
    sizes = [10, 150_000, 90_000, 2_000_000, 30]
    failures: list[tuple[int, KafkaError]] = []
    sender.send_upserts(topic, upserts(20, sizes), lambda *failure: failures.append(failure))
    assert sender.flush(30) == 0
    assert failures == []
    changes = {one.version: one for one in read(settings, topic, len(sizes))}
    assert {one.key: max(0, len(one.value or b"") - UP_TO_PAYLOAD) for one in changes.values()} == {
        str(20 + number): size if size < 100_000 else 0 for number, size in enumerate(sizes)
    }
    for version, one in changes.items():
        assert one.key == str(version)
        assert one.changed_at.timestamp() == (1_700_000_000_000 + version) / 1000


def test_each_upsert_that_is_not_acknowledged_is_reported_before_the_queue_counts_as_empty(
    topics: str, kafka: Kafka
) -> None:
    """Messages that time out in the queue or under way, that a topic rejects, and that are discarded."""
    settings = {"bootstrap.servers": topics, "message.timeout.ms": 5000, "delivery.report.only.error": True}
    sender = Sender(producer_settings(settings), {})
    failures: dict[int, KafkaError] = {}

    def settle() -> set[int]:
        deadline = time.monotonic() + 30
        while sender.flush(0.1):
            assert time.monotonic() < deadline
        codes = {error.code() for error in failures.values()}
        versions = sorted(failures)
        failures.clear()
        assert versions in ([], list(range(20, 1020)))
        return codes

    many = upserts(20, [50] * 1000)
    sender.send_upserts(TOPIC, many, failures.__setitem__)
    assert settle() == set()
    sender.send_upserts("not-there", many, failures.__setitem__)
    assert settle() <= {MSG_TIMED_OUT, UNKNOWN_TOPIC, KafkaError.UNKNOWN_TOPIC_OR_PART}
    kafka.freeze()
    try:
        sender.send_upserts(TOPIC, many, failures.__setitem__)
        assert settle() == {MSG_TIMED_OUT}
        sender.send_upserts(TOPIC, many, failures.__setitem__)
        sender._producer.purge()  # noqa: SLF001
        assert settle() <= {KafkaError._PURGE_QUEUE, KafkaError._PURGE_INFLIGHT}  # noqa: SLF001
    finally:
        kafka.thaw()


def test_change_whose_key_is_too_large_empties_all_slots(kafka: Kafka) -> None:
    """Otherwise it would never be delivered, and the caches would keep the older row."""
    settings: dict[str, Any] = {"bootstrap.servers": kafka.bootstrap_servers}
    create_topic(settings, "narrower", 50_000)
    sender = Sender(producer_settings(settings), {})
    outcomes: list[KafkaError | None] = []
    large = change("k" * 100_000, 20)
    deleted = replace(change("d" * 100_000, 21), operation=Operation.DELETE, value=None)
    for sent in (large, deleted, change("1", 22)):
        sender.send("narrower", sent, outcomes.append, alone=True)
        assert sender.flush(30) == 0
    assert outcomes == [None] * 3
    assert {one.version: (one.operation, one.key) for one in read(settings, "narrower", 3)} == {
        20: (Operation.TRUNCATE, None),
        21: (Operation.TRUNCATE, None),
        22: (Operation.UPSERT, "1"),
    }


def test_change_is_no_truncate_because_others_in_its_batch_are_too_large(kafka: Kafka) -> None:
    settings: dict[str, Any] = {"bootstrap.servers": kafka.bootstrap_servers}
    create_topic(settings, "narrowest", 5_000)
    sender = Sender(producer_settings({**settings, "linger.ms": 1000}), {})
    outcomes: list[KafkaError | None] = []
    for version in range(20, 80):
        deleted = replace(change("1", version), operation=Operation.DELETE, value=None)
        sender.send("narrowest", deleted, outcomes.append)
    assert sender.flush(30) == 0
    assert {error and error.code() for error in outcomes} == {KafkaError.MSG_SIZE_TOO_LARGE}
