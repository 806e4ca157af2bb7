"""Messages that could not be applied, kept with all that is needed to try again."""

from __future__ import annotations

import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE, KafkaException

from cachesync.entity import TOPIC_PREFIX
from cachesync.event import decode, headers_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from confluent_kafka import KafkaError, Message, Producer

    from cachesync.change import Change
    from cachesync.event import Headers

TOPIC: Final = "cachesync.dead-letters"
PARKING_LOT: Final = "cachesync.parking-lot"
_PREFIX: Final = "dead-letter-"
# The first header of a letter's own; a message that was a letter before may bring others of these names.
_FIRST: Final = _PREFIX + "service"
_FLUSH_SECONDS: Final = 10.0
_LONGEST_ERROR: Final = 1000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a letter is tried, and when.

    Attributes:
        most_attempts: at how many failures a letter is parked, the first one included.
        first_backoff: the longest wait after the first failure; it doubles with each one.
        longest_backoff: the longest wait of all.
    """

    most_attempts: int = 5
    first_backoff: timedelta = timedelta(seconds=30)
    longest_backoff: timedelta = timedelta(hours=1)

    def backoff(self, attempt: int) -> timedelta:
        """How long to wait after so many failures: full jitter spreads what failed together.

        Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/
        """
        # No more doublings than get there: the number of failures comes from a header.
        doublings = max(0, min(attempt - 1, 20))
        longest = min(self.longest_backoff, self.first_backoff * (1 << doublings))
        return random.random() * longest  # noqa: S311 - no secret


DEFAULT_POLICY: Final = RetryPolicy()


class Stage(StrEnum):
    """Where a message failed."""

    DECODE = "decode"
    ROW = "row"
    CACHE = "cache"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a letter is, which tells it from all others.

    Attributes:
        topic: the topic of dead letters, or the parking lot.
        partition: the partition of it.
        offset: the offset in that.
        sent_at: when it was sent; offsets begin anew where a topic is made anew.
    """

    topic: str
    partition: int
    offset: int
    sent_at: datetime

    def __str__(self) -> str:
        """As commands call it, such as `parking-lot:0:17`."""
        return f"{self.topic.removeprefix(TOPIC_PREFIX)}:{self.partition}:{self.offset}"


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter as it was read from its topic.

    Attributes:
        place: where it is.
        key, value, headers: those of the message that failed, untouched.
        fields: its own headers, without their prefix.
        service: the service whose cache the message was meant for.
        original_topic, original_partition, original_offset: where the message was.
        stage, error: why it failed the last time.
        attempt: how often it has failed.
        maximum: at how many failures it is parked.
        first_failed_at, last_failed_at: when.
        not_before: when it is to be tried again.
    """

    place: Place
    key: bytes | None
    value: bytes | None
    headers: Headers
    fields: Mapping[str, str]
    service: str
    original_topic: str
    original_partition: int
    original_offset: int
    stage: Stage
    error: str
    attempt: int
    maximum: int
    first_failed_at: datetime
    last_failed_at: datetime
    not_before: datetime

    @classmethod
    def of(cls, message: Message) -> Self:
        """The letter that a message of one of the two topics is.

        What somebody else has put there is a letter that cannot be decoded, so that it, too, is parked.
        """
        headers = headers_of(message)
        names = [name for name, _ in headers]
        first = len(names) - 1 - names[::-1].index(_FIRST) if _FIRST in names else len(names)
        fields = {
            name.removeprefix(_PREFIX): value.decode(errors="replace")
            for name, value in headers[first:]
            if isinstance(value, bytes)
        }
        place = _place(message)
        try:
            parsed = _parsed(fields)
        except (KeyError, ValueError, OverflowError) as error:
            first = len(names)
            fields = first_fields(
                message,
                "",
                "",
                Stage.DECODE,
                f"no dead letter: header {error}",
                place.sent_at,
                DEFAULT_POLICY,
            )
            parsed = _parsed(fields)
        return cls(place, message.key(), message.value(), headers[:first], fields, **parsed)

    @property
    def entity(self) -> str:
        """The name of the entity that the message was about."""
        return self.original_topic.removeprefix(TOPIC_PREFIX)

    def change(self) -> Change:
        """The change that the message carries.

        Raises:
            UndecodableError: it carries none.
        """
        return decode(self.entity, self.key, self.value, self.headers)

    def due(self, now: datetime) -> bool:
        """Whether it is time to do something about it; an undecodable one is not tried, so need not wait."""
        return self.stage is Stage.DECODE or self.not_before <= now

    def moved(self, topic: str) -> Outgoing:
        """The message that takes the letter to another topic as it is."""
        return topic, self.key, self.value, [*self.headers, *_encoded(self.fields)]

    def failed_again(self, stage: Stage, error: str, now: datetime, policy: RetryPolicy) -> Outgoing:
        """The message that follows the letter after another failure: another letter, or a parked one."""
        attempt = self.attempt + 1
        fields = {
            **self.fields,
            "stage": stage.value,
            "error": error[:_LONGEST_ERROR],
            "attempt": str(attempt),
            "last-failed-at": now.isoformat(),
            "not-before": (now + policy.backoff(attempt)).isoformat(),
        }
        topic = TOPIC if attempt < self.maximum else PARKING_LOT
        return topic, self.key, self.value, [*self.headers, *_encoded(fields)]


Outgoing = tuple[str, bytes | None, bytes | None, "Headers"]
"""A message to be sent: topic, key, value, headers."""


class DeadLetters:
    """Sends messages to the dead-letter topic, their bytes and headers untouched, for one consumer group.

    Args:
        connect: makes the producer; called when the first letter is sent.
        service: the service whose cache the message was meant for.
        group: its consumer group.
        policy: how often a letter is to be tried.
    """

    def __init__(
        self,
        connect: Callable[[], Producer],
        service: str,
        group: str,
        policy: RetryPolicy = DEFAULT_POLICY,
    ) -> None:
        self._connect = connect
        self._producer: Producer | None = None
        self._service = service
        self._group = group
        self._policy = policy

    def send(self, letters: list[tuple[Message, Stage, str]]) -> None:
        """Send messages, each with the stage and the error that it failed with, and wait until they are safe.

        Raises:
            KafkaException: the broker did not acknowledge them all.
            TimeoutError: the broker does not answer.
        """
        if not letters:
            return
        if self._producer is None:
            self._producer = self._connect()
        now = datetime.now(UTC)
        outgoing: list[Outgoing] = []
        for message, stage, error in letters:
            fields = first_fields(message, self._service, self._group, stage, error, now, self._policy)
            headers = [*headers_of(message), *_encoded(fields)]
            outgoing.append((TOPIC, message.key(), message.value(), headers))
        deliver(self._producer, outgoing)


def deliver(producer: Producer, messages: Iterable[Outgoing]) -> None:
    """Send messages, and wait until they are safe.

    Raises:
        KafkaException: the broker did not acknowledge them all.
        TimeoutError: the broker does not answer.
    """
    failures: list[KafkaError] = []

    def delivered(error: KafkaError | None, _: Message) -> None:
        if error is not None:
            failures.append(error)

    for topic, key, value, headers in messages:
        producer.produce(topic, key=key, value=value, headers=headers, on_delivery=delivered)
    left = producer.flush(_FLUSH_SECONDS)
    if failures:
        raise KafkaException(failures[0])
    if left:
        text = f"the broker did not take {left} dead letters within {_FLUSH_SECONDS:.0f} s"
        raise TimeoutError(text)


def first_fields(  # noqa: PLR0917 - each a header
    message: Message, service: str, group: str, stage: Stage, error: str, now: datetime, policy: RetryPolicy
) -> dict[str, str]:
    """The own headers, without their prefix, of the letter that a message becomes at its first failure."""
    kind, milliseconds = message.timestamp()
    return {
        "service": service,
        "original-topic": str(message.topic()),
        "original-partition": str(message.partition()),
        "original-offset": str(message.offset()),
        "original-timestamp": "" if kind == TIMESTAMP_NOT_AVAILABLE else str(milliseconds),
        "original-group": group,
        "stage": stage.value,
        "error": error[:_LONGEST_ERROR],
        "attempt": "1",
        "maximum": str(policy.most_attempts),
        "first-failed-at": now.isoformat(),
        "last-failed-at": now.isoformat(),
        "not-before": (now + policy.backoff(1)).isoformat(),
    }


def _encoded(fields: Mapping[str, str]) -> Headers:
    return [(_PREFIX + name, value.encode()) for name, value in fields.items()]


def _place(message: Message) -> Place:
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None and partition is not None and offset is not None  # noqa: S101, PT018 - no error
    return Place(topic, partition, offset, _EPOCH + timedelta(milliseconds=message.timestamp()[1]))


def _parsed(fields: Mapping[str, str]) -> dict[str, Any]:
    """What a letter's own headers say.

    Raises:
        KeyError: one is missing.
        ValueError, OverflowError: one is malformed.
    """
    return {
        "service": fields["service"],
        "original_topic": fields["original-topic"],
        "original_partition": _number(fields["original-partition"], 31),
        "original_offset": _number(fields["original-offset"], 63),
        "stage": Stage(fields["stage"]),
        "error": fields["error"],
        "attempt": _number(fields["attempt"], 30),
        "maximum": _number(fields["maximum"], 30),
        "first_failed_at": _moment(fields["first-failed-at"]),
        "last_failed_at": _moment(fields["last-failed-at"]),
        "not_before": _moment(fields["not-before"]),
    }


def _number(text: str, bits: int) -> int:
    number = int(text)
    if number.bit_length() > bits:
        message = f"{text} is no number of {bits} bits"
        raise ValueError(message)
    return number


def _moment(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
