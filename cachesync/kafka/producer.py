"""Sending changes to Kafka."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

import structlog
from confluent_kafka import KafkaError, KafkaException, Producer

from cachesync.kafka import errors
from cachesync.kafka.event import encode_headers, message_key

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cachesync.change import Change

_log = structlog.get_logger(__name__)


def producer_settings(kafka: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a producer of changes, from those that lead to the brokers."""
    return {
        "enable.idempotence": True,
        # Batches of one message cost the broker more than these milliseconds cost the reader.
        "linger.ms": 5,
        "message.timeout.ms": 30_000,
        "queue.buffering.max.messages": 100_000,
        # Every attempt to connect that fails would be a line in the log; `_log_outage` says it once.
        "log_level": 2,
        "reconnect.backoff.ms": 200,
        "reconnect.backoff.max.ms": 2000,
        **kafka,
    }


class Sender:
    """A producer of changes, replaced when it failed for good.

    Args:
        settings: the producer's.
    """

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._settings = settings
        self._connect()

    def send(self, topic: str, change: Change, settled: Callable[[KafkaError | None], None]) -> None:
        """Send a change on its way.

        Args:
            topic: the change's.
            change: what to send.
            settled: called once, by this call or by one of the producer's `poll` and `flush`, with what
                kept the change from being delivered, or None.
        """
        try:
            self.producer.produce(
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
                # An idempotent producer that lost track of its sequence says so and stops for good.
                _log.error("the producer failed and is replaced", error=reason.str())
                self._connect()
            settled(reason)

    def answers(self, timeout: float) -> bool:
        """Whether a broker answers within so many seconds."""
        try:
            self.producer.list_topics(timeout=timeout)
        except KafkaException:
            return False
        return True

    def close(self) -> None:
        """Give up what is under way, and disconnect here and now: it may take a while."""
        self.producer.purge()
        del self.producer

    def _connect(self) -> None:
        with errors.translate_kafka_errors():
            self.producer = Producer(
                {**self._settings, "error_cb": _log_outage}, logger=logging.getLogger("cachesync.kafka")
            )


def _log_outage(error: KafkaError) -> None:
    if error.code() == errors.ALL_BROKERS_DOWN:
        _log.warning("no broker answers; changes wait in the change log", error=error.str())
