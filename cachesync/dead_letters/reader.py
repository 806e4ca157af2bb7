"""Reads dead letters, starting with the oldest that may be open."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, Final, Self

from confluent_kafka import Consumer, KafkaError, KafkaException, TopicPartition

from cachesync.dead_letters.letter import Letter
from cachesync.errors import TopicError
from cachesync.kafka import errors
from cachesync.kafka.clients import open_client
from cachesync.kafka.errors import translate_kafka_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Generator, Mapping

    from confluent_kafka import Message

    from cachesync.dead_letters.letter import LetterId

_GROUP: Final = "cachesync-dead-letters"
_TIMEOUT_SECONDS: Final = 10.0
_PAUSE_SECONDS: Final = 0.1

_Partition = tuple[str, int]


class DeadLetterReader:
    """A consumer of dead letters that never joins its group, so that every reader sees all letters.

    It commits offsets under the group's name nevertheless: all letters below them are closed. This only saves
    reading; whether a letter is closed is determined by the audit table.

    Args:
        settings: librdkafka's settings for connecting to the brokers.

    Raises:
        KafkaUnavailableError: librdkafka rejected the settings.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        ours = {
            "group.id": _GROUP,
            "enable.auto.commit": False,
            "enable.partition.eof": True,
            "fetch.wait.max.ms": 10,
        }
        self._consumer = open_client(Consumer, {**settings, **ours})
        self._committed: dict[_Partition, int] = {}
        self._lowest_open: dict[_Partition, int] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._consumer.close()

    def batches(
        self, topic: str, size: int, read: Mapping[int, int] | None = None
    ) -> Generator[list[Letter]]:
        """Yield the letters that are in a topic now and may be open.

        Args:
            topic: the dead-letter topic or the parking lot.
            size: the maximum number of letters in a batch.
            read: by partition, the offset to which the caller has read the letters already.

        Raises:
            KafkaUnavailableError: Kafka did not respond.
            TopicError: the topic is missing.
        """
        with translate_kafka_errors():
            ranges = self._ranges(topic, read or {})
            self._lowest_open |= {(topic, partition): end for partition, (_, end) in ranges.items()}
            unread = {partition: end for partition, (start, end) in ranges.items() if start < end}
            if not unread:
                return
            self._consumer.assign([TopicPartition(topic, number, ranges[number][0]) for number in unread])
            try:
                batch: list[Letter] = []
                while unread:
                    # Wait for one message, then take those that have already arrived: consume(n, t) would
                    # wait the full t.
                    messages = [self._next(), *self._consumer.consume(size - len(batch) - 1, 0)]
                    batch += _letters(messages, unread)
                    if len(batch) == size:
                        yield batch
                        batch = []
                if batch:
                    yield batch
            finally:
                self._consumer.unassign()

    def letter(self, topic: str, partition: int, offset: int) -> Letter | None:
        """Return one letter, or None if it does not exist or has expired.

        Args:
            topic: the dead-letter topic or the parking lot.
            partition: the partition of the topic.
            offset: the offset in the partition.

        Raises:
            KafkaUnavailableError: Kafka did not respond.
            TopicError: the topic is missing.
        """
        with translate_kafka_errors():
            if partition not in self._partitions(topic):
                return None
            position = TopicPartition(topic, partition, offset)
            low, high = self._consumer.get_watermark_offsets(position, _TIMEOUT_SECONDS)
            if not low <= offset < high:
                return None
            self._consumer.assign([position])
            try:
                message = self._next()
            finally:
                self._consumer.unassign()
        if message.error() is not None or message.offset() != offset:
            return None
        return Letter.from_message(message)

    def bounds(self, topic: str) -> dict[int, tuple[int, int]]:
        """Return, by partition, the offset of the oldest letter and that after the last one.

        Raises:
            KafkaUnavailableError: Kafka did not respond.
            TopicError: the topic is missing.
        """
        with translate_kafka_errors():
            return {
                number: self._consumer.get_watermark_offsets(TopicPartition(topic, number), _TIMEOUT_SECONDS)
                for number in self._partitions(topic)
            }

    def count(self, topic: str) -> int:
        """Return how many messages `batches` would read.

        Raises:
            KafkaUnavailableError: Kafka did not respond.
            TopicError: the topic is missing.
        """
        with translate_kafka_errors():
            return sum(end - start for start, end in self._ranges(topic, {}).values())

    def mark_open(self, letters: Collection[LetterId]) -> None:
        """Record that letters are still open, so that `commit` does not pass them."""
        for letter in letters:
            partition = (letter.topic, letter.partition)
            self._lowest_open[partition] = min(self._lowest_open[partition], letter.offset)

    def commit(self) -> None:
        """Make the next reader start with the oldest letter that was marked as open.

        Raises:
            KafkaUnavailableError: Kafka did not respond.
        """
        offsets = [
            TopicPartition(*partition, offset)
            for partition, offset in self._lowest_open.items()
            if offset != self._committed.get(partition)
        ]
        if offsets:
            with translate_kafka_errors():
                _while_coordinator_moves(lambda: self._consumer.commit(offsets=offsets, asynchronous=False))

    def _next(self) -> Message:
        message = self._consumer.poll(_TIMEOUT_SECONDS)
        if message is None:
            raise KafkaException(KafkaError(errors.TIMED_OUT))
        return message

    def _ranges(self, topic: str, read: Mapping[int, int]) -> dict[int, tuple[int, int]]:
        """Return, by partition, the offset to start with and the offset after the last letter."""
        partitions = [TopicPartition(topic, number) for number in self._partitions(topic)]
        ranges = {}
        committed = _while_coordinator_moves(
            lambda: self._consumer.committed(partitions, timeout=_TIMEOUT_SECONDS)
        )
        for partition in committed:
            low, high = self._consumer.get_watermark_offsets(partition, _TIMEOUT_SECONDS)
            self._committed[topic, partition.partition] = partition.offset
            # If the topic was recreated, it may not have reached the committed offset yet.
            wanted = read.get(partition.partition, partition.offset)
            start = wanted if low <= wanted <= high else low
            ranges[partition.partition] = (start, high)
        return ranges

    def _partitions(self, topic: str) -> list[int]:
        metadata = self._consumer.list_topics(topic, timeout=_TIMEOUT_SECONDS).topics[topic]
        if metadata.error is not None:
            message = f"topic {topic}: {metadata.error.str()}; run `cachesync create-topics`"
            raise TopicError(message)
        return sorted(metadata.partitions)


def _while_coordinator_moves(call: Callable[[], list[TopicPartition]]) -> list[TopicPartition]:
    """Repeat a call to the group's coordinator while the coordinator is moving to another broker."""
    deadline = time.monotonic() + _TIMEOUT_SECONDS
    while True:
        try:
            return call()
        except KafkaException as error:
            if error.args[0].code() not in errors.COORDINATOR_MOVES or time.monotonic() > deadline:
                raise
            time.sleep(_PAUSE_SECONDS)


def _letters(messages: list[Message], unread: dict[int, int]) -> list[Letter]:
    """Return the letters among messages, and remove fully read partitions from `unread`."""
    letters = []
    for message in messages:
        problem, partition, offset = message.error(), message.partition(), message.offset()
        assert partition is not None and offset is not None  # noqa: S101, PT018 - events of a partition have both
        if problem is not None:
            if problem.code() != errors.PARTITION_EOF:
                raise KafkaException(problem)
            unread.pop(partition, None)
            continue
        if partition in unread and offset < unread[partition]:
            letters.append(Letter.from_message(message))
        if offset + 1 >= unread.get(partition, 0):
            unread.pop(partition, None)
    return letters
