"""No one watches an installation in a test."""

from __future__ import annotations


class Silent:
    """Is told of each step."""

    def step(self, text: str) -> None:
        pass
