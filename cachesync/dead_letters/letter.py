"""The format of dead letters: messages that could not be applied, with everything needed to retry them."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import TYPE_CHECKING, Any, Final, Self

from confluent_kafka import TIMESTAMP_NOT_AVAILABLE

from cachesync.backoff import Backoff
from cachesync.entity import TOPIC_PREFIX
from cachesync.kafka.event import decode, headers_of, time_of, without_value
from cachesync.kafka.topics import DEAD_LETTERS, PARKING_LOT

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confluent_kafka import Message

    from cachesync.change import Change
    from cachesync.kafka.event import Headers

_PREFIX: Final = "dead-letter-"
# The first of the headers that a letter adds. The last header of this name counts: a message that was itself
# a letter may contain headers with these names.
_FIRST_HEADER: Final = _PREFIX + "service"
_ORIGINAL_TIMESTAMP: Final = "original-timestamp"
_FIELDS: Final = frozenset(
    {
        "service",
        "original-topic",
        "original-partition",
        "original-offset",
        _ORIGINAL_TIMESTAMP,
        "original-group",
        "stage",
        "error",
        "attempt",
        "maximum",
        "first-failed-at",
        "last-failed-at",
        "not-before",
    }
)
_MAX_FIELD_LENGTH: Final = 1000
_MAX_TIMESTAMP_DIGITS: Final = 19
# As in Kafka itself.
_MAX_TOPIC_LENGTH: Final = 249
_BACKOFF: Final = Backoff(first=30, longest=3600, jitter=1)


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """When a letter is retried, and when it is parked.

    Attributes:
        max_attempts: the number of failures, including the first, after which a letter is parked.
        backoff: the delay after each failure; full jitter spreads out letters that failed together.
    """

    max_attempts: int = 5
    backoff: Backoff = _BACKOFF

    def next_attempt(self, now: datetime, failures: int) -> datetime:
        """Return when a letter is due again.

        Args:
            now: the time of the last failure.
            failures: how many times the message has failed so far.
        """
        return now + timedelta(seconds=self.backoff.delay(failures))


DEFAULT_POLICY: Final = RetryPolicy()
"""Up to 30 s after the first failure, doubling up to an hour; the fifth failure parks the letter."""


class Stage(StrEnum):
    """The step at which a message failed.

    Attributes:
        DECODE: the message is not a change.
        ROW: the row could not be read.
        CACHE: the Redis login may not access the slot.
    """

    DECODE = "decode"
    ROW = "row"
    CACHE = "cache"


@dataclass(frozen=True, slots=True)
class LetterId:
    """Identifies a letter by its position in Kafka.

    Attributes:
        topic: the dead-letter topic or the parking lot.
        partition: the partition of the topic.
        offset: the offset in the partition.
        sent_at: when the letter was sent, because offsets start over if the topic is recreated.
    """

    topic: str
    partition: int
    offset: int
    sent_at: datetime

    def __str__(self) -> str:
        """Return the name that commands use, such as `parking-lot:0:17`."""
        return f"{self.topic.removeprefix(TOPIC_PREFIX)}:{self.partition}:{self.offset}"


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter as read from its topic.

    Attributes:
        id: the letter's position in Kafka.
        key, value, headers: those of the failed message, unchanged.
        fields: the headers that the letter adds, without their prefix.
        service: the service whose cache the message was meant for.
        original_topic, original_partition, original_offset: the position of the failed message.
        stage, error: the step at which the message failed most recently, and the reason.
        attempt: how many times it has failed.
        max_attempts: the number of failures after which it is parked.
        first_failed_at, last_failed_at: the time of the first and of the most recent failure.
        not_before: when it is due to be retried.
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
    max_attempts: int
    first_failed_at: datetime
    last_failed_at: datetime
    not_before: datetime

    @classmethod
    def from_message(cls, message: Message) -> Self:
        """Parse a message of the dead-letter topic or the parking lot.

        A message without the headers of a letter, sent there by another program, becomes a letter that cannot
        be decoded, so that it is parked as well.
        """
        headers = headers_of(message)
        first = _first_own(headers)
        fields = {
            field: value.decode(errors="replace")[:_MAX_FIELD_LENGTH]
            for name, value in headers[first:]
            if isinstance(value, bytes) and (field := name.removeprefix(_PREFIX)) in _FIELDS
        }
        letter_id = _id_of(message)
        try:
            parsed = _parsed(fields)
        except (KeyError, ValueError, OverflowError) as error:
            first = len(headers)
            missing = isinstance(error, KeyError)
            problem = f"header {_PREFIX}{error.args[0]} is missing" if missing else f"invalid header: {error}"
            reason = f"not a dead letter: {problem}"
            fields = first_fields(message, "", "", Stage.DECODE, reason, letter_id.sent_at, DEFAULT_POLICY)
            parsed = _parsed(fields)
        return cls(letter_id, message.key(), message.value(), headers[:first], fields, **parsed)

    @property
    def entity(self) -> str:
        """The name of the message's entity."""
        return self.original_topic.removeprefix(TOPIC_PREFIX)

    def change(self) -> Change:
        """Decode the message.

        Raises:
            UndecodableError: the message is not a change.
        """
        sent_at = _milliseconds(self.fields.get(_ORIGINAL_TIMESTAMP, ""))
        return decode(self.entity, self.key, self.value, self.headers, sent_at)

    def due(self, now: datetime) -> bool:
        """Return whether the letter is due; one that cannot be decoded is only parked and always due."""
        return self.stage is Stage.DECODE or self.not_before <= now

    def moved(self, topic: str) -> Outgoing:
        """Return the message that moves the letter to another topic unchanged."""
        return topic, self.key, self.value, [*self.headers, *encoded(self.fields)]

    def failed_again(self, stage: Stage, error: str, now: datetime, policy: RetryPolicy) -> Outgoing:
        """Return the message that replaces the letter after another failure.

        Its topic is the parking lot if that was the last attempt, and otherwise the dead-letter topic.

        Args:
            stage: the step at which the retry failed.
            error: why it failed.
            now: when it failed.
            policy: determines when the letter is due again; the number of attempts is the letter's own.
        """
        attempt = self.attempt + 1
        fields = {
            **self.fields,
            "stage": stage.value,
            "error": error[:_MAX_FIELD_LENGTH],
            "attempt": str(attempt),
            "last-failed-at": now.isoformat(),
            "not-before": policy.next_attempt(now, attempt).isoformat(),
        }
        topic = DEAD_LETTERS if attempt < self.max_attempts else PARKING_LOT
        return topic, self.key, self.value, [*self.headers, *encoded(fields)]


Outgoing = tuple[str, bytes | None, bytes | None, "Headers"]
"""A message to send: topic, key, value and headers."""


def first_fields(  # noqa: PLR0917 - one parameter per header
    message: Message, service: str, group: str, stage: Stage, error: str, now: datetime, policy: RetryPolicy
) -> dict[str, str]:
    """Return the fields of the letter that a message becomes when it fails for the first time.

    Args:
        message: the failed message.
        service: the service whose cache the message was meant for.
        group: the consumer group of the service's cache.
        stage: the step at which the message failed.
        error: why it failed.
        now: when it failed.
        policy: determines when the letter is due, and how many times it is retried.
    """
    kind, milliseconds = message.timestamp()
    return {
        "service": service,
        "original-topic": str(message.topic()),
        "original-partition": str(message.partition()),
        "original-offset": str(message.offset()),
        _ORIGINAL_TIMESTAMP: "" if kind == TIMESTAMP_NOT_AVAILABLE else str(milliseconds),
        "original-group": group,
        "stage": stage.value,
        "error": error[:_MAX_FIELD_LENGTH],
        "attempt": "1",
        "maximum": str(policy.max_attempts),
        "first-failed-at": now.isoformat(),
        "last-failed-at": now.isoformat(),
        "not-before": policy.next_attempt(now, 1).isoformat(),
    }


def smaller(outgoing: Outgoing) -> Outgoing | None:
    """Return a smaller message in place of one that is too large; None if nothing can be left out.

    The value is left out first, because a retry reads the row again anyway; then the key and the headers of
    the failed message. What remains tells where that message is.
    """
    topic, key, value, headers = outgoing
    first = _first_own(headers)
    own = headers[first:]
    if value is not None:
        sent_at = dict(own).get(_PREFIX + _ORIGINAL_TIMESTAMP)
        milliseconds = _milliseconds(sent_at.decode()) if isinstance(sent_at, bytes) else 0
        return topic, key, None, [*without_value(value, headers[:first], milliseconds), *own]
    return None if key is None and own == headers else (topic, None, None, own)


def encoded(fields: Mapping[str, str]) -> Headers:
    """Return a letter's fields as Kafka headers."""
    return [(_PREFIX + name, value.encode()) for name, value in fields.items()]


def _first_own(headers: Headers) -> int:
    """Return the position of the first header that a letter adds to those of its message."""
    names = [name for name, _ in headers]
    return len(names) - 1 - names[::-1].index(_FIRST_HEADER) if _FIRST_HEADER in names else len(names)


def _id_of(message: Message) -> LetterId:
    topic, partition, offset = message.topic(), message.partition(), message.offset()
    assert topic is not None and partition is not None and offset is not None  # noqa: S101, PT018 - only an error message has none
    return LetterId(topic, partition, offset, time_of(message.timestamp()[1]))


def _parsed(fields: Mapping[str, str]) -> dict[str, Any]:
    """Parse a letter's fields into the attributes of a `Letter`.

    Raises:
        KeyError: a field is missing.
        ValueError, OverflowError: a field is malformed.
    """
    return {
        "service": fields["service"],
        "original_topic": _topic_name(fields["original-topic"]),
        "original_partition": _number(fields["original-partition"], 31),
        "original_offset": _number(fields["original-offset"], 63),
        "stage": Stage(fields["stage"]),
        "error": fields["error"],
        "attempt": _number(fields["attempt"], 30),
        "max_attempts": _number(fields["maximum"], 30),
        "first_failed_at": _time(fields["first-failed-at"]),
        "last_failed_at": _time(fields["last-failed-at"]),
        "not_before": _time(fields["not-before"]),
    }


def _topic_name(text: str) -> str:
    if len(text) > _MAX_TOPIC_LENGTH:
        message = f"a topic's name has up to {_MAX_TOPIC_LENGTH} characters"
        raise ValueError(message)
    return text


def _number(text: str, bits: int) -> int:
    number = int(text)
    if number.bit_length() > bits:
        message = f"{text} does not fit in {bits} bits"
        raise ValueError(message)
    return number


def _milliseconds(text: str) -> int:
    return int(text) if text.isdecimal() and len(text) <= _MAX_TIMESTAMP_DIGITS else 0


def _time(text: str) -> datetime:
    return datetime.fromisoformat(text).astimezone(UTC)
