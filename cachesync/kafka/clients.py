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

_NOT_EMPTY: Final = frozenset({"bootstrap.servers", "group.id"})
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
    check_settings(settings)
    with translate_kafka_errors(), _require_settings():
        # Below level 2, librdkafka logs what its calls raise, and every failed connection attempt.
        return kind({"log_level": 2, **settings}, logger=_LOG)


def check_settings(settings: Mapping[str, Any]) -> None:
    """Reject settings with which the client would abort the process, or never find a broker.

    Args:
        settings: librdkafka's settings.

    Raises:
        SettingsError: a setting is null or not valid Unicode, or the brokers or the group are empty.
    """
    for name, value in settings.items():
        if value is None or (name in _NOT_EMPTY and not str(value).strip()):
            message = f"Kafka client settings: {name} has no value"
            raise SettingsError(message)
        try:
            str(value).encode()
        except UnicodeEncodeError as error:
            message = f"Kafka client settings: {name} is not valid Unicode"
            raise SettingsError(message) from error


@contextmanager
def _require_settings() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        message = f"Kafka client settings: {error}"
        raise SettingsError(message) from error
