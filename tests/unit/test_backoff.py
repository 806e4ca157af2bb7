"""The delays before retries."""

from __future__ import annotations

import pytest

from cachesync.backoff import Backoff

FAILURES = [(1, 30), (2, 60), (3, 120), (7, 1920), (8, 3600), (10**9, 3600), (0, 30), (-5, 30)]


@pytest.mark.parametrize(("failures", "seconds"), FAILURES)
def test_without_jitter_the_delay_doubles_up_to_the_maximum(failures: int, seconds: int) -> None:
    assert Backoff(first=30, longest=3600, jitter=0).delay(failures) == seconds


@pytest.mark.parametrize(("failures", "seconds"), FAILURES)
@pytest.mark.parametrize("jitter", [0.5, 1])
def test_jitter_spreads_delays_over_its_share_of_them(failures: int, seconds: int, jitter: float) -> None:
    delays = [Backoff(first=30, longest=3600, jitter=jitter).delay(failures) for _ in range(2000)]
    least = seconds * (1 - jitter)
    spread = seconds - least
    assert least <= min(delays) < least + 0.05 * spread
    assert seconds - 0.05 * spread < max(delays) <= seconds


def test_a_first_delay_above_the_maximum_is_the_maximum() -> None:
    assert Backoff(first=10, longest=2, jitter=0).delay(1) == 2
