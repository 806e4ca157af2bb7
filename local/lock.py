"""Mutual exclusion between processes."""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def one_at_a_time(file: Path) -> Iterator[None]:
    """Hold an exclusive lock on the file for the duration of the block; wait for it if necessary."""
    with file.open("w") as lock:
        # The lock belongs to the open file, so it ends with this process, however that ends.
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
