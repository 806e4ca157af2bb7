"""Quantiles of the lags that the live check counts."""

from __future__ import annotations

from itertools import accumulate
from math import isfinite
from typing import TYPE_CHECKING

from cachesync.live_check.judge import LAG_BOUNDS

if TYPE_CHECKING:
    from collections.abc import Sequence


def quantile(counts: Sequence[int], share: float) -> float | None:
    """Return the lag that a share of the changes did not exceed, in seconds.

    Between two bounds, the lags are taken to be evenly spread. Above the last finite one, it is that.

    Args:
        counts: the number of lags up to each of `LAG_BOUNDS`.
        share: the share, such as 0.99.

    Returns:
        The lag; None if there are no changes.
    """
    total = sum(counts)
    if not total:
        return None
    wanted = share * total
    lower = 0.0
    for upper, count, reached in zip(LAG_BOUNDS, counts, accumulate(counts), strict=True):
        if reached >= wanted and count and isfinite(upper):
            return upper - (upper - lower) * (reached - wanted) / count
        if isfinite(upper):
            lower = upper
    return lower
