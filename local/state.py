"""State directories, each used by one run at a time."""

from __future__ import annotations

import fcntl
from contextlib import ExitStack, contextmanager, suppress
from itertools import count
from typing import TYPE_CHECKING

from local.errors import StateInUseError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def claim(folder: Path) -> Iterator[Path]:
    """Lock a directory for this run, creating it if it is missing.

    Raises:
        StateInUseError: another run has locked it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as lock:
        try:
            # The lock belongs to the open file, so it ends with this process, however that ends.
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise StateInUseError(folder) from None
        yield folder


@contextmanager
def claim_any(parent: Path) -> Iterator[Path]:
    """Lock the first of the numbered directories in `parent` that no other run uses."""
    with ExitStack() as stack:
        for number in count(1):
            with suppress(StateInUseError):
                yield stack.enter_context(claim(parent / str(number)))
                return
