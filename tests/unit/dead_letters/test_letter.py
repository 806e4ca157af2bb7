"""The retry policy and the format of dead letters."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from cachesync.change import Change, Operation
from cachesync.dead_letters.letter import RetryPolicy, smaller
from cachesync.kafka.event import Headers, encode_headers
from cachesync.value import encode_value


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
    bare = Change("thing", "1", 7, Operation.UPSERT, None, "", datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC))
    inner: Headers = [("dead-letter-service", b"sa"), ("dead-letter-huge", b"huge")]
    own: Headers = [("dead-letter-service", b"sb"), ("dead-letter-original-timestamp", b"1767323045000")]
    first = smaller(("topic", b"1", encode_value(7, b"0123abcd", b"{}"), [*inner, *own]))
    assert first == ("topic", b"1", None, [*encode_headers(bare), *inner, *own])
    second = smaller(first)
    assert second == ("topic", None, None, own)
    assert smaller(second) is None


def test_event_with_a_payload_keeps_its_other_headers_when_its_value_is_left_out() -> None:
    event: Headers = [("ce_specversion", b"1.0"), ("ce_rowversion", b"7")]
    payload: Headers = [("ce_fingerprint", b"0123abcd"), ("content-type", b"application/json")]
    own: Headers = [("dead-letter-service", b"sb")]
    assert smaller(("topic", b"1", b"{}", [*event, *payload, *own])) == ("topic", b"1", None, [*event, *own])
