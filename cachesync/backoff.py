"""Exponential backoff for retries."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import Final

# More doublings would not change a capped delay, and the number of failures can come from outside.
_MAX_DOUBLINGS: Final = 20


@dataclass(frozen=True, slots=True)
class Backoff:
    """How long to wait after failures: the delay doubles with each one, up to a maximum.

    Source: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/

    Attributes:
        first: the delay after the first failure, in seconds, before jitter.
        longest: the maximum delay, in seconds.
        jitter: the share of each delay that is random, from 0 (none) to 1 (full jitter).
    """

    first: float
    longest: float
    jitter: float = 0.5

    def delay(self, failures: int) -> float:
        """Return the delay after the given number of failures in a row, in seconds."""
        doublings = max(0, min(failures - 1, _MAX_DOUBLINGS))
        delay = min(self.longest, self.first * (1 << doublings))
        return delay * random.uniform(1 - self.jitter, 1)  # noqa: S311 - no secret
