"""The retry policy of dead letters."""

from __future__ import annotations

import pytest

from cachesync.dead_letters.letter import RetryPolicy


@pytest.mark.parametrize(
    ("attempt", "seconds"), [(1, 30), (2, 60), (3, 120), (7, 1920), (8, 3600), (10**9, 3600), (-5, 30)]
)
def test_delay_is_random_up_to_a_bound_that_doubles_from_half_a_minute_to_an_hour(
    attempt: int, seconds: int
) -> None:
    waits = [RetryPolicy().backoff.delay(attempt) for _ in range(2000)]
    assert 0 <= min(waits) < 0.05 * seconds
    assert 0.95 * seconds < max(waits) <= seconds
