"""A producer of changes."""

from __future__ import annotations

import time
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer

from cachesync.backoff import Backoff
from cachesync.change import Change, Operation
from cachesync.kafka import errors
from cachesync.kafka.clients import open_client, recovery_seconds
from cachesync.kafka.event import encode_headers, message_key, message_value, time_of
from cachesync.lookup import encode_values, values_in
from cachesync.metrics import publishing as metrics
from cachesync.value import UP_TO_PAYLOAD, version_of

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from confluent_kafka import Message

    from cachesync.change import Upserts
    from cachesync.entity import Entity

    Headers = Sequence[tuple[str, str | bytes | None]]
    Settled = Callable[[KafkaError | None], None]
    Failed = Callable[[int, KafkaError], None]

_log = structlog.get_logger(__name__)

_MAX_MESSAGE_BYTES: Final = "message.max.bytes"
# How long a producer may fail before another one is tried; longer after each one that did not help.
_PATIENCE: Final = Backoff(first=10, longest=600, jitter=0)
_TRIAL_SECONDS: Final = 5.0
_TRIAL_TIMEOUT_SECONDS: Final = 1.0


def producer_settings(kafka: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a producer of changes.

    Args:
        kafka: librdkafka's settings for connecting to the brokers; they take precedence.
    """
    max_bytes = int(kafka.get(_MAX_MESSAGE_BYTES, 1_000_000))
    return {
        "enable.idempotence": True,
        # Single-message batches cost the broker more than this delay costs the readers.
        "linger.ms": 5,
        # A broker rejects a batch as a whole. Due to this limit, a large message is a batch of its own.
        "batch.size": 65_536,
        "message.timeout.ms": 30_000,
        # While Kafka is unavailable, what does not fit waits in the change log. Each message also takes about
        # two kilobytes that librdkafka does not count.
        "queue.buffering.max.kbytes": max(32_768, 2 * max_bytes // 1024),
        "queue.buffering.max.messages": 10_000,
        _MAX_MESSAGE_BYTES: max_bytes,
        "reconnect.backoff.ms": 200,
        "reconnect.backoff.max.ms": 2000,
        # How soon a dead connection is noticed, and therefore how long after an outage a producer may fail.
        "socket.timeout.ms": 10_000,
        "socket.connection.setup.timeout.ms": 10_000,
        **kafka,
    }


class Sender:
    """A producer of changes, which is replaced if it fails permanently.

    A change that is too large for the producer, the topic or the broker is published without its payload.

    Args:
        settings: the settings of the producer; see `producer_settings`. With `delivery.report.only.error`,
            only changes that cannot be delivered are settled; see `flush`.
        entities: the declared entities by name.

    Attributes:
        max_bytes: the maximum size of a message; a payload above it is certainly too large.
        generation: increases when the producer is replaced; what was queued is then lost or failed.

    Raises:
        KafkaUnavailableError: librdkafka rejected the settings.
    """

    def __init__(self, settings: Mapping[str, Any], entities: Mapping[str, Entity]) -> None:
        self._settings = settings
        self._entities = entities
        self._producer = self._open()
        self._with_omissions: set[str] = set()
        # Since when no change was delivered although some were sent, and since when no broker responds.
        self._undelivered_since: float | None = None
        self._unanswered_since: float | None = None
        self._failed_at = 0.0
        self._successor: Producer | None = None
        self._successor_answers_since: float | None = None
        self._next_trial = 0.0
        self._replacements = 0
        # Since the queue was last empty.
        self._queued = 0
        self._undelivered = 0
        self.generation = 0
        self.max_bytes = int(settings[_MAX_MESSAGE_BYTES])

    def send(
        self,
        topic: str,
        change: Change,
        settled: Settled,
        *,
        alone: bool = False,
        headers: Headers = (),
    ) -> None:
        """Queue a change for delivery.

        Args:
            topic: the topic of the change's entity.
            change: the change.
            settled: called exactly once, by this method or by `poll` or `flush`, with the
                error that prevented the delivery, or with None once the broker has acknowledged the change.
            alone: whether no other change is queued until this one is settled. If it is too large even
                without its payload, it is then published as a truncate.
            headers: headers of the message besides those of the change.
        """
        if change.value is None and change.operation is Operation.UPSERT:
            self._count_omission(change.entity)
        # The change itself is not kept: librdkafka has its own copy of the payload.
        smaller = self._smaller(change, alone=alone)
        shrink = (
            None
            if smaller is None
            else partial(self._send_smaller, topic, smaller, settled, alone=alone, headers=headers)
        )
        try:
            self._producer.produce(
                topic,
                key=message_key(change),
                value=message_value(change),
                headers=[*encode_headers(change), *headers],
                timestamp=change.changed_ms,
                on_delivery=partial(self._delivered, settled, shrink),
            )
        except (BufferError, KafkaException) as error:
            _failed(settled, shrink, self._reason(error))
        else:
            self._queued += 1

    def send_upserts(self, topic: str, upserts: Upserts, failed: Failed) -> None:
        """Queue upserts for delivery. Only those that cannot be delivered are reported.

        This takes 1.5 µs a change. `produce_batch` takes 1.2, but does not accept timestamps.

        Args:
            topic: the topic of the changes' entity.
            upserts: the changes.
            failed: called with the version of each change that cannot be delivered and the error, by this
                method or by `poll` or `flush`.
        """
        # A report does not have the time of its message.
        times: dict[bytes, int] = {}

        def delivered(error: KafkaError | None, message: Message) -> None:
            if error is None:
                self._note_delivery()
                return
            self._note_failure(error)
            if not times:
                times.update(zip(upserts.values, upserts.times, strict=True))
            key, value = message.key() or b"", message.value() or b""
            undelivered(error, key.decode(), value, times[value])

        def undelivered(error: KafkaError, key: str, value: bytes, milliseconds: int) -> None:
            version = version_of(value)
            changed_at = time_of(milliseconds)
            unique = self._unique(upserts.entity, value)
            smaller = Change(upserts.entity, key, version, Operation.UPSERT, None, "", changed_at, unique)

            def settled(error: KafkaError | None) -> None:
                if error is not None:
                    failed(version, error)

            _failed(settled, partial(self._send_smaller, topic, smaller, settled, alone=False), error)

        for key, value, milliseconds in zip(upserts.keys, upserts.values, upserts.times, strict=True):
            try:
                # By position, which is faster than by name.
                self._producer.produce(topic, value, key, -1, delivered, None, milliseconds)
            except (BufferError, KafkaException) as error:
                undelivered(self._reason(error), key, value, milliseconds)
            else:
                self._queued += 1

    def is_available(self, timeout: float) -> bool:
        """Return whether a broker responds within a timeout in seconds."""
        if _answers(self._producer, timeout):
            self._unanswered_since = None
            return True
        self._failed_at = time.monotonic()
        self._unanswered_since = self._unanswered_since or self._failed_at
        return False

    def poll(self, seconds: float) -> None:
        """Wait up to the given number of seconds for delivery reports, and handle them."""
        self._producer.poll(seconds)
        self._replace_if_stuck()

    def flush(self, seconds: float) -> int:
        """Deliver queued changes for up to the given number of seconds; return how many are left.

        If none is left, each queued change was either acknowledged or reported as failed: librdkafka counts a
        message as queued until its delivery report has been handled. This does not hold if the producer was
        replaced meanwhile.

        Source: `rd_kafka_flush`, `rd_kafka_msg_destroy` in librdkafka
        """
        left = self._producer.flush(seconds)
        if not left:
            if self._queued > self._undelivered:
                self._note_delivery()
            self._queued = self._undelivered = 0
        return left

    def close(self) -> None:
        """Discard undelivered changes and disconnect, which can take a while."""
        self._producer.purge()
        del self._producer

    def _delivered(
        self, settled: Settled, shrink: Callable[[], None] | None, error: KafkaError | None, _: object
    ) -> None:
        if error is None:
            self._note_delivery()
            settled(None)
            return
        self._note_failure(error)
        _failed(settled, shrink, error)

    def _note_delivery(self) -> None:
        self._undelivered_since = None
        self._replacements = 0

    def _note_failure(self, error: KafkaError) -> None:
        self._undelivered += 1
        if error.code() == errors.MSG_TIMED_OUT:
            self._failed_at = time.monotonic()
            self._undelivered_since = self._undelivered_since or self._failed_at

    def _reason(self, exception: BufferError | KafkaException) -> KafkaError:
        """Return why a message could not be queued. Replace the producer if it has stopped."""
        if isinstance(exception, BufferError):
            return KafkaError(errors.QUEUE_FULL)
        reason: KafkaError = exception.args[0]
        if reason.code() == errors.FATAL:
            # An idempotent producer that has lost track of its sequence numbers stops permanently.
            _log.error("producer replaced after a fatal error", error=reason.str())
            self._replace(self._open())
        return reason

    def _replace(self, successor: Producer) -> None:
        stuck, self._producer = self._producer, successor
        self.generation += 1
        stuck.purge()
        stuck.poll(0)
        # Of the new producer's queue.
        self._queued = self._undelivered = 0

    def _smaller(self, change: Change, *, alone: bool) -> Change | None:
        """Return what to publish in place of a change that is too large; None to report the error.

        Without its payload, a change empties its slot. If even its key is too large, a truncate empties all
        slots of the entity. Only a change that was sent alone is certainly too large: a broker rejects whole
        batches.
        """
        if change.value is not None:
            return replace(change, value=None, unique=self._unique(change.entity, change.value))
        if alone and change.key is not None:
            return replace(change, operation=Operation.TRUNCATE, key=None, unique=b"")
        return None

    def _unique(self, entity: str, value: bytes) -> bytes:
        declared = self._entities.get(entity)
        if declared is None or not declared.unique:
            return b""
        return encode_values(values_in(declared.lookups, value[UP_TO_PAYLOAD:]))

    def _send_smaller(
        self,
        topic: str,
        smaller: Change,
        settled: Settled,
        *,
        alone: bool,
        headers: Headers = (),
    ) -> None:
        if smaller.operation is Operation.TRUNCATE:
            metrics.without_key.labels(smaller.entity).inc()
            _log.error(
                "key too large for Kafka: published a truncate, which empties all slots of the entity",
                entity=smaller.entity,
                version=smaller.version,
            )
        self.send(topic, smaller, settled, alone=alone, headers=headers)

    def _count_omission(self, entity: str) -> None:
        metrics.without_payload.labels(entity).inc()
        if entity not in self._with_omissions:
            self._with_omissions.add(entity)
            _log.warning("change too large for Kafka: published without its payload", entity=entity)

    def _replace_if_stuck(self) -> None:
        """Replace a producer that keeps failing while Kafka responds to a new one.

        While Kafka does not respond to the new one either, both wait. After that, the old one has the time
        that a producer can need to connect again, and only a failure after that time counts: if nothing is
        sent, it has no opportunity to prove that it works.
        """
        since = min(filter(None, (self._undelivered_since, self._unanswered_since)), default=None)
        if since is None:
            self._successor = self._successor_answers_since = None
            return
        now = time.monotonic()
        if now - since < _PATIENCE.delay(self._replacements + 1) or now < self._next_trial:
            return
        self._next_trial = now + _TRIAL_SECONDS
        if self._successor is None:
            self._successor = self._open()
        if not _answers(self._successor, _TRIAL_TIMEOUT_SECONDS):
            self._successor_answers_since = None
        elif self._successor_answers_since is None:
            self._successor_answers_since = time.monotonic()
        elif self._failed_at - self._successor_answers_since > recovery_seconds(self._settings):
            _log.error("producer replaced: it fails although Kafka responds", seconds=round(now - since))
            successor = self._successor
            self._successor = self._successor_answers_since = None
            self._undelivered_since = self._unanswered_since = None
            self._replacements += 1
            self._replace(successor)

    def _open(self) -> Producer:
        return open_client(Producer, {**self._settings, "error_cb": _log_outage})


def _failed(settled: Settled, shrink: Callable[[], None] | None, error: KafkaError) -> None:
    """Send a smaller change in place of one that was too large; otherwise report the error."""
    if shrink is not None and error.code() in errors.TOO_LARGE:
        shrink()
    else:
        settled(error)


def _answers(producer: Producer, timeout: float) -> bool:
    try:
        producer.list_topics(timeout=timeout)
    except KafkaException:
        return False
    return True


def _log_outage(error: KafkaError) -> None:
    if error.code() == errors.ALL_BROKERS_DOWN:
        _log.warning("Kafka unavailable: changes wait in the change log", error=error.str())
