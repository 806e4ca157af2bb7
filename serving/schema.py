"""JSON Schemas of an entity, derived from its columns in PostgreSQL's catalog."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cachesync.postgres.catalog import Column
    from cachesync.service.cache import EntityCache

Schema = dict[str, Any]

# A number, or the string that PostgreSQL writes for a number that JSON cannot express.
_FLOAT: Final[Schema] = {"type": ["number", "string"], "pattern": "^(NaN|Infinity|-Infinity)$"}
_ANYTHING: Final[Schema] = {"type": ["object", "array", "string", "number", "boolean"]}
_BY_TYPE: Final[dict[str, Schema]] = {
    "bool": {"type": "boolean"},
    "float4": {**_FLOAT, "minimum": -3.4028235e38, "maximum": 3.4028235e38},
    "float8": {**_FLOAT, "minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308},
    "json": _ANYTHING,
    "jsonb": _ANYTHING,
}
# U: the JSON of an extension's type can have any shape.
_BY_CATEGORY: Final[dict[str, Schema]] = {"A": {"type": "array"}, "C": {"type": "object"}, "U": _ANYTHING}
# These types are of category U, too, but their JSON is a string.
_OPAQUE: Final = frozenset({"uuid", "bytea", "xml", "tsvector", "tsquery", "pg_lsn"})
_FORMATS: Final = {"date": "date", "timestamptz": "date-time", "uuid": "uuid"}


def column_schema(column: Column) -> Schema:
    """Return the schema of a column's values."""
    schema = _type_schema(column)
    if column.nullable:
        if "enum" in schema:
            schema["enum"] = [*schema["enum"], None]
        kinds = schema["type"]
        schema["type"] = [*([kinds] if isinstance(kinds, str) else kinds), "null"]
    if column.generated:
        schema["readOnly"] = True
    return schema


def row_schema(columns: Iterable[Column]) -> Schema:
    """Return the schema of a served row, which has every column."""
    properties = {column.name: column_schema(column) for column in columns}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def insert_schema(cache: EntityCache) -> Schema:
    """Return the schema of a row to insert. Columns without a default that are not nullable are required."""
    return _write_schema(cache.columns, required=_required(cache.columns))


def replace_schema(cache: EntityCache) -> Schema:
    """Return the schema of a row that replaces another. The key can be omitted, as it is in the path."""
    others = (column for column in cache.columns if column.name not in cache.key.names)
    return _write_schema(cache.columns, required=_required(others))


def patch_schema(cache: EntityCache) -> Schema:
    """Return the schema of a merge patch. Every column can be omitted."""
    return _write_schema(cache.columns, required=[])


def _required(columns: Iterable[Column]) -> list[str]:
    return [
        column.name for column in columns if not (column.nullable or column.has_default or column.generated)
    ]


def _write_schema(columns: Iterable[Column], required: list[str]) -> Schema:
    schema: Schema = {
        "type": "object",
        "properties": {column.name: column_schema(column) for column in columns if not column.generated},
        "additionalProperties": False,
    }
    if required:
        schema["required"] = required
    return schema


def _type_schema(column: Column) -> Schema:
    if column.integer_range is not None:
        low, high = column.integer_range
        return {"type": "integer", "minimum": low, "maximum": high}
    if column.base_type == "numeric":
        return _numeric_schema(column.precision, column.scale)
    if column.base_type in _BY_TYPE:
        return dict(_BY_TYPE[column.base_type])
    if column.category in _BY_CATEGORY and column.base_type not in _OPAQUE:
        return dict(_BY_CATEGORY[column.category])
    return _text_schema(column)


def _numeric_schema(precision: int | None, scale: int | None) -> Schema:
    if precision is None or scale is None:
        return dict(_FLOAT)
    # Integers, because every reader of the schema represents them exactly.
    bound = 10 ** max(0, precision - scale)
    return {**_FLOAT, "pattern": "^NaN$", "exclusiveMinimum": -bound, "exclusiveMaximum": bound}


def _text_schema(column: Column) -> Schema:
    if column.labels is not None:
        return {"type": "string", "enum": list(column.labels)}
    if column.base_type in _FORMATS:
        # The format of served values. Written values can have others; PostgreSQL validates them.
        return {"type": "string", "format": _FORMATS[column.base_type]}
    # PostgreSQL cannot store NUL in text. Every dialect of regular expressions understands this notation.
    schema: Schema = {"type": "string", "pattern": "^[^\\u0000]*$"}
    if column.max_length is not None:
        schema["maxLength"] = column.max_length
    return schema
