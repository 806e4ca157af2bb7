"""The aims for the figures, which `aims.toml` declares."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pydantic import BaseModel, ConfigDict, model_validator

if TYPE_CHECKING:
    from typing import Self

    from benchmarks.results import Results, Spread

_FILE: Final = Path(__file__).with_name("aims.toml")


class Aim(BaseModel):
    """An aim for one figure.

    Attributes:
        what: what the figure is, with its unit.
        figure: its name in the results.
        peer: names of the peer's figures, of which the best one counts.
        at_least, at_most: the bound; with a peer, the bound of the ratio to it.
        text: the bound in words, if it is not the number.
        worst: whether the worst round counts, instead of the median.
        quick: whether the quick form keeps and compares this figure.
        why: why the figure falls short, if it does.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    what: str
    figure: str
    peer: tuple[str, ...] = ()
    at_least: float | None = None
    at_most: float | None = None
    text: str | None = None
    worst: bool = False
    quick: bool = False
    why: str = ""

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.at_least is None) == (self.at_most is None):
            message = f"{self.what}: exactly one of at_least and at_most must be given"
            raise ValueError(message)
        return self

    def peer_of(self, results: Results) -> Spread | None:
        """Return the peer's best figure; None if there is no peer, or if it was not measured."""
        found = [spread for name in self.peer if (spread := results.spread(name)) is not None]
        if not found:
            return None
        best = min if self.at_most is not None else max
        return best(found, key=lambda spread: spread.median)

    def value(self, results: Results) -> float | None:
        """Return what the bound is for, the figure or its ratio to the peer; None if it was not measured."""
        spread, peer = results.spread(self.figure), self.peer_of(results)
        if spread is None or (self.peer and peer is None):
            return None
        figure = spread.median if not self.worst else (spread.low if self.at_most is None else spread.high)
        return figure if peer is None else figure / peer.median

    def met(self, results: Results) -> bool | None:
        """Return whether the aim is met; None if it was not measured."""
        value = self.value(results)
        if value is None:
            return None
        return value >= self.at_least if self.at_least is not None else value <= (self.at_most or 0.0)


def load_aims() -> list[Aim]:
    """Return all aims."""
    return [Aim.model_validate(one) for one in tomllib.loads(_FILE.read_text(encoding="utf-8"))["aim"]]
