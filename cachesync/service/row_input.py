"""The column values of a write."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Final, NoReturn, Self
from uuid import UUID

from cachesync.errors import InvalidValueError

if TYPE_CHECKING:
    from types import UnionType

_MAX_INT_DIGITS: Final = 18


@dataclass(frozen=True, slots=True)
class RowInput:
    """Values for columns of a row, with the JSON text from which PostgreSQL reads them.

    The text is parsed once and passed to PostgreSQL unchanged, so that no digit of a number is lost.

    Attributes:
        text: a JSON object with one member per column.
        values: the members, decoded.
    """

    text: str
    values: Mapping[str, Any]

    @classmethod
    def from_json(cls, document: bytes | str) -> Self:
        """Parse a JSON object with one member per column.

        Raises:
            InvalidValueError: the document is not a JSON object, or an object in it has a member twice.
        """
        _require_type(document, bytes | bytearray | memoryview | str, "a JSON document is bytes or text")
        try:
            text = document if isinstance(document, str) else bytes(document).decode()
            values = _DECODER.decode(text)
        except (ValueError, RecursionError) as error:
            message = f"not a JSON document: {error}"
            raise InvalidValueError(None, message) from error
        if not isinstance(values, dict):
            message = f"a row must be a JSON object, not {type(values).__name__}"
            raise InvalidValueError(None, message)
        return cls(text, values)

    @classmethod
    def from_mapping(cls, values: Mapping[str, Any]) -> Self:
        """Encode Python values.

        Args:
            values: the values by column name: any value that JSON can express; Decimal, which keeps all of
                its digits; and UUID, date, time and datetime, which PostgreSQL parses from their text.

        Raises:
            InvalidValueError: a value has another type, or is a number that JSON cannot express.
        """
        _require_type(values, Mapping, "the values of a row are a mapping")
        # A copy: a column that the caller adds later would be null in the text.
        values = dict(values)
        return cls(_encode_row(values), values)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self.values)

    def only(self, column: str) -> str:
        """Return the JSON text of an object with only the given column."""
        return _encode_row({column: self.values[column]})

    def key_text(self, column: str) -> str | None:
        """Return the value of a key column as PostgreSQL's text; None if it is not given."""
        if column not in self.values:
            return None
        return text_of(self.values[column])


def text_of(value: object) -> str:
    """Return a value of a key column as PostgreSQL's text."""
    if isinstance(value, str | UUID):
        return str(value)
    return value.isoformat() if isinstance(value, date | time) else _encode(value)


def _require_type(value: object, expected: type | UnionType, rule: str) -> None:
    if not isinstance(value, expected):
        message = f"{rule}, not {type(value).__name__}"
        raise InvalidValueError(None, message)


def _encode_row(values: Mapping[Any, Any]) -> str:
    members = []
    for name, value in values.items():
        if not isinstance(name, str):
            message = f"the name of a column is text, not {type(name).__name__}"
            raise InvalidValueError(repr(name), message)
        try:
            members.append(f"{json.dumps(name)}: {_encode(value)}")
        except (TypeError, ValueError) as error:
            raise InvalidValueError(name, str(error)) from error
        except RecursionError as error:
            message = "nested too deeply"
            raise InvalidValueError(name, message) from error
    return f"{{{', '.join(members)}}}"


def _encode(value: object) -> str:
    """Encode a value as JSON, which the standard library cannot do for a Decimal."""
    match value:
        case Decimal() if value.is_finite():
            return str(value)
        case Decimal():
            message = f"{value} is not a JSON number"
            raise ValueError(message)
        case UUID():
            return json.dumps(str(value))
        case date() | time():
            return json.dumps(value.isoformat())
        case dict():
            if not all(isinstance(name, str) for name in value):
                message = "the names of an object's members are text"
                raise TypeError(message)
            return f"{{{', '.join(f'{json.dumps(name)}: {_encode(item)}' for name, item in value.items())}}}"
        case list() | tuple():
            return f"[{', '.join(map(_encode, value))}]"
        case None | str() | bool() | int() | float():
            return json.dumps(value, allow_nan=False)
    message = f"a {type(value).__name__} cannot be the value of a column"
    raise TypeError(message)


def exact_integer(digits: str) -> int | Decimal:
    """Decode an integer of JSON, as a Decimal if it is long: Python refuses to convert very long ones."""
    return int(digits) if len(digits) <= _MAX_INT_DIGITS else Decimal(digits)


def _decimal(digits: str) -> Decimal:
    try:
        return Decimal(digits)
    except InvalidOperation as error:
        message = "a number has too large an exponent"
        raise ValueError(message) from error


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            message = f"an object has the member {name!r} twice"
            raise ValueError(message)
        members[name] = value
    return members


def _refuse_constant(name: str) -> NoReturn:
    message = f"JSON has no {name}"
    raise ValueError(message)


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_distinct,
    parse_int=exact_integer,
    parse_float=_decimal,
    parse_constant=_refuse_constant,
)
