"""The failure rates at which a stream stops."""

from __future__ import annotations

import pytest

from cachesync.errors import TooManyDeadLettersError
from cachesync.stream.dead_letter_limit import DeadLetterLimit


def test_more_than_a_hundred_failures_in_a_row_exceed_the_limit_across_batches() -> None:
    limit = DeadLetterLimit()
    limit.count(60, range(60))
    limit.count(40, range(40))
    with pytest.raises(TooManyDeadLettersError, match="101 messages in a row"):
        limit.count(1, [0])


def test_applied_message_ends_the_run_of_failures() -> None:
    limit = DeadLetterLimit()
    limit.count(101, range(100))
    limit.count(100, range(100))
    with pytest.raises(TooManyDeadLettersError, match="in a row"):
        limit.count(1, [0])


def test_more_than_a_tenth_of_the_recent_messages_exceeds_the_limit() -> None:
    limit = DeadLetterLimit()
    for _ in range(100):
        limit.count(1000, range(0, 1000, 10))
    with pytest.raises(TooManyDeadLettersError, match="501 of the last 5000 messages"):
        limit.count(10, [1, 3])


def test_old_failures_no_longer_count() -> None:
    limit = DeadLetterLimit()
    for _ in range(10):
        limit.count(800, range(0, 800, 2))
        limit.count(5000, [])
