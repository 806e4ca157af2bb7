"""The column values of a write."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import pytest

from cachesync.errors import InvalidValueError
from cachesync.service.row_input import RowInput

if TYPE_CHECKING:
    from collections.abc import Mapping

DIGITS = '{ "fee": 1.10, "rate": 0.1000000000000000055511151231257827, "big": 123456789012345678901 }'


@pytest.mark.parametrize("document", [DIGITS, DIGITS.encode()])
def test_json_keeps_every_digit(document: bytes | str) -> None:
    row = RowInput.from_json(document)
    assert row.text == DIGITS
    assert row.values == {
        "fee": Decimal("1.10"),
        "rate": Decimal("0.1000000000000000055511151231257827"),
        "big": 123456789012345678901,
    }
    assert str(row.values["fee"]) == "1.10"


def test_json_keeps_numbers_that_python_does_not_convert() -> None:
    digits = "9" * 5000
    row = RowInput.from_json(f'{{"id": {digits}}}')
    assert row.values == {"id": Decimal(digits)}
    assert row.key_text("id") == digits


def test_json_in_bytes_is_utf8() -> None:
    assert RowInput.from_json('{"name":"Ümit"}'.encode()).values == {"name": "Ümit"}


@pytest.mark.parametrize(
    "document",
    [
        "",
        "{",
        "{'id': 1}",
        '{"id": 1} {}',
        '{"id": 1,}',
        b'{"name": "\xff"}',
        '{"details": ' + "[" * 100_000 + "]" * 100_000 + "}",
        '{"fee": 1e999999999999999999999}',
        '{"id": 1, "id": 2}',
        '{"details": {"a": 1, "a": 1}}',
        '{"fee": NaN}',
    ],
    ids=[
        "empty",
        "cut off",
        "quotes",
        "more",
        "comma",
        "not UTF-8",
        "too deep",
        "exponent",
        "twice",
        "twice inside",
        "NaN",
    ],
)
def test_malformed_json_is_rejected(document: bytes | str) -> None:
    with pytest.raises(InvalidValueError) as refused:
        RowInput.from_json(document)
    assert refused.value.column is None


@pytest.mark.parametrize("document", ["[]", "[1]", '"id"', "1", "1.5", "null", "true"])
def test_json_that_is_not_an_object_is_rejected(document: str) -> None:
    with pytest.raises(InvalidValueError, match="JSON object") as refused:
        RowInput.from_json(document)
    assert refused.value.column is None


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (Decimal("1.10"), "1.10"),
        (UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8"), "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
        (date(2026, 1, 2), "2026-01-02"),
        (time(3, 4, 5), "03:04:05"),
        (datetime(2026, 1, 2, 3, 4, 5, 678, tzinfo=UTC), "2026-01-02T03:04:05.000678+00:00"),
        (
            {"fees": [Decimal("0.10"), 2], "on": {"day": date(2026, 1, 2)}},
            {"fees": ["0.10", 2], "on": {"day": "2026-01-02"}},
        ),
        ([1, "two", None, True], [1, "two", None, True]),
        (123456789012345678901, 123456789012345678901),
        ('a "quoted" Ümit', 'a "quoted" Ümit'),
        (None, None),
    ],
)
def test_python_values_become_json_that_postgresql_reads(value: object, expected: object) -> None:
    row = RowInput.from_mapping({"id": 7, 'a "quoted" column': value})
    assert json.loads(row.text, parse_float=str) == {"id": 7, 'a "quoted" column': expected}
    assert row.values == {"id": 7, 'a "quoted" column': value}


@pytest.mark.parametrize("document", [None, 5, 10**15, [123, 125], {"id": 1}, True])
def test_only_bytes_and_text_are_json(document: Any) -> None:
    with pytest.raises(InvalidValueError, match="bytes or text"):
        RowInput.from_json(document)


@pytest.mark.parametrize("values", [None, 5, "id", b"id", ["id"], [("id", 1)]])
def test_only_mappings_have_values_by_column(values: Any) -> None:
    with pytest.raises(InvalidValueError, match="mapping"):
        RowInput.from_mapping(values)


def test_later_changes_of_a_mapping_do_not_change_the_row() -> None:
    values = {"id": 1}
    row = RowInput.from_mapping(values)
    values["name"] = 2
    assert row.columns == ("id",)


def test_decimals_become_numbers_with_all_of_their_digits() -> None:
    row = RowInput.from_mapping({"fee": Decimal("1.10"), "details": {"rates": [Decimal("1E+3")]}})
    assert row.text == '{"fee": 1.10, "details": {"rates": [1E+3]}}'


def test_names_of_columns_are_text() -> None:
    with pytest.raises(InvalidValueError, match="the name of a column is text, not int"):
        RowInput.from_mapping({"id": 1, 2: "two"})  # type: ignore[dict-item]


def endless() -> list[Any]:
    values: list[Any] = []
    values.append(values)
    return values


@pytest.mark.parametrize(
    "value",
    [
        float("nan"),
        Decimal("NaN"),
        [Decimal("-Infinity")],
        float("inf"),
        [1.5, float("-inf")],
        b"bytes",
        {"set": {1}},
        object(),
        {(1, 2): 3},
        endless(),
    ],
    ids=[
        "NaN",
        "Decimal NaN",
        "nested Decimal infinity",
        "infinity",
        "nested infinity",
        "bytes",
        "nested set",
        "object",
        "tuple as name",
        "endless",
    ],
)
def test_values_without_json_are_rejected_by_column(value: object) -> None:
    with pytest.raises(InvalidValueError) as refused:
        RowInput.from_mapping({"id": 1, "wrong": value, "name": "Ann"})
    assert refused.value.column == "wrong"


@pytest.mark.parametrize(
    "row",
    [
        RowInput.from_json('{"fee": 1.10, "name": "Ann", "tags": [0.50]}'),
        RowInput.from_mapping({"fee": Decimal("1.10"), "name": "Ann", "tags": [Decimal("0.50")]}),
    ],
    ids=["JSON", "mapping"],
)
def test_only_is_an_object_with_one_column(row: RowInput) -> None:
    assert row.only("fee") == '{"fee": 1.10}'
    assert row.only("tags") == '{"tags": [0.50]}'


def test_columns_are_the_given_names_in_order() -> None:
    assert RowInput.from_json('{"name": "Ann", "id": 1, "age": null}').columns == ("name", "id", "age")
    assert RowInput.from_mapping({"name": "Ann", "id": 1}).columns == ("name", "id")
    assert RowInput.from_json("{}").columns == ()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"id": 7}, "7"),
        ({"id": "7"}, "7"),
        ({"id": 12345678901234567890}, "12345678901234567890"),
        ({"id": UUID("6ba7b810-9dad-11d1-80b4-00c04fd430c8")}, "6ba7b810-9dad-11d1-80b4-00c04fd430c8"),
        ({"id": True}, "true"),
        ({"id": None}, "null"),
        ({"name": "Ann"}, None),
    ],
)
def test_key_text_is_the_text_of_the_key_if_it_is_given(
    values: Mapping[str, object], expected: str | None
) -> None:
    assert RowInput.from_mapping(values).key_text("id") == expected
