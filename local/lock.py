"""What only one process may do at a time."""

from __future__ import annotations

import fcntl
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@contextmanager
def one_at_a_time(file: Path) -> Iterator[None]:
    """Let every other process or thread that comes with this file wait for the end of the block."""
    with file.open("w") as lock:
        # Held by the open file, so it ends with this process however that ends.
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
