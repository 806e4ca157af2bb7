"""Compares clocks, whose differences make the measured lag wrong."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from cachesync.doctor.finding import Part

_MAX_SKEW_SECONDS: Final = 1.0


def judge_clock(part: Part, ahead: float, node: str = "") -> None:
    """Record what the difference between the clock of a server and that of this machine means.

    Args:
        part: takes the finding.
        ahead: by how much the clock of the server is ahead, in seconds.
        node: how the finding begins.
    """
    if abs(ahead) > _MAX_SKEW_SECONDS:
        direction = "ahead of" if ahead > 0 else "behind"
        part.warning(
            "clock",
            f"{node}its clock is {abs(ahead):,.1f} seconds {direction} that of this machine, by which the "
            "measured lag is wrong",
            "synchronize the clocks of all machines, with chrony for example",
        )
    else:
        part.ok("clock", f"{node}it agrees with that of this machine")
