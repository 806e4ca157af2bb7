"""Waits for conditions that other processes bring about."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 60) -> None:
    """Poll until the condition holds.

    Args:
        condition: what to check.
        what: the condition in words, for the error.
        seconds: timeout.

    Raises:
        AssertionError: the condition did not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.05)
