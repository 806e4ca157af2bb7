"""The JSON Schemas of an entity, made from the columns that PostgreSQL's catalogue describes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cachesync.postgres.catalogue import Column
    from cachesync.service.cache import EntityCache

Schema = dict[str, Any]

# A number, or the text that PostgreSQL gives for what JSON has no number for.
_FLOAT: Final[Schema] = {"type": ["number", "string"], "pattern": "^(NaN|Infinity|-Infinity)$"}
_ANYTHING: Final[Schema] = {"type": ["object", "array", "string", "number", "boolean"]}
_BY_TYPE: Final[dict[str, Schema]] = {
    "bool": {"type": "boolean"},
    "float4": {**_FLOAT, "minimum": -3.4028235e38, "maximum": 3.4028235e38},
    "float8": {**_FLOAT, "minimum": -1.7976931348623157e308, "maximum": 1.7976931348623157e308},
    "json": _ANYTHING,
    "jsonb": _ANYTHING,
}
# U: an extension's type may have a JSON of any shape.
_BY_CATEGORY: Final[dict[str, Schema]] = {"A": {"type": "array"}, "C": {"type": "object"}, "U": _ANYTHING}
# What else is of category U: its JSON is a string.
_OPAQUE: Final = frozenset({"uuid", "bytea", "xml", "tsvector", "tsquery", "pg_lsn"})
_FORMATS: Final = {"date": "date", "timestamptz": "date-time", "uuid": "uuid"}


def column_schema(column: Column) -> Schema:
    """What a column's values are in JSON."""
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
    """A row as it is served: every column."""
    properties = {column.name: column_schema(column) for column in columns}
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
    }


def insert_schema(cache: EntityCache) -> Schema:
    """A row to insert: what neither has a default nor takes null is required."""
    return _write_schema(cache.columns, required=_required(cache.columns))


def replace_schema(cache: EntityCache) -> Schema:
    """A row to put in another's place: the key may be left to the path."""
    others = (column for column in cache.columns if column.name != cache.key_column.name)
    return _write_schema(cache.columns, required=_required(others))


def patch_schema(cache: EntityCache) -> Schema:
    """A merge patch of a row: everything may be left out."""
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
    # The bounds are integers, which every reader of the schema takes exactly.
    bound = 10 ** max(0, precision - scale)
    return {**_FLOAT, "pattern": "^NaN$", "exclusiveMinimum": -bound, "exclusiveMaximum": bound}


def _text_schema(column: Column) -> Schema:
    if column.labels is not None:
        return {"type": "string", "enum": list(column.labels)}
    if column.base_type in _FORMATS:
        # How values are served. What is written PostgreSQL itself judges, which takes more spellings.
        return {"type": "string", "format": _FORMATS[column.base_type]}
    # PostgreSQL stores no NUL in a text. Spelled so that every dialect of regular expressions reads it alike.
    schema: Schema = {"type": "string", "pattern": "^[^\\u0000]*$"}
    if column.max_length is not None:
        schema["maxLength"] = column.max_length
    return schema
