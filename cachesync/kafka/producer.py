"""A producer of changes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer

from cachesync.kafka import errors
from cachesync.kafka.clients import open_client
from cachesync.kafka.event import encode_headers, message_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cachesync.change import Change

_log = structlog.get_logger(__name__)


def producer_settings(kafka: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a producer of changes.

    Args:
        kafka: librdkafka's settings for connecting to the brokers; they take precedence.
    """
    return {
        "enable.idempotence": True,
        # Single-message batches cost the broker more than this delay costs the readers.
        "linger.ms": 5,
        "message.timeout.ms": 30_000,
        "queue.buffering.max.messages": 100_000,
        "reconnect.backoff.ms": 200,
        "reconnect.backoff.max.ms": 2000,
        **kafka,
    }


class Sender:
    """A producer of changes, which is replaced if it fails permanently.

    Args:
        settings: the settings of the producer; see `producer_settings`.

    Raises:
        KafkaUnavailableError: librdkafka rejected the settings.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._connect()

    def send(self, topic: str, change: Change, settled: Callable[[KafkaError | None], None]) -> None:
        """Queue a change for delivery.

        Args:
            topic: the topic of the change's entity.
            change: the change.
            settled: called exactly once, by this method or by `poll` or `flush`, with the
                error that prevented the delivery, or with None once the broker has acknowledged the change.
        """
        try:
            self._producer.produce(
                topic,
                key=message_key(change),
                value=change.payload,
                headers=encode_headers(change),
                on_delivery=lambda error, _: settled(error),
            )
        except BufferError:
            settled(KafkaError(errors.QUEUE_FULL))
        except KafkaException as error:
            reason: KafkaError = error.args[0]
            if reason.code() == errors.FATAL:
                # An idempotent producer that has lost track of its sequence numbers stops permanently.
                _log.error("producer replaced after a fatal error", error=reason.str())
                self._connect()
            settled(reason)

    def is_available(self, timeout: float) -> bool:
        """Return whether a broker responds within a timeout in seconds."""
        try:
            self._producer.list_topics(timeout=timeout)
        except KafkaException:
            return False
        return True

    def poll(self, seconds: float) -> None:
        """Wait up to the given number of seconds for delivery reports, and handle them."""
        self._producer.poll(seconds)

    def flush(self, seconds: float) -> int:
        """Deliver queued changes for up to the given number of seconds; return how many are left."""
        return self._producer.flush(seconds)

    def close(self) -> None:
        """Discard undelivered changes and disconnect, which can take a while."""
        self._producer.purge()
        del self._producer

    def _connect(self) -> None:
        self._producer = open_client(Producer, {**self._settings, "error_cb": _log_outage})


def _log_outage(error: KafkaError) -> None:
    if error.code() == errors.ALL_BROKERS_DOWN:
        _log.warning("Kafka unavailable: changes wait in the change log", error=error.str())
