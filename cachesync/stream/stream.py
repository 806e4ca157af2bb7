"""The stream: consumes the changes of all entities and applies them to one service's cache."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from cachesync import metrics
from cachesync.backoff import Backoff
from cachesync.change import Change
from cachesync.dead_letters.letter import Stage
from cachesync.errors import (
    CacheUnavailableError,
    KafkaUnavailableError,
    StreamError,
    TooManyDeadLettersError,
    UndecodableError,
)
from cachesync.kafka.event import decode, headers_of
from cachesync.stream.dead_letter_limit import DeadLetterLimit

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confluent_kafka import Consumer, Message

    from cachesync.dead_letters.sender import DeadLetterSender
    from cachesync.entity import Entity
    from cachesync.slots.batch import Applier

_log = structlog.get_logger(__name__)

_BATCH: Final = 500
_POLL_SECONDS: Final = 0.25
# Applied again after a crash: at most what came in this time, which is harmless.
_COMMIT_SECONDS: Final = 0.1
_BACKOFF: Final = Backoff(first=0.05, longest=2)

_Letter = tuple["Message", Stage, str]


class _StoppedError(Exception):
    """Asked to stop in the middle of a batch."""


def require_manual_commit(settings: Mapping[str, Any]) -> None:
    """Refuse a consumer that commits by itself: it would commit what has not been applied.

    Raises:
        StreamError: `enable.auto.commit` is not set to false (it is true by default).
    """
    if str(settings.get("enable.auto.commit", True)).lower() != "false":
        message = (
            "enable.auto.commit must be false: offsets are committed after Redis has answered, never before"
        )
        raise StreamError(message)


class Stream:
    """Runs in one thread, between `run` and `stop`.

    Args:
        consumer: a consumer that does not commit by itself.
        applier: applies to the service's cache.
        dead_letters: takes what can never be applied.
        entities: the declared entities.
        service: the service's name.

    Attributes:
        assigned: set while it has partitions to consume.
        applied_count: how many changes it has applied.
    """

    def __init__(
        self,
        consumer: Consumer,
        applier: Applier,
        dead_letters: DeadLetterSender,
        entities: Mapping[str, Entity],
        service: str,
    ) -> None:
        self._consumer = consumer
        self._applier = applier
        self._dead_letters = dead_letters
        self._entities = {entity.topic: entity for entity in entities.values()}
        self._stopping = threading.Event()
        self._paused = False
        self._paused_metric = metrics.paused.labels(service)
        self._service = service
        self._limit = DeadLetterLimit()
        # The next offset of each partition whose messages are applied.
        self._applied: dict[tuple[str, int], int] = {}
        self._committed_at = time.monotonic()
        self.applied_count = 0
        self.assigned = threading.Event()

    def stop(self) -> None:
        """Make `run` return soon; from any thread."""
        self._stopping.set()

    def run(self) -> None:
        """Consume and apply until `stop`.

        Raises:
            StreamError: too many messages cannot be applied, or Kafka failed for good.
        """
        self._consumer.subscribe(
            list(self._entities), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )
        try:
            while not self._stopping.is_set():
                # The first message is waited for, the rest is what is there already: a consume(n, t)
                # would wait the whole t.
                first = self._consumer.poll(_POLL_SECONDS)
                if first is not None:
                    self._handle([first, *self._consumer.consume(_BATCH - 1, 0)])
                if time.monotonic() - self._committed_at >= _COMMIT_SECONDS:
                    self._commit(wait=False)
        except _StoppedError:
            _log.info(
                "stopped while waiting for the cache; the next consumer applies it", service=self._service
            )
        except KafkaException as error:
            message = f"Kafka failed: {error.args[0]}"
            raise StreamError(message) from error
        finally:
            self._commit(wait=True)
            # Leaves the group at once, so that another member takes over without waiting for a timeout.
            self._consumer.close()

    def _handle(self, messages: list[Message]) -> None:
        decoded = self._decoded(messages)
        changes = [change for _, change in decoded if isinstance(change, Change)]
        refused = {id(change): reason for change, reason in self._apply(changes)}
        letters: dict[int, _Letter] = {}
        for place, (message, change) in enumerate(decoded):
            if isinstance(change, UndecodableError):
                letters[place] = message, Stage.DECODE, str(change)
            elif id(change) in refused:
                letters[place] = message, Stage.CACHE, refused[id(change)]
        self._require_few(len(decoded), letters)
        self._bury(list(letters.values()))
        for message, _ in decoded:
            self._applied[_topic(message), _partition(message)] = _offset(message) + 1
        self.applied_count += len(changes)

    def _decoded(self, messages: list[Message]) -> list[tuple[Message, Change | UndecodableError]]:
        """What each message carries; those that tell of a problem of Kafka's carry nothing."""
        decoded: list[tuple[Message, Change | UndecodableError]] = []
        for message in messages:
            problem = message.error()
            if problem is not None:
                self._consumer_problem(problem)
                continue
            entity = self._entities[_topic(message)]
            try:
                change = decode(entity.name, message.key(), message.value(), headers_of(message))
            except UndecodableError as error:
                decoded.append((message, error))
            else:
                decoded.append((message, change))
        return decoded

    def _require_few(self, messages: int, letters: dict[int, _Letter]) -> None:
        """Stop before letters are sent whose number says that the fault is a program's, not theirs."""
        try:
            self._limit.count(messages, letters)
        except TooManyDeadLettersError as error:
            message, _, reason = list(letters.values())[-1]
            place = f"{_topic(message)}[{_partition(message)}]@{_offset(message)}"
            text = f"{error}, the last at {place}: {reason}"
            raise StreamError(text) from error

    def _apply(self, changes: list[Change]) -> list[tuple[Change, str]]:
        """Apply, waiting for Redis as long as it takes."""
        failures = 0
        while True:
            try:
                refused = self._applier.apply(changes)
            except CacheUnavailableError as error:
                if not self._paused:
                    _log.warning(
                        "the cache does not answer, pausing", service=self._service, error=str(error)
                    )
                failures += 1
                self._wait(_BACKOFF.delay(failures))
            else:
                self._resume()
                return refused

    def _wait(self, seconds: float) -> None:
        """Wait without consuming, but stay a member of the group, which takes polling."""
        if not self._paused:
            self._paused = True
            self._paused_metric.set(1)
            self._consumer.pause(self._consumer.assignment())
        if self._stopping.is_set():
            raise _StoppedError
        message_while_paused = self._consumer.poll(seconds)
        if message_while_paused is not None:
            problem = message_while_paused.error()
            if problem is not None:
                self._consumer_problem(problem)
                return
            # It was under way before the pause, or came with a new assignment; have it again later.
            self._consumer.seek(
                TopicPartition(
                    _topic(message_while_paused),
                    _partition(message_while_paused),
                    _offset(message_while_paused),
                )
            )

    def _resume(self) -> None:
        if self._paused:
            self._paused = False
            self._paused_metric.set(0)
            self._consumer.resume(self._consumer.assignment())
            _log.info("the cache answers again", service=self._service)

    def _bury(self, letters: list[_Letter]) -> None:
        for message, stage, error in letters:
            metrics.dead_letters.labels(self._service, stage.value).inc()
            _log.warning(
                "dead letter",
                service=self._service,
                topic=message.topic(),
                partition=message.partition(),
                offset=message.offset(),
                stage=stage.value,
                error=error,
            )
        try:
            self._dead_letters.send(letters)
        except KafkaUnavailableError as error:
            raise StreamError(str(error)) from error

    def _consumer_problem(self, problem: KafkaError) -> None:
        if problem.fatal():
            raise KafkaException(problem)
        _log.warning("kafka", service=self._service, error=problem.str())

    def _commit(self, *, wait: bool) -> None:
        self._committed_at = time.monotonic()
        if not self._applied:
            return
        offsets = [
            TopicPartition(topic, partition, offset) for (topic, partition), offset in self._applied.items()
        ]
        self._applied.clear()
        try:
            if wait:
                self._consumer.commit(offsets=offsets, asynchronous=False)
            else:
                self._consumer.commit(offsets=offsets)
        except KafkaException as error:
            # Such as a rebalance that took the partition: its new owner applies the same again.
            _log.warning("offsets were not committed", service=self._service, error=str(error.args[0]))

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        _log.info("assigned", service=self._service, partitions=_named(partitions))
        if partitions:
            self.assigned.set()
        consumer.assign(partitions)
        if self._paused:
            consumer.pause(partitions)
        else:
            # One that was paused when it was taken away comes back paused, although the cache answers again.
            consumer.resume(partitions)

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        _log.info("revoked", service=self._service, partitions=_named(partitions))
        self.assigned.clear()
        self._commit(wait=True)

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        _log.warning("lost", service=self._service, partitions=_named(partitions))
        self.assigned.clear()
        self._applied.clear()


def _named(partitions: list[TopicPartition]) -> list[str]:
    return [f"{partition.topic}[{partition.partition}]" for partition in partitions]


def _topic(message: Message) -> str:
    topic = message.topic()
    assert topic is not None  # noqa: S101 - only a message that is an error has none
    return topic


def _partition(message: Message) -> int:
    partition = message.partition()
    assert partition is not None  # noqa: S101 - only a message that is an error has none
    return partition


def _offset(message: Message) -> int:
    offset = message.offset()
    assert offset is not None  # noqa: S101 - only a message that is an error has none
    return offset
