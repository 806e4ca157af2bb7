"""Tells when so many messages fail that the fault is not theirs."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, Final

from cachesync.errors import TooManyDeadLettersError

if TYPE_CHECKING:
    from collections.abc import Iterable

MOST_IN_A_ROW: Final = 100
MOST_AMONG_THE_LAST: Final = 500
THE_LAST: Final = 5000


class DeadLetterLimit:
    """Counts the messages of one stream and those of them that failed.

    More than `MOST_IN_A_ROW`, or than `MOST_AMONG_THE_LAST` of the last `THE_LAST` messages, are too many.
    It costs nothing as long as nothing fails.
    """

    def __init__(self) -> None:
        self._seen = 0
        self._in_a_row = 0
        self._failed: deque[int] = deque()

    def count(self, messages: int, failed: Iterable[int]) -> None:
        """Count a batch.

        Args:
            messages: how many there are in it.
            failed: the places in it, from 0 and ascending, of those that failed.

        Raises:
            TooManyDeadLettersError: too many failed.
        """
        for place in failed:
            number = self._seen + place
            follows = bool(self._failed) and self._failed[-1] == number - 1
            self._in_a_row = self._in_a_row + 1 if follows else 1
            self._failed.append(number)
            while self._failed[0] <= number - THE_LAST:
                self._failed.popleft()
            if self._in_a_row > MOST_IN_A_ROW:
                message = f"{self._in_a_row} messages in a row cannot be applied"
                raise TooManyDeadLettersError(message)
            if len(self._failed) > MOST_AMONG_THE_LAST:
                message = f"{len(self._failed)} of the last {THE_LAST} messages cannot be applied"
                raise TooManyDeadLettersError(message)
        self._seen += messages
