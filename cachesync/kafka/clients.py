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
# librdkafka's defaults, in milliseconds.
_DEFAULTS: Final = {
    "fetch.wait.max.ms": 500,
    "max.poll.interval.ms": 300_000,
    "reconnect.backoff.max.ms": 10_000,
    "socket.connection.setup.timeout.ms": 30_000,
    "socket.timeout.ms": 60_000,
}


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
        SettingsError: a setting is null or not valid Unicode, the brokers or the group are empty, or a time
            that this library needs to know is not an integer.
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
        # The client would read "30s" as 30.
        if name in _DEFAULTS and not _is_integer(value):
            message = f"Kafka client settings: {name} is not an integer"
            raise SettingsError(message)


def recovery_seconds(settings: Mapping[str, Any]) -> float:
    """Return how long after the brokers respond again a client can still get no response.

    It can wait for a response on a dead connection, or for a connection that is never set up; then it pauses
    before it connects again.

    Source: https://github.com/confluentinc/librdkafka/blob/v2.16.0/CONFIGURATION.md

    Args:
        settings: librdkafka's settings.
    """
    response = _milliseconds(settings, "socket.timeout.ms") + _milliseconds(settings, "fetch.wait.max.ms")
    connection = _milliseconds(settings, "socket.connection.setup.timeout.ms")
    return (max(response, connection) + _milliseconds(settings, "reconnect.backoff.max.ms")) / 1000


def rebalance_seconds(settings: Mapping[str, Any]) -> float:
    """Return how long a rebalance can take, while the coordinator waits for all members of the group to join.

    Until then, it also holds back its responses to the other requests on a joining member's connection.

    Source: https://kafka.apache.org/protocol.html#The_Messages_JoinGroup (`rebalance_timeout_ms`)

    Args:
        settings: librdkafka's settings, the same for all members.
    """
    return _milliseconds(settings, "max.poll.interval.ms") / 1000


def _milliseconds(settings: Mapping[str, Any], name: str) -> int:
    return int(settings.get(name, _DEFAULTS[name]))


def _is_integer(value: object) -> bool:
    try:
        int(str(value))
    except ValueError:
        return False
    return True


@contextmanager
def _require_settings() -> Iterator[None]:
    try:
        yield
    except (TypeError, ValueError) as error:
        message = f"Kafka client settings: {error}"
        raise SettingsError(message) from error
