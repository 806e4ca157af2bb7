"""Unique lookups: which row has a value in unique columns.

A lookup of an entity has a name of its own, in which `@` separates the entity from the columns, and which
takes the place of the entity in the names of its slots: `sb:customer@email:ann@example.com`. No entity's name
has an `@`, so that these are no slots of rows.

The text of a value is found in the payload of a row alone, because a stream knows no types: each value as
JSON has it, without the zeros at the end of a number's fraction, and joined as `cachesync.key_text` does it.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, Final, TypeAlias
from urllib.parse import quote

from cachesync.key_text import joined

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

Lookups: TypeAlias = "Mapping[str, Sequence[str]]"
"""The columns of each unique lookup of an entity, by their name."""
Values = dict[str, str | None]
"""The text of a row's value in each lookup, by the name of its columns; None if one of them is null."""


def columns_name(columns: Iterable[str]) -> str:
    """Return the name of the columns of a lookup, which has no character with a meaning in a slot's name."""
    return ",".join(quote(column, safe="") for column in columns)


def lookup_name(entity: str, name: str) -> str:
    """Return what takes the place of the entity in the names of a lookup's slots.

    Args:
        entity: the name of the entity.
        name: the name of the columns; empty for the beginning that all lookups of the entity share.
    """
    return f"{entity}@{name}"


def values_in(lookups: Lookups, payload: bytes) -> Values | None:
    """Return the values that a row has in the lookups of its entity; None if the payload does not tell.

    Args:
        lookups: the lookups.
        payload: the payload of the row.
    """
    try:
        row: dict[str, Any] = _DECODER.decode(payload.decode())
        return {name: _text([row[column] for column in columns]) for name, columns in lookups.items()}
    except (ValueError, TypeError, KeyError, RecursionError):
        # The row had other columns, or is nested deeper than this can read.
        return None


def encode_values(values: Values | None) -> bytes:
    """Encode values for the header of a message; empty if they are not known."""
    return b"" if values is None else json.dumps(values, separators=(",", ":")).encode()


def decode_values(lookups: Lookups, encoded: bytes) -> Values | None:
    """Return the values for the lookups of an entity in a header; None if it does not have all of them."""
    try:
        given: Mapping[str, Any] = json.loads(encoded)
        values = {name: given[name] for name in lookups}
    except (ValueError, TypeError, KeyError, RecursionError):
        return None
    return values if all(value is None or isinstance(value, str) for value in values.values()) else None


def _text(values: Sequence[Any]) -> str | None:
    if any(value is None for value in values):
        return None
    return joined([_TEXTS[value] if isinstance(value, bool) else _required(value) for value in values])


def _required(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError
    return value


def _plain(number: str) -> str:
    return number.rstrip("0").removesuffix(".")


_TEXTS: Final = {True: "true", False: "false"}
# Making one takes longer than decoding a small payload.
_DECODER: Final = json.JSONDecoder(parse_int=str, parse_float=_plain)
