"""A change as a Kafka message."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cachesync.change import Change, Operation
from cachesync.errors import UndecodableError
from cachesync.kafka.event import (
    TRUNCATE_KEY,
    Headers,
    decode,
    encode_headers,
    message_key,
    message_value,
    without_payload,
)

MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
VERSIONS = st.integers(1, 2**63 - 1)
TIMES = st.datetimes(timezones=st.just(UTC))
KEYS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
SOURCES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)

UPSERTS = st.builds(
    Change,
    entity=st.just("thing"),
    key=KEYS,
    version=VERSIONS,
    operation=st.just(Operation.UPSERT),
    fingerprint=st.just(b"0123abcd"),
    payload=st.binary(min_size=1),
    source=SOURCES,
    changed_at=TIMES,
)
DELETES = st.builds(
    Change,
    entity=st.just("thing"),
    key=KEYS,
    version=VERSIONS,
    operation=st.just(Operation.DELETE),
    fingerprint=st.none(),
    payload=st.none(),
    source=SOURCES,
    changed_at=TIMES,
)
TRUNCATES = st.builds(
    Change,
    entity=st.just("thing"),
    key=st.none(),
    version=VERSIONS,
    operation=st.just(Operation.TRUNCATE),
    fingerprint=st.none(),
    payload=st.none(),
    source=SOURCES,
    changed_at=TIMES,
)


@given(change=UPSERTS | DELETES | TRUNCATES)
def test_every_change_survives_the_round_trip_through_its_message(change: Change) -> None:
    assert decode("thing", message_key(change), message_value(change), encode_headers(change)) == change


@given(change=UPSERTS)
def test_upsert_without_its_payload_survives_the_round_trip_and_is_no_tombstone(change: Change) -> None:
    bare = replace(change, fingerprint=None, payload=None)
    assert message_value(bare) == b""
    assert without_payload(encode_headers(change)) == encode_headers(bare)
    assert decode("thing", message_key(bare), b"", encode_headers(bare)) == bare
    assert decode("thing", message_key(bare), None, encode_headers(bare)) == bare


def test_headers_are_those_of_a_binary_mode_cloudevent() -> None:
    change = Change("thing", "1", 7, Operation.UPSERT, b"0123abcd", b"{}", "sa", MOMENT)
    assert encode_headers(change) == [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"7"),
        ("ce_source", b"/cachesync/sa"),
        ("ce_type", b"cachesync.upsert"),
        ("ce_time", b"2026-01-02T03:04:05+00:00"),
        ("ce_rowversion", b"7"),
        ("ce_fingerprint", b"0123abcd"),
        ("content-type", b"application/json"),
    ]


@pytest.mark.parametrize(("operation", "key"), [(Operation.DELETE, "1"), (Operation.TRUNCATE, None)])
def test_headers_of_a_change_without_a_payload_name_no_fingerprint(
    operation: Operation, key: str | None
) -> None:
    change = Change("thing", key, 7, operation, None, None, "sa", MOMENT)
    assert encode_headers(change) == [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"7"),
        ("ce_source", b"/cachesync/sa"),
        ("ce_type", b"cachesync." + operation.encode()),
        ("ce_time", b"2026-01-02T03:04:05+00:00"),
        ("ce_rowversion", b"7"),
    ]


GOOD: dict[str, str | bytes | None] = {
    "ce_specversion": b"1.0",
    "ce_source": b"/cachesync/sa",
    "ce_type": b"cachesync.upsert",
    "ce_time": b"2026-01-02T03:04:05+00:00",
    "ce_rowversion": b"7",
    "ce_fingerprint": b"0123abcd",
}


@pytest.mark.parametrize(
    ("key", "value", "changed", "reason"),
    [
        (b"1", b"{}", {"ce_specversion": None}, "ce_specversion"),
        (b"1", b"{}", {"ce_specversion": b"2.0"}, "ce_specversion"),
        (b"1", b"{}", {"ce_type": b"cachesync.other"}, "unknown ce_type"),
        (b"1", b"{}", {"ce_type": None}, "ce_type is missing"),
        (b"1", b"{}", {"ce_rowversion": b"-7"}, "not a row version"),
        (b"1", b"{}", {"ce_rowversion": b"0"}, "not a row version"),
        (b"1", b"{}", {"ce_rowversion": b"9223372036854775808"}, "not a row version"),
        (b"1", b"{}", {"ce_rowversion": "\u0663".encode()}, "not a row version"),
        (b"1", b"{}", {"ce_rowversion": b"9" * 5000}, "not a row version"),
        (b"1", b"{}", {"ce_fingerprint": b"short"}, "ce_fingerprint of 8"),
        (b"1", b"{}", {"ce_fingerprint": None}, "ce_fingerprint is missing"),
        (b"1", None, {}, "must have a value"),
        (b"1", b"", {}, "must have a value"),
        (b"1", b"", {"ce_type": b"cachesync.delete"}, "a delete must not have a value"),
        (b"1", b"{}", {"ce_type": b"cachesync.delete"}, "a delete must not have a value"),
        (None, b"{}", {}, "cannot be the key"),
        (TRUNCATE_KEY, b"{}", {}, "cannot be the key"),
        (b"1", None, {"ce_type": b"cachesync.truncate"}, "cannot be the key"),
        (b"\xff", b"{}", {}, "malformed"),
        (b"1", b"{}", {"ce_time": b"yesterday"}, "malformed"),
        (b"1", b"{}", {"ce_time": b"0001-01-01T00:00:00+14:00"}, "malformed"),
        (b"1", b"{}", {"ce_source": b"\xff"}, "malformed"),
    ],
)
def test_message_that_is_not_a_change_is_rejected_with_the_reason(
    key: bytes | None, value: bytes | None, changed: dict[str, bytes | None], reason: str
) -> None:
    headers: Headers = list((GOOD | changed).items())
    with pytest.raises(UndecodableError, match=reason):
        decode("thing", key, value, headers)


@given(
    key=st.none() | st.binary(),
    value=st.none() | st.binary(),
    headers=st.dictionaries(
        st.sampled_from(sorted(GOOD)), st.none() | st.binary() | st.sampled_from(list(GOOD.values()))
    ),
)
def test_no_message_causes_any_other_error(
    key: bytes | None, value: bytes | None, headers: dict[str, str | bytes | None]
) -> None:
    with suppress(UndecodableError):
        decode("thing", key, value, list(headers.items()))
