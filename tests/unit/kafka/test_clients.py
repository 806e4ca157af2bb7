"""Opening Kafka clients."""

from __future__ import annotations

import pytest
from confluent_kafka import Consumer, Producer

from cachesync.errors import KafkaUnavailableError, SettingsError
from cachesync.kafka.clients import open_client


def test_a_missing_setting_is_a_settings_error() -> None:
    with pytest.raises(SettingsError, match=r"Kafka client settings: .*group\.id"):
        open_client(Consumer, {"bootstrap.servers": "127.0.0.1:1"})


def test_a_setting_that_librdkafka_rejects_is_an_error_of_this_library() -> None:
    with pytest.raises(KafkaUnavailableError, match=r"no\.such"):
        open_client(Producer, {"no.such.setting": "1"})


@pytest.mark.parametrize(
    "settings",
    [
        {"group.id": None},
        {"group.id": ""},
        {"group.id": " "},
        {"group.id": "\ud800"},
        {"bootstrap.servers": None},
        {"bootstrap.servers": ""},
        {"session.timeout.ms": None},
        {"max.poll.interval.ms": "300s"},
        {"socket.timeout.ms": "0x2710"},
    ],
)
def test_a_setting_that_would_abort_the_process_or_reach_no_broker_is_a_settings_error(
    settings: dict[str, str | None],
) -> None:
    (name,) = settings
    with pytest.raises(SettingsError, match=rf"Kafka client settings: {name}"):
        open_client(Consumer, {"bootstrap.servers": "127.0.0.1:1", "group.id": "g", **settings})
