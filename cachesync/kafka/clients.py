"""Opening Kafka clients."""

from __future__ import annotations

import logging
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final, TypeVar

from cachesync.errors import SettingsError
from cachesync.kafka.errors import translate_kafka_errors

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

_Client = TypeVar("_Client")

_LOG: Final = logging.getLogger("cachesync.kafka")


def open_client(kind: Callable[..., _Client], settings: Mapping[str, Any]) -> _Client:
    """Open a producer, a consumer or an administrative client; it connects in the background.

    Args:
        kind: the client's class in confluent-kafka.
        settings: librdkafka's settings.

    Raises:
        SettingsError: a setting that this kind of client needs is missing.
        KafkaUnavailableError: librdkafka rejected the settings.
    """
    with translate_kafka_errors(), _require_settings():
        # Below level 2, librdkafka logs what its calls raise, and every failed connection attempt.
        return kind({"log_level": 2, **settings}, logger=_LOG)


@contextmanager
def _require_settings() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        message = f"Kafka client settings: {error}"
        raise SettingsError(message) from error
