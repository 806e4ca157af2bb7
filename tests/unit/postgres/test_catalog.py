"""Keys in canonical form."""

from __future__ import annotations

from typing import Any

import pytest

from cachesync.errors import InvalidValueError
from tests.unit.serving.stand_in import column

TEXT = column("word", "text", "S")


@pytest.mark.parametrize("key", ["", "a", "ä€😀", "a/b?c"])
def test_a_text_is_its_own_canonical_key(key: str) -> None:
    assert TEXT.canonical_key(key) == key


@pytest.mark.parametrize("key", ["\0", "a\0b", "\ud800", "a\udfff"])
def test_a_text_that_postgresql_cannot_store_is_not_a_key(key: str) -> None:
    with pytest.raises(InvalidValueError, match="is not a valid value of type text") as invalid:
        TEXT.canonical_key(key)
    assert invalid.value.column == "word"


@pytest.mark.parametrize(
    ("base_type", "more", "spellings", "canonical"),
    [
        ("bool", {}, ["true"], "true"),
        ("bpchar", {"max_length": 3}, ["ab", "ab ", "ab    "], "ab"),
        ("bpchar", {"max_length": 3}, ["", " "], ""),
        ("numeric", {}, ["1.5", "1.50", "+01.5", "15e-1", "0.15E1"], "1.5"),
        ("numeric", {}, ["1", "1.", "1.00", "1e0"], "1"),
        ("numeric", {}, ["100", "1e2", "1E+2"], "100"),
        ("numeric", {}, ["0", "-0", "0.00", "0e5", "-.0"], "0"),
        ("numeric", {}, ["-0.001", "-1e-3", "-.0010"], "-0.001"),
        ("numeric", {}, ["NaN"], "NaN"),
        ("numeric", {}, ["-Infinity"], "-Infinity"),
        ("numeric", {"precision": 4, "scale": 2}, ["99.99", "99.990"], "99.99"),
        ("numeric", {"precision": 2, "scale": -2}, ["9900"], "9900"),
        ("numeric", {"precision": 2, "scale": 3}, ["0.01", ".010"], "0.01"),
        ("date", {}, ["2026-02-03", "20260203"], "2026-02-03"),
        ("date", {}, ["infinity"], "infinity"),
        ("date", {}, ["0044-03-15 BC"], "0044-03-15 BC"),
        ("date", {}, ["0001-02-29 BC"], "0001-02-29 BC"),
        ("date", {}, ["4714-11-24 BC"], "4714-11-24 BC"),
        ("date", {}, ["5874897-12-31"], "5874897-12-31"),
        ("date", {}, ["12000-02-29"], "12000-02-29"),
        ("time", {}, ["12:30", "12:30:00", "12:30:00.000"], "12:30:00"),
        ("time", {}, ["12:30:00.5", "12:30:00.500000"], "12:30:00.5"),
        ("time", {}, ["24:00:00"], "24:00:00"),
        ("timestamp", {}, ["2026-02-03T12:30:00", "2026-02-03 12:30"], "2026-02-03T12:30:00"),
        ("timestamp", {}, ["-infinity"], "-infinity"),
        ("timestamp", {}, ["0044-03-15T12:30:00.5 BC"], "0044-03-15T12:30:00.5 BC"),
        ("timestamp", {}, ["294276-12-31T23:59:59.999999"], "294276-12-31T23:59:59.999999"),
        ("timestamptz", {}, ["0044-03-15T12:30:00Z BC"], "0044-03-15T12:30:00Z BC"),
        ("timestamptz", {}, ["10000-01-01T00:00:00Z"], "10000-01-01T00:00:00Z"),
        (
            "timestamptz",
            {},
            [
                *("2026-02-03T12:30:00Z", "2026-02-03T14:30:00+02:00"),
                *("2026-02-03 12:30:00+00", "2026-02-03 12:30"),
            ],
            "2026-02-03T12:30:00Z",
        ),
        ("timestamptz", {}, ["infinity"], "infinity"),
        ("mood", {"labels": ("so/so", "ok")}, ["so/so"], "so/so"),
        ("uuid", {}, ["{6F1C2A34-90AB-4CDE-8F01-23456789ABCD}"], "6f1c2a34-90ab-4cde-8f01-23456789abcd"),
    ],
)
def test_every_spelling_of_a_value_has_the_same_canonical_text(
    base_type: str, more: dict[str, Any], spellings: list[str], canonical: str
) -> None:
    key = column("key", base_type, "?", **more)
    assert {key.canonical_key(spelling) for spelling in spellings} == {canonical}


@pytest.mark.parametrize(
    ("base_type", "more", "texts"),
    [
        ("bool", {}, ["t", "1", "TRUE", ""]),
        ("bpchar", {"max_length": 3}, ["abcd", "a\0"]),
        ("numeric", {}, ["", "x", "1e", "1_0", " 1", "1e999999", "1e-20000", "nan", "٣", "1" * 131_073]),
        ("numeric", {"precision": 4, "scale": 2}, ["100", "1.005", "Infinity"]),
        ("numeric", {"precision": 2, "scale": -2}, ["10000", "50", "0.5"]),
        ("date", {}, ["", "2026-02-30", "today", "0000-01-01", "2026-02-03BC", "10000-1-1", "010000-01-01"]),
        ("date", {}, ["0000-01-01 BC", "44-03-15 BC", "0044-0315 BC", "0002-02-29 BC", "10001-02-29"]),
        ("date", {}, ["4714-11-23 BC", "4715-12-31 BC", "5874898-01-01", "0044-03-15 bc"]),
        ("time", {}, ["24:00:01", "24:00", "T24:00:00", "12:30+02", "noon", "12:30:00.1234567"]),
        ("timestamp", {}, ["2026-02-03T12:30:00Z", "now", "", "2026-02-03T12:30:00.0000000"]),
        ("timestamp", {}, ["294277-01-01T00:00:00", "0044-03-15T12:30 BC", "10000-01-01T00:00:00Z"]),
        ("timestamptz", {}, ["0001-01-01T00:00:00+02:00", "9999-12-31T23:00:00-02:00", "now"]),
        ("timestamptz", {}, ["0044-03-15T12:30:00+01:00 BC", "0044-03-15T12:30:00 BC"]),
        ("timestamptz", {}, ["2026-02-03T12:30:00.1234567Z", "2026-02-03T12:30:00,1234567Z"]),
        ("mood", {"labels": ("sad", "ok")}, ["SAD", ""]),
        ("uuid", {}, ["1"]),
        ("jsonb", {}, ["1"]),
    ],
)
def test_a_text_that_is_no_value_of_the_type_is_not_a_key(
    base_type: str, more: dict[str, Any], texts: list[str]
) -> None:
    key = column("key", base_type, "?", **more)
    for text in texts:
        with pytest.raises(InvalidValueError, match="is not a valid value of type"):
            key.canonical_key(text)
