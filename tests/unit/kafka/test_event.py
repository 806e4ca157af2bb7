"""A change as a Kafka message."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from confluent_kafka import Message
from hypothesis import given
from hypothesis import strategies as st

from cachesync.change import Change, Operation, event_of
from cachesync.errors import UndecodableError
from cachesync.kafka.event import (
    TRUNCATE_KEY,
    Headers,
    decode,
    decode_event,
    decode_message,
    encode_headers,
    message_key,
    message_value,
    without_value,
)
from cachesync.value import encode_value

MOMENT = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
VERSIONS = st.integers(1, 2**63 - 1)
TIMES = st.datetimes(timezones=st.just(UTC))
KEYS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
SOURCES = st.text(st.characters(exclude_categories=["Cs"]), min_size=1)


def changes(
    operation: Operation, keys: st.SearchStrategy[str | None], values: st.SearchStrategy[bytes | None]
) -> st.SearchStrategy[Change]:
    return st.builds(
        Change,
        entity=st.just("thing"),
        key=keys,
        version=VERSIONS,
        operation=st.just(operation),
        value=values,
        source=SOURCES,
        changed_at=TIMES,
    )


BARE = changes(Operation.UPSERT, KEYS, st.none())
DELETES = changes(Operation.DELETE, KEYS, st.none())
TRUNCATES = changes(Operation.TRUNCATE, st.none(), st.none())


@given(change=BARE | DELETES | TRUNCATES)
def test_every_change_without_a_value_survives_the_round_trip_through_its_message(change: Change) -> None:
    assert decode("thing", message_key(change), message_value(change), encode_headers(change), 0) == change


@given(change=BARE, payload=st.binary(min_size=1), milliseconds=st.integers(0, 2**41))
def test_upsert_survives_the_round_trip_through_its_message_but_for_its_source(
    change: Change, payload: bytes, milliseconds: int
) -> None:
    change = replace(
        change,
        value=encode_value(change.version, b"0123abcd", payload),
        changed_at=MOMENT + timedelta(milliseconds=milliseconds),
    )
    assert encode_headers(change) == []
    decoded = decode("thing", message_key(change), message_value(change), [], change.changed_ms)
    assert decoded == replace(change, source="")


@given(change=BARE)
def test_upsert_without_a_value_is_no_tombstone(change: Change) -> None:
    assert message_value(change) == b""
    assert decode("thing", message_key(change), None, encode_headers(change), 0) == change


@given(change=BARE, payload=st.binary(min_size=1))
def test_upsert_as_earlier_versions_sent_it_is_read(change: Change, payload: bytes) -> None:
    headers: Headers = [*encode_headers(change), ("ce_fingerprint", b"0123abcd")]
    value = encode_value(change.version, b"0123abcd", payload)
    assert decode("thing", message_key(change), payload, headers, 0) == replace(change, value=value)
    assert without_value(payload, headers, 0) == encode_headers(change)


def test_headers_that_other_programs_add_to_an_upsert_are_ignored() -> None:
    value = encode_value(7, b"0123abcd", b"{}")
    assert decode("thing", b"1", value, [("traceparent", b"00-1")], 0).value == value


@given(
    key=st.none() | st.binary(max_size=3) | st.sampled_from([b"1", TRUNCATE_KEY, "\u00e9".encode()]),
    value=st.none()
    | st.binary(max_size=30)
    | st.builds(
        b"%b%b%b".__mod__,
        st.tuples(
            st.sampled_from([b"V", b"L", b""]),
            st.sampled_from([b"%019d" % version for version in (0, 1, 7, 2**63 - 1, 2**63)])
            | st.text("0123456789-/: ", min_size=18, max_size=20).map(str.encode),
            st.sampled_from([b"0123abcd{}", b"0123abcd", b""]),
        ),
    ),
    headers=st.sampled_from([[], [], [], [("traceparent", b"00-1")], [("ce_specversion", b"1.0")]]),
)
def test_event_of_a_message_is_that_of_its_change(
    key: bytes | None, value: bytes | None, headers: Headers
) -> None:
    message = Message("cachesync.thing", 0, 0, key=key, value=value, timestamp=(1, 1_767_323_045_006))
    message.set_headers(headers)
    try:
        expected = event_of(decode_message("thing", message))
    except UndecodableError as error:
        with pytest.raises(UndecodableError, match=re.escape(str(error))):
            decode_event("thing", message)
    else:
        assert decode_event("thing", message) == expected


@pytest.mark.parametrize("milliseconds", [-(2**62), -1, 0, 2**62])
def test_timestamp_of_an_upsert_can_be_any_number(milliseconds: int) -> None:
    value = encode_value(7, b"0123abcd", b"{}")
    assert decode("thing", b"1", value, [], milliseconds).version == 7
    assert dict(without_value(value, [], milliseconds))["ce_rowversion"] == b"7"


@pytest.mark.parametrize(
    ("operation", "key"), [(Operation.UPSERT, "1"), (Operation.DELETE, "1"), (Operation.TRUNCATE, None)]
)
def test_headers_of_a_change_without_a_value_are_those_of_a_binary_mode_cloudevent(
    operation: Operation, key: str | None
) -> None:
    change = Change("thing", key, 7, operation, None, "sa", MOMENT)
    assert encode_headers(change) == [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"7"),
        ("ce_source", b"/cachesync/sa"),
        ("ce_type", b"cachesync." + operation.encode()),
        ("ce_time", b"2026-01-02T03:04:05+00:00"),
        ("ce_rowversion", b"7"),
    ]


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        (None, encode_value(7, b"0123abcd", b"{}"), "cannot be the key"),
        (TRUNCATE_KEY, encode_value(7, b"0123abcd", b"{}"), "cannot be the key"),
        (b"\xff", encode_value(7, b"0123abcd", b"{}"), "malformed key"),
        (b"1", encode_value(0, b"0123abcd", b"{}"), "not a row version"),
        (b"1", b"V" + b"9" * 19 + b"0123abcd{}", "not a row version"),
        (b"1", encode_value(7, b"0123abcd", b""), "neither a value"),
        (b"1", b"A", "neither a value"),
        (b"1", b"", "neither a value"),
        (b"1", None, "neither a value"),
    ],
)
def test_message_without_headers_that_is_not_an_upsert_is_rejected_with_the_reason(
    key: bytes | None, value: bytes | None, reason: str
) -> None:
    with pytest.raises(UndecodableError, match=reason):
        decode("thing", key, value, [], 0)


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
        decode("thing", key, value, headers, 0)


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
        decode("thing", key, value, list(headers.items()), 0)
