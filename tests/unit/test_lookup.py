"""The values of a row in unique lookups, as its payload has them."""

from __future__ import annotations

import pytest

from cachesync.lookup import columns_name, decode_values, encode_values, values_in

LOOKUPS = {"a": ("a",), "a,b": ("a", "b")}


@pytest.mark.parametrize(
    ("payload", "values"),
    [
        (b'{"a": "x", "b": "y/~"}', {"a": "x", "a,b": "x/y~1~0"}),
        (
            b'{"a":12345678901234567890,"b":1.50}',
            {"a": "12345678901234567890", "a,b": "12345678901234567890/1.5"},
        ),
        (b'{"a":100,"b":-0.00}', {"a": "100", "a,b": "100/-0"}),
        (b'{"a":true,"b":false}', {"a": "true", "a,b": "true/false"}),
        (b'{"a":"","b":null}', {"a": "", "a,b": None}),
        (b'{"a":null,"b":1,"c":{"d":[1.0]}}', {"a": None, "a,b": None}),
        (b'{"a":"\\u00e4","b":"\xc3\xa4"}', {"a": "ä", "a,b": "ä/ä"}),
    ],
)
def test_values_are_those_of_the_payload(payload: bytes, values: dict[str, str | None]) -> None:
    assert values_in(LOOKUPS, payload) == values
    assert decode_values(LOOKUPS, encode_values(values)) == values


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"[]",
        b"1",
        b'{"a": 1}',
        b'{"a": [], "b": 1}',
        b"{",
        b"\xff",
        b'{"a":1,"b":1,"c":' + b"[" * 100_000,
    ],
)
def test_payload_that_does_not_tell_the_values_is_not_guessed(payload: bytes) -> None:
    assert values_in(LOOKUPS, payload) is None


@pytest.mark.parametrize("header", [b"", b"{}", b"[]", b'{"a": "x"}', b'{"a": 1, "a,b": null}', b"\xff"])
def test_header_that_does_not_have_all_values_is_not_guessed(header: bytes) -> None:
    assert decode_values(LOOKUPS, header) is None
    assert encode_values(None) == b""


def test_name_of_columns_has_no_character_with_another_meaning() -> None:
    assert columns_name(["a"]) == "a"
    assert columns_name(["a,b", "c:*"]) == "a%2Cb,c%3A%2A"
    assert columns_name(["a", "b,c:*"]) != columns_name(["a,b", "c:*"])
