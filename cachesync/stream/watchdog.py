"""Detects a consumer that does not work and will not recover by itself."""

from __future__ import annotations

import time
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import TYPE_CHECKING, Any, Final

from confluent_kafka import KafkaException, TopicPartition

from cachesync.errors import StreamError
from cachesync.kafka import errors
from cachesync.kafka.clients import rebalance_seconds, recovery_seconds

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from confluent_kafka import Consumer

    from cachesync.stream.consumer_lag import ConsumerLag

_LOOK_SECONDS: Final = 5.0
_PATIENCE_SECONDS: Final = 60.0
# While other partitions make progress, messages can wait behind those that were fetched from them earlier.
_PATIENCE_AMONG_OTHERS_SECONDS: Final = 600.0
# After such a gap, the process was frozen or the stream was paused, and what was seen before it says nothing.
_MAX_GAP_SECONDS: Final = 30.0
_TIMEOUT_SECONDS: Final = 2.0
# Another consumer must connect first, which on a busy machine alone can take longer than that.
_OTHERS_TIMEOUT_SECONDS: Final = 10.0
_LATEST: Final = -1


class _CoordinatorError(KafkaException):
    """The coordinator of the group did not respond."""


@dataclass(slots=True)
class _Partition:
    """A partition as it was at the last progress in it.

    Attributes:
        done: the offset after the last message that was consumed or, if none was, that the group committed.
        clear_to: the offset before which no message is waiting.
        lagging_since: since when there have been later offsets.
    """

    done: int
    clear_to: int
    lagging_since: float | None = None


class Watchdog:
    """Detects a consumer that is out of its group, makes no progress, or alone gets no response from Kafka.

    Nothing is expected of a consumer while Kafka is unavailable to others as well, while the cache is
    unavailable, or if other members of its group have all partitions and make progress. After an outage, it
    gets the time that a client can need to connect again: if it got no response at some time since it was
    last well, others must have gotten theirs for that long. The coordinator of its group may take as long as
    a rebalance to respond, from the time on when Kafka responds to others.

    Args:
        consumer: the consumer; `look` is called from its thread.
        settings: the consumer's librdkafka settings.
        topics: the topics that it subscribes to.
        connect: opens another consumer with the same settings.
        is_cache_available: returns whether the cache responds.
        lag: is told what is measured.
    """

    def __init__(
        self,
        consumer: Consumer,
        settings: Mapping[str, Any],
        topics: Iterable[str],
        connect: Callable[[], Consumer],
        is_cache_available: Callable[[], bool],
        *,
        lag: ConsumerLag,
    ) -> None:
        self._consumer = consumer
        self._recovery_seconds = recovery_seconds(settings)
        self._rebalance_seconds = rebalance_seconds(settings)
        self._topics = tuple(topics)
        self._connect = connect
        self._is_cache_available = is_cache_available
        self._lag = lag
        self._measured_at = -inf
        self._partitions: dict[tuple[str, int], _Partition] = {}
        self._has_assignment = False
        self._outside_since: float | None = None
        # By the error's class.
        self._unanswered_since: dict[type[KafkaException], float] = {}
        # When others began to get responses without a break, and when they last did, by the class of the
        # error that the consumer got meanwhile.
        self._others_answered: dict[type[KafkaException], tuple[float, float]] = {}
        self._is_suspected = False
        # When the consumer last got no response.
        self._failed_at = -inf
        self._looked_at = time.monotonic()
        self._progressed_at = 0.0

    def look(self) -> None:
        """Look at the consumer if that is due, and give up on it if it has not worked for a minute or more.

        Raises:
            StreamError: the consumer must be replaced; the text gives the reason.
        """
        now = time.monotonic()
        gap = now - self._looked_at
        if gap < _LOOK_SECONDS:
            return
        if gap > _MAX_GAP_SECONDS:
            self._forget()
            self._unanswered_since.clear()
            self._others_answered.clear()
        self._looked_at = now
        self._is_suspected = False
        try:
            self._look(now)
        except KafkaException as error:
            if error.args[0].code() not in errors.MISSING_TOPIC:
                # What was seen before still counts: looks that fail and looks that succeed can take turns.
                self._failed_at = now
                self._require_others_unanswered(now, error)
                return
            self._forget()
        self._unanswered_since.clear()
        if not self._is_suspected:
            self._others_answered.clear()

    def measure(self) -> None:
        """Measure how many messages are waiting, while the stream is paused and nothing is expected of it."""
        now = time.monotonic()
        if now - self._measured_at >= _LOOK_SECONDS:
            with suppress(KafkaException):
                self._measure(now, self._consumer.assignment())

    def _look(self, now: float) -> None:
        assigned = self._consumer.assignment()
        if bool(assigned) != self._has_assignment:
            self._has_assignment = bool(assigned)
            self._forget()
            # Either the coordinator has responded, or another rebalance begins.
            self._unanswered_since.pop(_CoordinatorError, None)
            self._others_answered.pop(_CoordinatorError, None)
        measured = self._measure(now, assigned)
        if measured:
            self._require_group(now)
        for place, offset, end in measured:
            self._require_progress(now, place, offset, end)

    def _measure(self, now: float, assigned: list[TopicPartition]) -> list[tuple[TopicPartition, int, int]]:
        """Return each partition, how far the consumer (unassigned: its group) is in it, and its end."""
        self._measured_at = now
        places = [
            TopicPartition(place.topic, place.partition)
            for place in assigned or self._all_partitions(self._consumer)
        ]
        if not places:
            self._lag.measured({})
            return []
        ends = _ends(self._consumer, places)
        self._unanswered_since.pop(KafkaException, None)
        committed = _committed(self._consumer, places)
        done = self._consumer.position(places) if assigned else committed
        measured = []
        lag = {}
        for place, commit, position, end in zip(places, committed, done, ends, strict=True):
            if end.error is None:
                offset = position.offset if position.offset >= 0 else commit.offset
                first = self._consumer.get_watermark_offsets(place, cached=True)[0] if assigned else 0
                if assigned and offset >= 0:
                    # Messages may have been deleted.
                    offset = max(offset, first)
                measured.append((place, offset, end.offset))
                lag[place.topic, place.partition] = max(offset, first), end.offset
        self._lag.measured(lag if assigned else {})
        return measured

    def _require_group(self, now: float) -> None:
        """Raise a StreamError if the consumer has been neither in a group nor joining one for too long."""
        if self._has_assignment or self._consumer.memberid():
            self._outside_since = None
        elif self._outside_since is None:
            self._outside_since = now
        elif now - self._outside_since >= _PATIENCE_SECONDS:
            self._is_suspected = True
            if self._is_certain(self._outside_since, self._ask_another(self._responds)):
                message = f"the consumer has not been in its group for {now - self._outside_since:.0f} s"
                raise StreamError(message)

    def _require_progress(self, now: float, place: TopicPartition, done: int, end: int) -> None:
        """Raise a StreamError if messages of a partition have been waiting without progress for too long."""
        name = place.topic, place.partition
        seen = self._partitions.get(name)
        if seen is None or done != seen.done:
            if seen is not None:
                self._progressed_at = now
            # A negative offset means that the group has not consumed anything yet.
            seen = self._partitions[name] = _Partition(done, clear_to=end if done < 0 else done)
        if end <= seen.clear_to:
            seen.lagging_since = None
            return
        if seen.lagging_since is None:
            seen.lagging_since = now
        among_others = self._progressed_at > seen.lagging_since
        patience = _PATIENCE_AMONG_OTHERS_SECONDS if among_others else _PATIENCE_SECONDS
        waited = now - seen.lagging_since
        if waited < patience:
            return
        if not self._is_cache_available():
            self._forget()
            return
        self._is_suspected = True
        begin = TopicPartition(place.topic, place.partition, seen.clear_to)
        is_waiting = self._ask_another(lambda other: _has_message(other, begin, end))
        if self._is_certain(seen.lagging_since, is_waiting):
            message = (
                f"no progress in {place.topic}[{place.partition}] for {waited:.0f} s: at {done} of {end}"
            )
            raise StreamError(message)
        if is_waiting is False:
            seen.clear_to = end

    def _require_others_unanswered(self, now: float, error: KafkaException) -> None:
        """Raise a StreamError if the consumer has gotten no response for too long although others have."""
        self._unanswered_since.setdefault(type(error), now)
        unanswered = {
            kind: since for kind, since in self._unanswered_since.items() if now - since >= _PATIENCE_SECONDS
        }
        if not unanswered:
            return
        answer = self._ask_another(self._responds)
        for kind, since in unanswered.items():
            if self._is_certain(since, answer, kind):
                message = (
                    f"no response to the consumer for {now - since:.0f} s, although Kafka responds to others"
                    f": {error.args[0].str()}"
                )
                raise StreamError(message)

    def _is_certain(
        self,
        since: float,
        answer: bool | None,  # noqa: FBT001
        kind: type[KafkaException] = KafkaException,
    ) -> bool:
        """Return whether the consumer must be replaced, after another one was asked.

        Args:
            since: since when the consumer has not been well.
            answer: what the other one said; None if it got no response.
            kind: the class of the error because of which it was asked, if there was one.
        """
        if answer is None:
            self._others_answered.clear()
            return False
        if self._failed_at < since:
            return answer
        now = time.monotonic()
        began, latest = self._others_answered.get(kind, (now, now))
        if now - latest > _MAX_GAP_SECONDS:
            # Nobody was asked for a while, in which Kafka may have been unavailable.
            began = now
        self._others_answered[kind] = began, now
        needed = self._recovery_seconds
        if kind is _CoordinatorError:
            needed += self._rebalance_seconds
        return answer and now - began > needed

    def _responds(self, other: Consumer) -> bool:
        """Return True if another consumer gets the responses that are expected of Kafka."""
        places = self._all_partitions(other, _OTHERS_TIMEOUT_SECONDS)
        _ends(other, places, _OTHERS_TIMEOUT_SECONDS)
        _committed(other, places, _OTHERS_TIMEOUT_SECONDS)
        return True

    def _ask_another(self, question: Callable[[Consumer], bool | None]) -> bool | None:
        """Return what a new consumer, which does not join the group, answers; None if it does not."""
        try:
            other = self._connect()
        except Exception:  # noqa: BLE001 - for example, the settings are unavailable, which says nothing
            return None
        try:
            return question(other)
        except KafkaException:
            return None
        finally:
            other.close()

    def _all_partitions(self, consumer: Consumer, timeout: float = _TIMEOUT_SECONDS) -> list[TopicPartition]:
        known = consumer.list_topics(timeout=timeout).topics
        return [
            TopicPartition(topic, partition)
            for topic in self._topics
            if topic in known
            for partition in known[topic].partitions
        ]

    def _forget(self) -> None:
        self._partitions.clear()
        self._outside_since = None
        self._failed_at = -inf


def _ends(
    consumer: Consumer, places: list[TopicPartition], timeout: float = _TIMEOUT_SECONDS
) -> list[TopicPartition]:
    """Return the offsets after the last messages of partitions."""
    latest = [TopicPartition(place.topic, place.partition, _LATEST) for place in places]
    return consumer.offsets_for_times(latest, timeout=timeout)


def _committed(
    consumer: Consumer, places: list[TopicPartition], timeout: float = _TIMEOUT_SECONDS
) -> list[TopicPartition]:
    """Return the offsets that the group has committed in partitions.

    Raises:
        _CoordinatorError: the coordinator of the group did not respond.
    """
    try:
        return consumer.committed(places, timeout=timeout)
    except KafkaException as error:
        raise _CoordinatorError(*error.args) from error


def _has_message(other: Consumer, begin: TopicPartition, end: int) -> bool | None:
    """Return whether a partition has a message at or after an offset; None if Kafka does not respond.

    Not every offset is a message: the end of a transaction takes one, and so does what it discards.
    """
    other.assign([begin])
    message = other.poll(_OTHERS_TIMEOUT_SECONDS)
    if message is not None and message.error() is None:
        return True
    # It is known once Kafka has responded to the new consumer's first request for messages.
    _, fetched_end = other.get_watermark_offsets(begin, cached=True)
    return False if fetched_end >= end else None
