"""Detects failure rates that point to a bug rather than to bad messages."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from cachesync.errors import TooManyDeadLettersError

if TYPE_CHECKING:
    from collections.abc import Iterable

MAX_CONSECUTIVE: Final = 100
MAX_IN_WINDOW: Final = 500
WINDOW: Final = 5000


class DeadLetterLimit:
    """Counts a stream's messages and how many of them failed.

    More than `MAX_CONSECUTIVE` failures in a row, or more than `MAX_IN_WINDOW` among the last `WINDOW`
    messages, are too many. Counting costs nothing while no message fails.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._consecutive = 0
        self._failed: deque[int] = deque()

    def count(self, messages: int, failed: Iterable[int]) -> None:
        """Count a batch.

        Args:
            messages: the number of messages in the batch.
            failed: the positions of the failed messages in the batch, from 0, in ascending order.

        Raises:
            TooManyDeadLettersError: too many messages failed.
        """
        for position in failed:
            number = self._seen + position
            follows = bool(self._failed) and self._failed[-1] == number - 1
            self._consecutive = self._consecutive + 1 if follows else 1
            self._failed.append(number)
            while self._failed[0] <= number - WINDOW:
                self._failed.popleft()
            if self._consecutive > MAX_CONSECUTIVE:
                message = f"{self._consecutive} messages in a row cannot be applied"
                raise TooManyDeadLettersError(message)
            if len(self._failed) > MAX_IN_WINDOW:
                message = f"{len(self._failed)} of the last {WINDOW} messages cannot be applied"
                raise TooManyDeadLettersError(message)
        self._seen += messages
