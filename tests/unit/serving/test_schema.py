"""The JSON Schema of a column follows from PostgreSQL's catalog."""

from __future__ import annotations

from decimal import Decimal
from typing import Any

import pytest
from jsonschema_rs import Draft202012Validator

from serving.schema import column_schema, insert_schema, patch_schema, replace_schema, row_schema
from tests.unit.serving.stand_in import WORD, MemoryCache, column


@pytest.mark.parametrize(
    ("base_type", "category", "more", "taken", "refused"),
    [
        ("int2", "N", {}, [-32768, 32767], [-32769, 32768, 1.5, "1", True]),
        ("int4", "N", {}, [-(2**31), 2**31 - 1], [-(2**31) - 1, 2**31]),
        ("int8", "N", {}, [-(2**63), 2**63 - 1], [-(2**63) - 1, 2**63, Decimal("1e400")]),
        ("numeric", "N", {}, [Decimal("1e1000"), "NaN", "-Infinity"], ["1", None]),
        (
            "numeric",
            "N",
            {"precision": 5, "scale": 2},
            [Decimal("999.99"), Decimal("-999.99"), "NaN"],
            [1000, -1000, "Infinity"],
        ),
        ("numeric", "N", {"precision": 3, "scale": -2}, [99999], [100000]),
        ("numeric", "N", {"precision": 2, "scale": 3}, [Decimal("0.099")], [1]),
        ("float4", "N", {}, [3.4e38, "NaN", "Infinity"], [3.5e38, "x"]),
        ("float8", "N", {}, [1.7e308], [Decimal("1.8e308")]),
        ("bool", "B", {}, [True, False], [0, "t"]),
        ("text", "S", {}, ["", "a\nb", "é" * 1000], ["a\0b", 1]),
        ("varchar", "S", {"max_length": 3}, ["äöü", "😀😀😀"], ["abcd"]),
        ("bpchar", "S", {"max_length": 2}, ["ab"], ["abc"]),
        ("mood", "E", {"labels": ("sad", "ok")}, ["sad"], ["SAD", None]),
        ("jsonb", "U", {}, [1, "x", [], {}, True], [None]),
        ("json", "U", {"nullable": True}, [1, None, {"a": [None]}], []),
        ("_int4", "A", {}, [[], [1, None], [[1]]], ["{1}", {}]),
        ("pair", "C", {}, [{"a": 1}], ["(1)"]),
        ("geometry", "U", {}, [{"type": "Point"}, "0101"], [None]),
        ("uuid", "U", {}, ["6f1c2a34-90ab-4cde-8f01-23456789abcd"], [1]),
        ("date", "D", {"nullable": True}, ["2026-02-03", None], [1]),
        ("money", "N", {}, ["$1.00"], [1]),
        ("oid", "N", {}, ["1"], [1]),
        ("inet", "I", {}, ["::1"], [1]),
        ("int4range", "R", {}, ["[1,2)"], [[1, 2]]),
    ],
)
def test_schema_accepts_and_rejects_values_by_type(
    base_type: str, category: str, more: dict[str, Any], taken: list[object], refused: list[object]
) -> None:
    validator = Draft202012Validator(column_schema(column("x", base_type, category, **more)))
    assert [value for value in taken if not validator.is_valid(value)] == []
    assert [value for value in refused if validator.is_valid(value)] == []


@pytest.mark.parametrize(
    ("base_type", "category", "form"),
    [
        ("date", "D", "date"),
        ("timestamptz", "D", "date-time"),
        ("uuid", "U", "uuid"),
        ("timestamp", "D", None),
    ],
)
def test_format_is_set_if_json_schema_has_one(base_type: str, category: str, form: str | None) -> None:
    assert column_schema(column("x", base_type, category)).get("format") == form


def test_row_requires_every_column() -> None:
    schema = row_schema(WORD)
    assert schema["required"] == ["word", "score", "details", "mood", "letters"]
    assert schema["properties"]["letters"]["readOnly"] is True
    assert schema["additionalProperties"] is False


def test_writes_require_columns_that_the_database_cannot_fill_in() -> None:
    columns = (
        column("id", "int4", "N"),
        column("needed", "text", "S"),
        column("defaulted", "text", "S", has_default=True),
        column("nullable", "text", "S", nullable=True),
        column("generated", "text", "S", generated=True),
    )
    cache: Any = MemoryCache("x", columns)
    assert insert_schema(cache)["required"] == ["id", "needed"]
    assert replace_schema(cache)["required"] == ["needed"]
    assert "required" not in patch_schema(cache)
    for schema in (insert_schema(cache), replace_schema(cache), patch_schema(cache)):
        assert list(schema["properties"]) == ["id", "needed", "defaulted", "nullable"]


def test_nullable_enum_accepts_null() -> None:
    schema = column_schema(column("x", "mood", "E", labels=("sad",), nullable=True))
    assert schema == {"type": ["string", "null"], "enum": ["sad", None]}
