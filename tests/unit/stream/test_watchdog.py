"""When the watchdog gives up on a consumer that gets no response."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import KafkaError, KafkaException, TopicPartition

from cachesync.errors import StreamError
from cachesync.kafka.clients import rebalance_seconds, recovery_seconds
from cachesync.kafka.errors import TIMED_OUT
from cachesync.stream import watchdog
from cachesync.stream.consumer_lag import ConsumerLag
from cachesync.stream.watchdog import Watchdog

if TYPE_CHECKING:
    from confluent_kafka import Consumer

Look = Callable[[float], None]

LOOK_SECONDS = 5
TOPIC = "cachesync.student"


class Kafka:
    """Responds to no consumer, to others, or to all; its clock only moves when the watchdog looks.

    Their group has committed `done` of the messages up to `end`.
    """

    now = 1000.0
    responds = True
    responds_to_others = True
    coordinator_responds = True
    assigned = False
    done = end = 10

    def connect(self) -> Any:
        return self._consumer(lambda: self.responds_to_others, lambda: True)

    def watched(self) -> Any:
        return self._consumer(lambda: self.responds, lambda: self.coordinator_responds)

    def _consumer(self, is_answered: Callable[[], bool], coordinator_responds: Callable[[], bool]) -> Any:
        def respond(*_: object, **__: object) -> Any:
            if not is_answered():
                raise KafkaException(KafkaError(TIMED_OUT))
            return SimpleNamespace(topics={TOPIC: SimpleNamespace(partitions=[0])})

        def committed(*_: object, **__: object) -> list[TopicPartition]:
            respond()
            if not coordinator_responds():
                raise KafkaException(KafkaError(TIMED_OUT))
            return [TopicPartition(TOPIC, 0, self.done)]

        def ends(*_: object, **__: object) -> list[TopicPartition]:
            respond()
            return [TopicPartition(TOPIC, 0, self.end)]

        def poll(_: float) -> Any:
            return SimpleNamespace(error=lambda: None) if is_answered() else None

        return SimpleNamespace(
            assign=lambda _: None,
            assignment=lambda: [TopicPartition(TOPIC, 0)] if self.assigned else [],
            committed=committed,
            get_watermark_offsets=lambda *_, **__: (0, -1),
            list_topics=respond,
            memberid=lambda: "member",
            offsets_for_times=ends,
            poll=poll,
            position=lambda _: [TopicPartition(TOPIC, 0, self.done)],
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
    watching = Watchdog(consumer, {}, [TOPIC], kafka.connect, lambda: True, lag=ConsumerLag("sb"))

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


def test_coordinator_may_take_as_long_as_a_rebalance_to_respond(kafka: Kafka, look: Look) -> None:
    kafka.coordinator_responds = False
    look(LOOK_SECONDS)
    for _ in range(4):
        look(rebalance_seconds({}) / 4)
        # Neither adds to the other.
        kafka.responds = False
        look(LOOK_SECONDS)
        kafka.responds = True
    kafka.coordinator_responds = True
    look(300)


def test_consumer_is_given_up_if_its_coordinator_responds_only_to_others(kafka: Kafka, look: Look) -> None:
    kafka.coordinator_responds = False
    with pytest.raises(StreamError, match="although Kafka responds to others"):
        look(60 + rebalance_seconds({}) + recovery_seconds({}) + 3 * LOOK_SECONDS)


def test_consumer_without_progress_is_given_up_although_it_gets_a_response_now_and_then(
    kafka: Kafka, look: Look
) -> None:
    kafka.end += 1

    def take_turns() -> None:
        until = kafka.now + 60 + recovery_seconds({}) + 5 * LOOK_SECONDS
        while kafka.now < until:
            kafka.responds = not kafka.responds
            look(LOOK_SECONDS)

    with pytest.raises(StreamError, match="no progress"):
        take_turns()


@pytest.mark.parametrize("outage_seconds", [30, 60, 65, 90, 600])
def test_messages_may_wait_for_a_consumer_that_connects_later_than_others_after_an_outage(
    kafka: Kafka, look: Look, outage_seconds: float
) -> None:
    kafka.end += 1
    look(LOOK_SECONDS)
    kafka.responds = kafka.responds_to_others = False
    look(outage_seconds)
    kafka.responds_to_others = True
    look(20)
    kafka.responds = True
    look(recovery_seconds({}) - 20)
    kafka.done = kafka.end
    look(300)


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


def test_each_outage_counts_by_itself(kafka: Kafka, look: Look) -> None:
    kafka.responds = kafka.responds_to_others = False
    look(60)
    kafka.responds_to_others = True
    look(30)
    # Connected, but not yet to the coordinator, when the next outage begins.
    kafka.responds = True
    kafka.coordinator_responds = False
    look(10)
    kafka.responds = kafka.responds_to_others = False
    look(60)
    kafka.responds_to_others = True
    look(recovery_seconds({}))
    kafka.responds = kafka.coordinator_responds = True
    look(300)


def test_rebalance_after_an_outage_may_take_its_time(kafka: Kafka, look: Look) -> None:
    kafka.coordinator_responds = False
    look(LOOK_SECONDS)
    kafka.responds = kafka.responds_to_others = False
    look(600)
    kafka.responds = kafka.responds_to_others = True
    look(rebalance_seconds({}))
    kafka.coordinator_responds = True
    look(300)


def test_rebalance_may_follow_another(kafka: Kafka, look: Look) -> None:
    for _ in range(2):
        kafka.coordinator_responds = False
        look(250)
        kafka.assigned = not kafka.assigned
        look(LOOK_SECONDS)


def test_consumer_is_given_up_if_its_brokers_and_its_coordinator_take_turns(kafka: Kafka, look: Look) -> None:
    kafka.coordinator_responds = False

    def take_turns() -> None:
        for _ in range(20):
            kafka.responds = not kafka.responds
            look(45)

    with pytest.raises(StreamError, match="although Kafka responds to others"):
        take_turns()
