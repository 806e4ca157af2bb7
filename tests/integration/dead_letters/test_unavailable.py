"""The translation of Kafka client errors into errors of this library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from confluent_kafka import Consumer, KafkaException, Producer, TopicPartition

from cachesync.dead_letters import reader, sender
from cachesync.dead_letters.letter import Stage
from cachesync.dead_letters.reader import DeadLetterReader
from cachesync.dead_letters.sender import DeadLetterSender
from cachesync.errors import KafkaUnavailableError, TopicError
from cachesync.kafka.topics import DEAD_LETTERS

if TYPE_CHECKING:
    from collections.abc import Callable

    from confluent_kafka import Message

NOWHERE = "127.0.0.1:1"


@pytest.fixture
def message(topics: str) -> Message:
    """A message to send as a dead letter."""
    producer = Producer({"bootstrap.servers": topics})
    producer.produce("cachesync.student", key=b"1", value=b"{}", partition=0)
    assert producer.flush(30) == 0
    consumer = Consumer({"bootstrap.servers": topics, "group.id": "test"})
    low, _ = consumer.get_watermark_offsets(TopicPartition("cachesync.student", 0), 30)
    consumer.assign([TopicPartition("cachesync.student", 0, low)])
    found = consumer.poll(30)
    consumer.close()
    assert found is not None
    assert found.error() is None
    return found


def test_letter_that_times_out_is_an_error(message: Message) -> None:
    producer = Producer({"bootstrap.servers": NOWHERE, "message.timeout.ms": 300, "log_level": 0})
    with pytest.raises(KafkaUnavailableError) as unavailable:
        DeadLetterSender(lambda: producer, "sb", "a group").send([(message, Stage.DECODE, "an error")])
    assert isinstance(unavailable.value.__cause__, KafkaException)


def test_letters_without_acknowledgement_are_an_error(
    message: Message, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sender, "_FLUSH_SECONDS", 0.3)
    producer = Producer({"bootstrap.servers": NOWHERE, "log_level": 0})
    try:
        with pytest.raises(KafkaUnavailableError, match="2 dead letters"):
            DeadLetterSender(lambda: producer, "sb", "a group").send(
                [(message, Stage.DECODE, "an error")] * 2
            )
    finally:
        producer.purge()
        producer.flush(1)


def test_full_queue_is_an_error(message: Message) -> None:
    producer = Producer({"bootstrap.servers": NOWHERE, "queue.buffering.max.messages": 1, "log_level": 0})
    try:
        with pytest.raises(KafkaUnavailableError) as unavailable:
            DeadLetterSender(lambda: producer, "sb", "a group").send(
                [(message, Stage.DECODE, "an error")] * 2
            )
        assert isinstance(unavailable.value.__cause__, BufferError)
    finally:
        producer.purge()
        producer.flush(1)


@pytest.mark.parametrize(
    "read",
    [
        lambda letters: list(letters.batches(DEAD_LETTERS, 10)),
        lambda letters: letters.letter(DEAD_LETTERS, 0, 0),
        lambda letters: letters.count(DEAD_LETTERS),
    ],
    ids=["batches", "letter", "count"],
)
def test_reads_fail_while_kafka_is_down(
    read: Callable[[DeadLetterReader], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reader, "_TIMEOUT_SECONDS", 0.3)
    letters = DeadLetterReader({"bootstrap.servers": NOWHERE})
    with letters, pytest.raises(KafkaUnavailableError) as unavailable:
        read(letters)
    assert isinstance(unavailable.value.__cause__, KafkaException)


def test_missing_topic_is_a_topic_error(topics: str) -> None:
    with DeadLetterReader({"bootstrap.servers": topics}) as letters, pytest.raises(TopicError):
        letters.letter("cachesync.no-such-topic", 0, 0)


def test_settings_that_the_kafka_client_rejects_are_an_error(topics: str) -> None:
    with pytest.raises(KafkaUnavailableError, match=r"no\.such\.setting"):
        DeadLetterReader({"bootstrap.servers": topics, "no.such.setting": "1"})
