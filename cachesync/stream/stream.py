"""The stream: consumes the changes of all entities and applies them to one service's cache."""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, Any, Final

import structlog
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from cachesync.backoff import Backoff
from cachesync.dead_letters.letter import Stage
from cachesync.dead_letters.sender import DeadLetterSender
from cachesync.entity import with_canary
from cachesync.errors import (
    CacheUnavailableError,
    KafkaUnavailableError,
    StreamError,
    TooManyDeadLettersError,
    UndecodableError,
)
from cachesync.kafka.clients import check_settings
from cachesync.kafka.event import decode_event, headers_of
from cachesync.metrics import stream as metrics
from cachesync.metrics.kinds import forget
from cachesync.slots.batch import Applier
from cachesync.stream.consumer_lag import ConsumerLag
from cachesync.stream.dead_letter_limit import DeadLetterLimit
from cachesync.stream.watchdog import Watchdog
from cachesync.traces import begin as begin_traces
from cachesync.traces import traces

if TYPE_CHECKING:
    from collections.abc import Callable, Container, Mapping

    from confluent_kafka import Consumer, Message, Producer

    from cachesync.change import Event
    from cachesync.dead_letters.letter import RetryPolicy
    from cachesync.entity import Entity
    from cachesync.slots.clients import BlockingRedis

_log = structlog.get_logger(__name__)

REDIS_SECONDS: Final = 2.0
"""Timeout of the stream's Redis: short, so that the stream pauses instead of freezing along with it."""

# librdkafka's names for it.
_EARLIEST: Final = frozenset({"earliest", "smallest", "beginning"})
_BATCH: Final = 500
_POLL_SECONDS: Final = 0.25
# After a crash, at most the messages of this time are applied again, which is harmless.
_COMMIT_SECONDS: Final = 0.1
_BACKOFF: Final = Backoff(first=0.05, longest=2)

_Failure = tuple["Message", Stage, str]


class _StoppedError(Exception):
    """The stream was asked to stop in the middle of a batch."""


def check_consumer_settings(settings: Mapping[str, Any]) -> None:
    """Reject settings with which the consumer would skip changes.

    Args:
        settings: the consumer's librdkafka settings.

    Raises:
        StreamError: `enable.auto.commit` is not set to false (the default is true), so that offsets would be
            committed before messages are applied; or `auto.offset.reset` is not set to earliest (the default
            is latest), so that a group without offsets would begin at the end.
    """
    if str(settings.get("enable.auto.commit", True)).lower() != "false":
        message = "enable.auto.commit must be false: offsets are committed only after Redis has responded"
        raise StreamError(message)
    if settings.get("auto.offset.reset") not in _EARLIEST:
        message = "auto.offset.reset must be earliest: a group that has lost its offsets would skip changes"
        raise StreamError(message)


def open_stream(
    service: str,
    entities: Mapping[str, Entity],
    client: BlockingRedis,
    settings: Mapping[str, Any],
    policy: RetryPolicy,
    *,
    connect: Callable[[], Consumer],
    connect_producer: Callable[[], Producer],
) -> Stream:
    """Open the stream of a service's cache.

    Args:
        service: the service's name.
        entities: the declared entities by name; that of the live check is added.
        client: the service's Redis or Redis Cluster, with the timeout `REDIS_SECONDS`; the stream
            closes it when it ends.
        settings: the consumer's librdkafka settings.
        policy: determines when a dead letter is due, and how many times it is retried.
        connect: opens a consumer with these settings.
        connect_producer: opens a producer for dead letters.

    Raises:
        SettingsError: a setting of the consumer has no value.
        StreamError: the consumer would skip changes.
    """
    check_consumer_settings(settings)
    check_settings(settings)
    begin_traces("cachesync")
    entities = with_canary(entities)
    letters = DeadLetterSender(connect_producer, service, settings["group.id"], policy)
    return Stream(connect, Applier(client, service, entities), letters, entities, service, settings=settings)


class Stream:
    """Applies the changes of all entities to one service's cache.

    `run` occupies one thread until `stop` is called.

    Args:
        connect: opens a consumer; called again to find out whether the first one works.
        applier: applies changes to the service's cache.
        dead_letters: sends the messages that can never be applied to the dead-letter topic.
        entities: the declared entities by name.
        service: the service's name.
        settings: the consumer's librdkafka settings, which pass `check_consumer_settings`.

    Attributes:
        assigned: set while the consumer has partitions assigned.
        applied_count: the number of changes handled so far, including those that Redis rejected for good.
    """

    def __init__(
        self,
        connect: Callable[[], Consumer],
        applier: Applier,
        dead_letters: DeadLetterSender,
        entities: Mapping[str, Entity],
        service: str,
        *,
        settings: Mapping[str, Any],
    ) -> None:
        self._consumer = connect()
        self._applier = applier
        self._dead_letters = dead_letters
        # The names of the entities by topic.
        self._entities = {entity.topic: name for name, entity in entities.items()}
        self._stopping = threading.Event()
        self._paused = False
        self._lag = ConsumerLag(service)
        self._service = service
        self._limit = DeadLetterLimit()
        self._watchdog = Watchdog(
            self._consumer, settings, self._entities, connect, applier.is_available, lag=self._lag
        )
        # By topic and partition, the offset after the last message that was applied but not committed.
        self._applied: dict[tuple[str, int], int] = {}
        self._committed_at = time.monotonic()
        # The entities whose changes others have applied until now.
        self._begun: set[str] = set()
        self.applied_count = 0
        self.assigned = threading.Event()

    def stop(self) -> None:
        """Make `run` return soon. Can be called from any thread."""
        self._stopping.set()

    def run(self) -> None:
        """Consume and apply until `stop` is called.

        Raises:
            TooManyDeadLettersError: too many messages cannot be applied.
            StreamError: Kafka failed in a way that the client cannot recover from, or the consumer no longer
                works.
        """
        self._consumer.subscribe(
            list(self._entities), on_assign=self._on_assign, on_revoke=self._on_revoke, on_lost=self._on_lost
        )
        metrics.streams.set(self, 1, self._service)
        metrics.paused.set(self, 0, self._service)
        try:
            while not self._stopping.is_set():
                # Wait for one message, then take those that have already arrived: consume(n, t) would
                # wait the full t.
                first = self._consumer.poll(_POLL_SECONDS)
                if first is not None:
                    self._handle([first, *self._consumer.consume(_BATCH - 1, 0)])
                elif self._begun:
                    self._apply([])
                if time.monotonic() - self._committed_at >= _COMMIT_SECONDS:
                    self._commit(wait=False)
                self._watchdog.look()
        except _StoppedError:
            _log.info(
                "stream stopped while paused; the next consumer applies the batch", service=self._service
            )
        except KafkaException as error:
            message = f"Kafka failed: {error.args[0]}"
            raise StreamError(message) from error
        finally:
            forget(self, self._lag)
            self._commit(wait=True)
            # Leave the group now, so that another member takes over without waiting for a timeout.
            self._consumer.close()
            # A login that is no longer used can be seen to be so, and removed.
            self._applier.close()

    def _handle(self, messages: list[Message]) -> None:
        events: list[Event] = []
        # The messages that do not only report a problem of the consumer; which of them are undecodable; and
        # the last one of each partition.
        received: list[Message] = []
        failures: dict[int, _Failure] = {}
        last: dict[tuple[Any, Any], Message] = {}
        entities = self._entities
        for message in messages:
            problem = message.error()
            if problem is not None:
                self._consumer_problem(problem)
                continue
            topic: Any = message.topic()
            try:
                events.append(decode_event(entities[topic], message))
            except UndecodableError as error:
                failures[len(received)] = message, Stage.DECODE, str(error)
            received.append(message)
            last[topic, message.partition()] = message
        self._lag.received(received)
        started_ns = time.time_ns()
        denied = {id(event): reason for event, reason in self._apply(events)}
        if denied:
            decoded = [position for position in range(len(received)) if position not in failures]
            for position, event in zip(decoded, events, strict=True):
                if id(event) in denied:
                    failures[position] = received[position], Stage.CACHE, denied[id(event)]
        failures = dict(sorted(failures.items()))
        self._require_below_limit(len(received), failures)
        self._send_dead_letters(list(failures.values()))
        for place, message in last.items():
            self._applied[place] = _offset(message) + 1
        self._lag.applied(last)
        self._trace(received, failures, started_ns)
        self.applied_count += len(events)

    def _trace(self, messages: list[Message], failures: Container[int], started_ns: int) -> None:
        """Continue the traces of the messages that have been applied, which are those without a failure."""
        tracing = traces()
        if tracing is None:
            return
        for position, message in enumerate(messages):
            if position not in failures:
                entity = self._entities[_topic(message)]
                tracing.applied(self._service, entity, dict(headers_of(message)), started_ns)

    def _require_below_limit(self, messages: int, failures: dict[int, _Failure]) -> None:
        """Stop before dead letters are sent if their number points to a bug rather than to bad messages."""
        try:
            self._limit.count(messages, failures)
        except TooManyDeadLettersError as error:
            message, _, reason = list(failures.values())[-1]
            last = f"{_topic(message)}[{_partition(message)}]@{_offset(message)}"
            text = f"{error}, the last at {last}: {reason}"
            raise TooManyDeadLettersError(text) from error

    def _apply(self, events: list[Event]) -> list[tuple[Event, str]]:
        """Apply changes, waiting for Redis as long as necessary; return the denied ones with the reason."""
        failures = 0
        while True:
            try:
                self._begin()
                denied = self._applier.apply_events(events)
            except CacheUnavailableError as error:
                if not self._paused:
                    _log.warning("stream paused: cache unavailable", service=self._service, error=str(error))
                failures += 1
                self._wait(_BACKOFF.delay(failures))
            else:
                self._resume()
                return denied

    def _begin(self) -> None:
        begun = set(self._begun)
        self._applier.begin(begun)
        self._begun -= begun

    def _wait(self, seconds: float) -> None:
        """Wait without consuming, but keep polling, which is required to stay in the consumer group."""
        if not self._paused:
            self._paused = True
            metrics.paused.set(self, 1, self._service)
            self._consumer.pause(self._consumer.assignment())
        if self._stopping.is_set():
            raise _StoppedError
        self._watchdog.measure()
        message_while_paused = self._consumer.poll(seconds)
        if message_while_paused is not None:
            problem = message_while_paused.error()
            if problem is not None:
                self._consumer_problem(problem)
                return
            # It was in flight before the pause or came with a new assignment; consume it again later.
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
            metrics.paused.set(self, 0, self._service)
            self._consumer.resume(self._consumer.assignment())
            _log.info("stream resumed: cache available", service=self._service)

    def _send_dead_letters(self, failures: list[_Failure]) -> None:
        for message, stage, error in failures:
            metrics.dead_letters.labels(self._service, stage.value).inc()
            _log.warning(
                "sending dead letter",
                service=self._service,
                topic=message.topic(),
                partition=message.partition(),
                offset=message.offset(),
                stage=stage.value,
                error=error,
            )
        try:
            self._dead_letters.send(failures)
        except KafkaUnavailableError as error:
            raise StreamError(str(error)) from error

    def _consumer_problem(self, problem: KafkaError) -> None:
        if problem.fatal():
            raise KafkaException(problem)
        _log.warning("Kafka consumer error", service=self._service, error=problem.str())

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
            # For example, a rebalance revoked the partition: its new owner applies the same messages again.
            _log.warning("offset commit failed", service=self._service, error=str(error.args[0]))

    def _on_assign(self, consumer: Consumer, partitions: list[TopicPartition]) -> None:
        _log.info("partitions assigned", service=self._service, partitions=_names(partitions))
        if partitions:
            self.assigned.set()
        self._begun.update(self._entities[partition.topic] for partition in partitions)
        consumer.assign(partitions)
        if self._paused:
            consumer.pause(partitions)
        else:
            # A partition that was paused when it was revoked comes back paused, although the cache may be
            # available again.
            consumer.resume(partitions)

    def _on_revoke(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        _log.info("partitions revoked", service=self._service, partitions=_names(partitions))
        self.assigned.clear()
        self._commit(wait=True)

    def _on_lost(self, _: Consumer, partitions: list[TopicPartition]) -> None:
        _log.warning("partitions lost", service=self._service, partitions=_names(partitions))
        self.assigned.clear()
        self._applied.clear()


def _names(partitions: list[TopicPartition]) -> list[str]:
    return [f"{partition.topic}[{partition.partition}]" for partition in partitions]


def _topic(message: Message) -> str:
    topic = message.topic()
    assert topic is not None  # noqa: S101 - only an error message has none
    return topic


def _partition(message: Message) -> int:
    partition = message.partition()
    assert partition is not None  # noqa: S101 - only an error message has none
    return partition


def _offset(message: Message) -> int:
    offset = message.offset()
    assert offset is not None  # noqa: S101 - only an error message has none
    return offset
