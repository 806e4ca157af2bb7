"""The circuit breaker."""

from __future__ import annotations

import pytest

from cachesync.slots import breaker
from cachesync.slots.breaker import Breaker


class Clock:
    """A stand-in for the module `time`."""

    now = 100.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(breaker, "time", clock)
    return clock


@pytest.mark.usefixtures("clock")
def test_opens_only_after_consecutive_failures() -> None:
    tested = Breaker(failures=3, pause=1.0)
    for _ in range(5):
        tested.failed()
        tested.failed()
        tested.succeeded()
    assert tested.allows()
    for _ in range(3):
        tested.failed()
    assert not tested.allows()


def test_open_breaker_allows_one_probe_per_pause(clock: Clock) -> None:
    tested = Breaker(failures=1, pause=1.0)
    tested.failed()
    clock.now += 0.9
    assert not tested.allows()
    clock.now += 0.2
    assert [tested.allows(), tested.allows()] == [True, False]


def test_successful_probe_closes_the_breaker(clock: Clock) -> None:
    tested = Breaker(failures=1, pause=1.0)
    tested.failed()
    clock.now += 1.1
    assert tested.allows()
    tested.succeeded()
    assert [tested.allows(), tested.allows()] == [True, True]
