"""Percentiles of durations."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def in_milliseconds(seconds: Sequence[float]) -> str:
    """Format the percentiles of durations in seconds as a line of text, in milliseconds."""
    ordered = sorted(seconds)

    def at(share: float) -> float:
        return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]

    return (
        f"p50 {at(0.5):7.1f}  p90 {at(0.9):7.1f}  p99 {at(0.99):7.1f}  p99.9 {at(0.999):7.1f}  "
        f"max {1000 * ordered[-1]:7.1f} ms  (n={len(ordered)})"
    )
