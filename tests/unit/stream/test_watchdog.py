"""When the watchdog gives up on a consumer that gets no response."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import KafkaError, KafkaException

from cachesync.errors import StreamError
from cachesync.kafka.clients import recovery_seconds
from cachesync.kafka.errors import TIMED_OUT
from cachesync.stream import watchdog
from cachesync.stream.watchdog import Watchdog

if TYPE_CHECKING:
    from confluent_kafka import Consumer

Look = Callable[[float], None]

LOOK_SECONDS = 5


class Kafka:
    """Responds to no consumer, to others, or to all; its clock only moves when the watchdog looks."""

    now = 1000.0
    responds = True
    responds_to_others = True

    def connect(self) -> Any:
        return self._consumer(lambda: self.responds_to_others)

    def watched(self) -> Any:
        return self._consumer(lambda: self.responds)

    def _consumer(self, is_answered: Callable[[], bool]) -> Any:
        def respond(*_: object, **__: object) -> Any:
            if not is_answered():
                raise KafkaException(KafkaError(TIMED_OUT))
            return SimpleNamespace(topics={})

        def offsets(*_: object, **__: object) -> list[object]:
            respond()
            return []

        return SimpleNamespace(
            assignment=list,
            list_topics=respond,
            committed=offsets,
            offsets_for_times=offsets,
            close=lambda: None,
        )


@pytest.fixture
def kafka(monkeypatch: pytest.MonkeyPatch) -> Kafka:
    kafka = Kafka()
    monkeypatch.setattr(watchdog, "time", SimpleNamespace(monotonic=lambda: kafka.now))
    return kafka


@pytest.fixture
def look(kafka: Kafka) -> Look:
    """Lets the watchdog look at its consumer for the given number of seconds."""
    consumer: Consumer = kafka.watched()
    watching = Watchdog(consumer, {}, ["cachesync.student"], kafka.connect, lambda: True)

    def look(seconds: float) -> None:
        until = kafka.now + seconds
        while kafka.now < until:
            kafka.now += LOOK_SECONDS
            watching.look()

    return look


@pytest.mark.parametrize("outage_seconds", [30, 60, 65, 90, 600])
def test_consumer_may_connect_later_than_others_after_an_outage(
    kafka: Kafka, look: Look, outage_seconds: float
) -> None:
    for _ in range(2):
        kafka.responds = kafka.responds_to_others = False
        look(outage_seconds)
        kafka.responds_to_others = True
        look(recovery_seconds({}))
        kafka.responds = True
        look(300)


def test_consumer_is_given_up_if_only_others_get_a_response(kafka: Kafka, look: Look) -> None:
    kafka.responds = False
    with pytest.raises(
        StreamError, match=r"no response to the consumer .* although Kafka responds to others"
    ):
        look(60 + recovery_seconds({}) + 3 * LOOK_SECONDS)


def test_others_must_get_responses_all_the_time(kafka: Kafka, look: Look) -> None:
    kafka.responds = False
    look(65)
    for _ in range(20):
        kafka.responds_to_others = True
        look(recovery_seconds({}) - LOOK_SECONDS)
        kafka.responds_to_others = False
        look(LOOK_SECONDS)


def test_what_was_before_a_long_pause_does_not_count(kafka: Kafka, look: Look) -> None:
    kafka.responds = False
    look(65)
    kafka.now += 3600
    look(60)


@pytest.mark.parametrize(
    ("settings", "seconds"),
    [
        ({}, 70.5),
        ({"reconnect.backoff.max.ms": "2000", "socket.timeout.ms": 10_000}, 32),
        ({"socket.timeout.ms": 40_000, "fetch.wait.max.ms": 10}, 50.01),
    ],
)
def test_time_to_recover_follows_from_the_settings(settings: dict[str, Any], seconds: float) -> None:
    assert recovery_seconds(settings) == seconds
