"""When a stream has sent too many dead letters to go on."""

from __future__ import annotations

import pytest

from cachesync.errors import TooManyDeadLettersError
from cachesync.stream.dead_letter_limit import DeadLetterLimit


def test_a_hundred_in_a_row_are_borne_and_one_more_is_not_whatever_the_batches() -> None:
    limit = DeadLetterLimit()
    limit.count(60, range(60))
    limit.count(40, range(40))
    with pytest.raises(TooManyDeadLettersError, match="101 messages in a row"):
        limit.count(1, [0])


def test_one_that_can_be_applied_begins_the_row_anew() -> None:
    limit = DeadLetterLimit()
    limit.count(101, range(100))
    limit.count(100, range(100))
    with pytest.raises(TooManyDeadLettersError, match="in a row"):
        limit.count(1, [0])


def test_a_tenth_of_the_last_messages_is_borne_and_more_is_not() -> None:
    limit = DeadLetterLimit()
    for _ in range(100):
        limit.count(1000, range(0, 1000, 10))
    with pytest.raises(TooManyDeadLettersError, match="501 of the last 5000 messages"):
        limit.count(10, [1, 3])


def test_what_failed_long_ago_no_longer_counts() -> None:
    limit = DeadLetterLimit()
    for _ in range(10):
        limit.count(800, range(0, 800, 2))
        limit.count(5000, [])
