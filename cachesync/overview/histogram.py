"""Quantiles of the lags that the live check counts."""

from __future__ import annotations

from itertools import accumulate
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

LAG_BOUNDS: Final = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0, 300.0)
"""The upper bounds of the counts of lags, in seconds; the last count, of longer ones, has none."""


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Return the lag that a share of the changes did not exceed, in seconds.

    Between two bounds, the lags are taken to be evenly spread. Above the last one, it is that bound.

    Args:
        counts: the number of lags up to each of `LAG_BOUNDS`, and of longer ones.
        share: the share, such as 0.99.

    Returns:
        The lag; None if there are no changes.
    """
    total = sum(counts)
    if not total:
        return None
    wanted = share * total
    lower = 0.0
    for upper, count, reached in zip(LAG_BOUNDS, counts, accumulate(counts), strict=False):
        if reached >= wanted:
            return upper - (upper - lower) * (reached - wanted) / count if count else lower
        lower = upper
    return LAG_BOUNDS[-1]
