"""Percentiles of durations."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence


def milliseconds(seconds: Sequence[float], share: float) -> float:
    """Return the duration that a share of the durations does not exceed, in milliseconds."""
    ordered = sorted(seconds)
    return 1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def in_milliseconds(seconds: Sequence[float]) -> str:
    """Format the percentiles of durations in seconds as a line of text, in milliseconds."""
    p50, p90, p99, p999 = (milliseconds(seconds, share) for share in (0.5, 0.9, 0.99, 0.999))
    return (
        f"p50 {p50:7.1f}  p90 {p90:7.1f}  p99 {p99:7.1f}  p99.9 {p999:7.1f}  "
        f"max {1000 * max(seconds):7.1f} ms  (n={len(seconds)})"
    )
