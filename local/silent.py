"""An installation without progress output."""

from __future__ import annotations


class Silent:
    """Progress listener that discards every step."""

    def step(self, text: str) -> None:
        """Ignore the step."""
