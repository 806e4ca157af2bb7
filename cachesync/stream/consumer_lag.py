"""How far a stream is behind the ends of its partitions, for its metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from cachesync.metrics import stream as metrics

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from confluent_kafka import Message


class ConsumerLag:
    """The consumer lag of a stream, in messages and in seconds.

    Nobody has seen the messages that wait. The oldest was written after the last one that was applied, and
    after the stream was last at the end: the later of both says how old it can be.

    Args:
        service: the name of the service.
    """

    def __init__(self, service: str) -> None:
        self._service = service
        self._in_hand: Sequence[Message] = ()
        # By topic and partition: when the last message was written that has been applied, and when the stream
        # was last at the end. Times are in seconds since 1970.
        self._applied_to: dict[tuple[str, int], float] = {}
        self._ended_at: dict[tuple[str, int], float] = {}

    def received(self, messages: Sequence[Message]) -> None:
        """Note the batch that is about to be applied, in order."""
        self._in_hand = messages

    def applied(self, last: Mapping[tuple[str, int], Message]) -> None:
        """Note that a batch is applied, by the last message of each partition."""
        self._in_hand = ()
        for place, message in last.items():
            self._applied_to[place] = message.timestamp()[1] / 1000

    def measured(self, places: Mapping[tuple[str, int], tuple[int, int]]) -> None:
        """Export the lag.

        Args:
            places: by topic and partition, the offset after the last message that was consumed, negative if
                there is none, and the offset after the last one that there is.
        """
        now = time.time()
        in_hand = {
            (message.topic(), message.partition()): message.offset() for message in reversed(self._in_hand)
        }
        messages = {}
        seconds = {}
        for place, (consumed, end) in places.items():
            done = in_hand.get(place, consumed) or 0
            waiting = max(0, end - max(0, done))
            if not waiting:
                self._ended_at[place] = now
            since = max(self._ended_at.setdefault(place, now), self._applied_to.get(place, 0))
            topic, partition = place
            labels = (self._service, topic, str(partition))
            messages[labels] = waiting
            seconds[labels] = max(0.0, now - since) if waiting else 0
        metrics.consumer_lag.replace(self, messages)
        metrics.consumer_lag_age.replace(self, seconds)
        # Not those of other members of the group.
        for known in (self._applied_to, self._ended_at):
            for place in known.keys() - places:
                del known[place]
