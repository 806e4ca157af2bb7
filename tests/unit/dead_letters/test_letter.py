"""The retry policy and the format of dead letters."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cachesync.change import Change, Operation
from cachesync.dead_letters.letter import RetryPolicy, smaller
from cachesync.kafka.event import Headers, encode_headers


@pytest.mark.parametrize(
    ("attempt", "seconds"), [(1, 30), (2, 60), (3, 120), (7, 1920), (8, 3600), (10**9, 3600), (-5, 30)]
)
def test_delay_is_random_up_to_a_bound_that_doubles_from_half_a_minute_to_an_hour(
    attempt: int, seconds: int
) -> None:
    waits = [RetryPolicy().backoff.delay(attempt) for _ in range(2000)]
    assert 0 <= min(waits) < 0.05 * seconds
    assert 0.95 * seconds < max(waits) <= seconds


def test_parts_of_a_letter_are_left_out_until_only_its_own_headers_remain() -> None:
    change = Change("thing", "1", 7, Operation.UPSERT, b"0123abcd", b"{}", "sa", datetime.now(UTC))
    bare = Change("thing", "1", 7, Operation.UPSERT, None, None, "sa", change.changed_at)
    inner: Headers = [("dead-letter-service", b"sa"), ("dead-letter-huge", b"huge")]
    own: Headers = [("dead-letter-service", b"sb"), ("dead-letter-stage", b"cache")]
    first = smaller(("topic", b"1", b"{}", [*encode_headers(change), *inner, *own]))
    assert first == ("topic", b"1", None, [*encode_headers(bare), *inner, *own])
    second = smaller(first)
    assert second == ("topic", None, None, own)
    assert smaller(second) is None
