"""Compares the ratios of the quick form with those that were kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from benchmarks.aims import Aim
    from benchmarks.results import Results

# Two runs on an idle machine differ by this much in rounds that agree among themselves.
_TOLERANCE: Final = 0.05


def regressions(now: Results, kept: Results, aims: Sequence[Aim]) -> tuple[list[str], bool]:
    """Return a line for each ratio, and whether any has become worse.

    A ratio has become worse if its best round is worse than the worst round that was kept, by more than 5 %.
    """
    lines, worse = [], False
    for aim in aims:
        new, old = now.spread(aim.figure), kept.spread(aim.figure)
        if not aim.quick or old is None:
            continue
        if new is None:
            lines.append(f"WORSE  {aim.what}: not measured any more")
            worse = True
            continue
        if aim.at_least is not None:
            fell = new.high < old.low * (1 - _TOLERANCE)
        else:
            fell = new.low > old.high * (1 + _TOLERANCE)
        worse = worse or fell
        lines.append(
            f"{'WORSE' if fell else 'ok   '}  {aim.what}: {new.median:.2f} ({new.low:.2f} to {new.high:.2f}),"
            f" kept {old.median:.2f} ({old.low:.2f} to {old.high:.2f})"
        )
    return lines, worse
