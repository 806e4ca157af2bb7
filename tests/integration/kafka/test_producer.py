"""A producer of changes, and what it does with changes that it cannot deliver."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Consumer, KafkaError, Producer, TopicPartition
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

from cachesync.backoff import Backoff
from cachesync.change import Operation
from cachesync.kafka import producer
from cachesync.kafka.clients import open_client
from cachesync.kafka.errors import QUEUE_FULL
from cachesync.kafka.event import decode, headers_of
from cachesync.kafka.producer import Sender, producer_settings
from tests.integration.changes import change

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cachesync.change import Change
    from local.kafka import Kafka

TOPIC = "cachesync.student"
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
    sender = Sender({**producer_settings({"bootstrap.servers": topics}), "message.timeout.ms": 500})
    assert deliver(sender, change("1", 20)) is None
    assert len(opened) == 2
    assert deliver(sender, change("1", 30)) is None
    assert len(opened) == 2


@pytest.mark.usefixtures("impatient")
def test_producer_that_gets_no_response_is_replaced_although_nothing_is_sent(
    topics: str, opened: list[Producer]
) -> None:
    sender = Sender(producer_settings({"bootstrap.servers": topics}))
    deadline = time.monotonic() + 30
    while not sender.is_available(0.1):
        assert time.monotonic() < deadline
        sender.poll(0)
    assert len(opened) == 2


@pytest.mark.usefixtures("impatient")
def test_producers_do_not_multiply_while_kafka_is_unavailable(
    topics: str, kafka: Kafka, monkeypatch: pytest.MonkeyPatch
) -> None:
    count = 0

    def opening(kind: Callable[..., Producer], settings: Mapping[str, Any]) -> Producer:
        nonlocal count
        count += 1
        return open_client(kind, settings)

    monkeypatch.setattr(producer, "open_client", opening)
    sender = Sender({**producer_settings({"bootstrap.servers": topics}), "message.timeout.ms": 500})
    kafka.freeze()
    try:
        assert deliver(sender, change("1", 20), 8) is not None
    finally:
        kafka.thaw()
    assert deliver(sender, change("1", 20)) is None
    assert count <= 2


def test_queue_takes_a_bounded_amount_of_memory() -> None:
    sender = Sender(producer_settings({"bootstrap.servers": NOWHERE}))
    outcomes: list[KafkaError | None] = []
    large = replace(change("1", 20), payload=b"x" * 250_000)
    for _ in range(708):
        sender.send(TOPIC, large, outcomes.append)
    assert {error.code() for error in outcomes if error is not None} == {QUEUE_FULL}
    assert 708 - len(outcomes) == (32 << 20) // 250_001


def test_limit_of_the_topic_counts_even_if_it_is_lower_than_that_of_the_producer(kafka: Kafka) -> None:
    """Small changes in the same batch keep their payload."""
    settings: dict[str, Any] = {"bootstrap.servers": kafka.bootstrap_servers}
    admin = AdminClient(settings)
    narrow = NewTopic("narrow", 1, 1, config={"max.message.bytes": "100000"})
    admin.create_topics([narrow])["narrow"].result(30)
    sender = Sender(producer_settings(settings))
    sizes = [10, 150_000, 20, 90_000, 90_000, 990_000, 30, 2_000_000, 40]
    outcomes: list[KafkaError | None] = []
    for number, size in enumerate(sizes):
        sent = replace(change(str(number), 20 + number), payload=b"x" * size)
        sender.send("narrow", sent, outcomes.append)
    assert sender.flush(30) == 0
    assert outcomes == [None] * len(sizes)
    reader = Consumer({**settings, "group.id": "unused", "enable.auto.commit": False})
    reader.assign([TopicPartition("narrow", 0, 0)])
    messages = reader.consume(len(sizes), 30)
    reader.close()
    changes = [decode("student", one.key(), one.value(), headers_of(one)) for one in messages]
    assert {one.operation for one in changes} == {Operation.UPSERT}
    assert {one.key: len(one.payload or b"") for one in changes} == {
        str(number): size if size < 100_000 else 0 for number, size in enumerate(sizes)
    }
