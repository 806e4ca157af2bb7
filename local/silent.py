"""No one watches an installation."""

from __future__ import annotations


class Silent:
    """Is told of each step."""

    def step(self, text: str) -> None:
        """Nothing to do."""
