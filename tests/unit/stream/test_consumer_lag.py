"""How far a stream is behind, for its metrics."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any, cast

from prometheus_client import REGISTRY

from cachesync.metrics.kinds import forget
from cachesync.stream.consumer_lag import ConsumerLag

if TYPE_CHECKING:
    import pytest
    from confluent_kafka import Message

PLACE = ("topic", 0)


class Given:
    """A message of the partition."""

    def __init__(self, offset: int, at: float) -> None:
        self._offset = offset
        self._at = at

    def topic(self) -> str:
        return PLACE[0]

    def partition(self) -> int:
        return PLACE[1]

    def offset(self) -> int:
        return self._offset

    def timestamp(self) -> tuple[int, int]:
        return 1, int(1000 * self._at)


def message(offset: int, at: float) -> Message:
    return cast("Message", Given(offset, at))


def lag() -> tuple[float | None, float | None]:
    """The lag in messages and in seconds."""
    labels: dict[str, Any] = {"service": "lagging", "topic": "topic", "partition": "0"}
    return (
        REGISTRY.get_sample_value("cachesync_consumer_lag_messages", labels),
        REGISTRY.get_sample_value("cachesync_consumer_lag_seconds", labels),
    )


def test_lag_grows_from_the_later_of_the_last_message_and_the_last_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 1000.0
    monkeypatch.setattr(time, "time", lambda: now)
    stream = ConsumerLag("lagging")
    stream.measured({PLACE: (5, 5)})
    assert lag() == (0, 0)
    now = 1060.0
    # The oldest of three messages can have arrived right after the last look.
    stream.measured({PLACE: (5, 8)})
    assert lag() == (3, 60)
    # The stream has two of them in hand, and has applied none: the consumer is ahead of the cache.
    stream.received([message(5, 1050), message(6, 1055)])
    stream.measured({PLACE: (7, 8)})
    assert lag() == (3, 60)
    stream.applied({PLACE: message(6, 1055)})
    stream.measured({PLACE: (7, 8)})
    assert lag() == (1, 5)
    stream.measured({PLACE: (8, 8)})
    assert lag() == (0, 0)
    # Another member of the group has the partition now.
    stream.measured({})
    assert lag() == (None, None)
    stream.measured({PLACE: (-1001, 4)})
    assert lag() == (4, 0)
    forget(stream)
    assert lag() == (None, None)
