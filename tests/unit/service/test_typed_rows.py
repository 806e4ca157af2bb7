"""Rows as Python values."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from pydantic import BaseModel

from cachesync.change import Row
from cachesync.errors import RowTypeError
from cachesync.service.typed_rows import RowDecoder
from tests.unit.serving.stand_in import column


def decoded(base_type: str, text: str) -> Any:
    row = Row("1", 1, b"abcdef01", b'{"id":1,"it":%b}' % text.encode())
    return RowDecoder([column("id", "int8", "N"), column("it", base_type, "U")]).decode(row)["it"]


@pytest.mark.parametrize(
    ("base_type", "text", "value"),
    [
        ("int8", "9223372036854775807", 9223372036854775807),
        ("numeric", "120.10", Decimal("120.10")),
        ("numeric", "5", Decimal(5)),
        ("numeric", '"NaN"', Decimal("NaN")),
        ("numeric", "null", None),
        ("numeric", "0.12345678901234567890123456789", Decimal("0.12345678901234567890123456789")),
        ("float8", "0.1", 0.1),
        ("float8", "1", 1.0),
        ("float4", '"Infinity"', float("inf")),
        ("float8", "null", None),
        ("jsonb", '{"a": [0.5, {"b": 1.5}], "c": 1}', {"a": [0.5, {"b": 1.5}], "c": 1}),
        ("json", "1.5", 1.5),
        ("_numeric", "[0.10, 1, null]", [Decimal("0.10"), 1, None]),
        ("timestamptz", '"2026-01-02T03:04:05+00:00"', "2026-01-02T03:04:05+00:00"),
        ("bool", "true", True),
    ],
)
def test_a_value_has_the_type_of_its_column_and_all_of_its_digits(
    base_type: str, text: str, value: object
) -> None:
    found = decoded(base_type, text)
    assert repr(found) == repr(value)


def test_a_number_with_very_many_digits_leaves_the_others_as_they_are() -> None:
    decoder = RowDecoder([column("id", "int8", "N"), column("it", "numeric", "N")])
    digits = "1" + "0" * 5000
    row = Row("1", 1, b"", b'{"id":1,"it":%b}' % digits.encode())
    assert repr(decoder.decode(row)) == repr({"id": 1, "it": Decimal(digits)})


def test_a_type_that_pydantic_does_not_know_is_an_error() -> None:
    decoder = RowDecoder([column("id", "int8", "N")])
    row = Row("1", 1, b"", b'{"id":1}')
    unusable: Any
    for unusable in (type("Unknown", (), {}), [int], "Undefined", 1):
        with pytest.raises(RowTypeError, match="as_ must be a type that pydantic can validate, not "):
            decoder.decode_as(row, unusable)
    union: Any = Model | None
    assert decoder.decode_as(row, union) == Model(id=1)
    with pytest.raises(RowTypeError, match=r"is no int | None"):
        decoder.decode_as(row, int | None)  # type: ignore[arg-type]


class Model(BaseModel):
    id: int


def test_a_model_takes_what_it_declares_and_an_error_names_the_row() -> None:
    decoder = RowDecoder([column("id", "text", "S"), column("other", "text", "S")])
    assert decoder.decode_as(Row("1", 1, b"", b'{"id":"1","other":"x"}'), Model) == Model(id=1)
    with pytest.raises(RowTypeError, match="the row with the key 'x' is no Model"):
        decoder.decode_as(Row("x", 1, b"", b'{"id":"x","other":"x"}'), Model)
