"""Messages that could not be applied, kept with all that is needed to try again."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE

from cachesync.backoff import Backoff
from cachesync.entity import TOPIC_PREFIX
from cachesync.kafka.event import decode, headers_of
from cachesync.kafka.topics import DEAD_LETTERS, PARKING_LOT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confluent_kafka import Message

    from cachesync.change import Change
    from cachesync.kafka.event import Headers

_PREFIX: Final = "dead-letter-"
# The first header of a letter's own; a message that was a letter before may bring others of these names.
_FIRST: Final = _PREFIX + "service"
_LONGEST_ERROR: Final = 1000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)


_BACKOFF: Final = Backoff(first=30, longest=3600, jitter=1)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a letter is tried, and when.

    Attributes:
        max_attempts: the number of failures, the first included, after which a letter is parked.
        backoff: the delay after each failure; full jitter spreads letters that failed together.
    """

    max_attempts: int = 5
    backoff: Backoff = _BACKOFF

    def next_attempt(self, now: datetime, failures: int) -> datetime:
        """Return when a letter is due again that has failed the given number of times."""
        return now + timedelta(seconds=self.backoff.delay(failures))


DEFAULT_POLICY: Final = RetryPolicy()


class Stage(StrEnum):
    """Where a message failed."""

    DECODE = "decode"
    ROW = "row"
    CACHE = "cache"


@dataclass(frozen=True, slots=True)
class LetterId:
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
        id: identifies it.
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

    id: LetterId
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
        letter_id = _id_of(message)
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
                letter_id.sent_at,
                DEFAULT_POLICY,
            )
            parsed = _parsed(fields)
        return cls(letter_id, message.key(), message.value(), headers[:first], fields, **parsed)

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
        return topic, self.key, self.value, [*self.headers, *encoded(self.fields)]

    def failed_again(self, stage: Stage, error: str, now: datetime, policy: RetryPolicy) -> Outgoing:
        """The message that follows the letter after another failure: another letter, or a parked one."""
        attempt = self.attempt + 1
        fields = {
            **self.fields,
            "stage": stage.value,
            "error": error[:_LONGEST_ERROR],
            "attempt": str(attempt),
            "last-failed-at": now.isoformat(),
            "not-before": policy.next_attempt(now, attempt).isoformat(),
        }
        topic = DEAD_LETTERS if attempt < self.maximum else PARKING_LOT
        return topic, self.key, self.value, [*self.headers, *encoded(fields)]


Outgoing = tuple[str, bytes | None, bytes | None, "Headers"]
"""A message to be sent: topic, key, value, headers."""


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
        "maximum": str(policy.max_attempts),
        "first-failed-at": now.isoformat(),
        "last-failed-at": now.isoformat(),
        "not-before": policy.next_attempt(now, 1).isoformat(),
    }


def encoded(fields: Mapping[str, str]) -> Headers:
    """A letter's own fields as Kafka headers."""
    return [(_PREFIX + name, value.encode()) for name, value in fields.items()]


def _id_of(message: Message) -> LetterId:
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None and partition is not None and offset is not None  # noqa: S101, PT018 - no error
    return LetterId(topic, partition, offset, _EPOCH + timedelta(milliseconds=message.timestamp()[1]))


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
