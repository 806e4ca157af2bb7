"""Quantiles of counted lags."""

from __future__ import annotations

import pytest

from cachesync.live_check.judge import LAG_BOUNDS
from cachesync.overview.histogram import quantile


def counts(**by_index: int) -> list[int]:
    made = [0] * len(LAG_BOUNDS)
    for name, count in by_index.items():
        made[int(name[1:])] = count
    return made


@pytest.mark.parametrize(
    ("given", "share", "lag"),
    [
        (counts(), 0.99, None),
        (counts(_0=100), 0.5, 0.005),
        (counts(_0=50, _2=50), 0.5, 0.01),
        (counts(_0=50, _2=50), 0.75, 0.035),
        (counts(_0=98, _12=2), 0.99, 180),
        (counts(_13=3), 0.5, 300),
    ],
)
def test_a_quantile_is_between_the_bounds_of_its_count(
    given: list[int], share: float, lag: float | None
) -> None:
    assert quantile(given, share) == pytest.approx(lag)
