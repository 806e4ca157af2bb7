"""Files that only their owner can read."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path


def write_private(file: Path, text: str) -> None:
    """Create a file with mode 0600, along with its directory if that is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # The mode is set before the file has any content.
    file.touch(mode=0o600)
    file.write_text(text)
