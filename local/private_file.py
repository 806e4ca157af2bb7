"""Files and directories that only their owner can read."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from pathlib import Path

PRIVATE_UMASK: Final = 0o077
"""The umask with which the owner alone can use new files and directories."""


def write_private(file: Path, text: str) -> None:
    """Write a file with mode 0600, and create its directory if that is missing."""
    file.parent.mkdir(parents=True, exist_ok=True)
    # The mode is set before the file has any content. An earlier version may have created the file.
    file.touch(mode=0o600)
    file.chmod(0o600)
    file.write_text(text)


def private_folder(folder: Path) -> Path:
    """Return the directory, with mode 0700; it is created if it is missing."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    return folder
