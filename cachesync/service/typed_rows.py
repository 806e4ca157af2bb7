"""Rows as Python values."""

from __future__ import annotations

import json
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TypeVar

from pydantic import PydanticUserError, TypeAdapter, ValidationError

from cachesync.errors import RowTypeError
from cachesync.service.row_input import exact_integer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachesync.change import Row
    from cachesync.postgres.catalog import Column

T = TypeVar("T")

_JSON: Final = frozenset({"json", "jsonb"})
_FLOATS: Final = frozenset({"float4", "float8"})


class RowDecoder:
    """Decodes the rows of an entity.

    Args:
        columns: the served columns.

    Attributes:
        columns: these columns.
    """

    def __init__(self, columns: Sequence[Column]) -> None:
        self.columns = columns
        types = {column.name: column.base_type for column in columns}
        self._numeric = [name for name, type_ in types.items() if type_ == "numeric"]
        self._floats = [name for name, type_ in types.items() if type_ in _FLOATS]
        self._json = [name for name, type_ in types.items() if type_ in _JSON]

    def decode(self, row: Row) -> dict[str, Any]:
        """Return a row as a dictionary of the values that JSON has for its columns.

        A `numeric` is a Decimal with all of its digits, and so is a number in an array or a composite value
        that has a fraction. A float is a float, and `json` is what `json.loads` makes of it.
        """
        values = _parsed(row.payload)
        for name in self._numeric:
            if values[name] is not None:
                values[name] = Decimal(values[name])
        for name in self._floats:
            if values[name] is not None:
                values[name] = float(values[name])
        for name in self._json:
            values[name] = _with_floats(values[name])
        return values

    def decode_as(self, row: Row, type_: type[T]) -> T:
        """Return a row as a pydantic model, a dataclass, or any other type that pydantic can validate.

        Raises:
            RowTypeError: the row does not have this type, or it is no such type.
        """
        of_any_kind: Any = type_
        try:
            adapter = _adapter(of_any_kind)
        # pydantic, and what a type itself defines for it, raise errors of any class.
        except Exception as error:
            raise _unusable(type_, error) from error
        try:
            # Texts become dates and the like only if it is not strict.
            value: T = adapter.validate_python(self.decode(row), strict=False)
        except PydanticUserError as error:
            raise _unusable(type_, error) from error
        except ValidationError as error:
            name = getattr(type_, "__name__", type_)
            message = f"the row with the key {row.key!r} is no {name}: {error}"
            raise RowTypeError(message) from error
        else:
            return value


def _unusable(type_: object, error: Exception) -> RowTypeError:
    return RowTypeError(f"as_ must be a type that pydantic can validate, not {type_!r}: {error}")


@cache
def _adapter(type_: Any) -> TypeAdapter[Any]:
    return TypeAdapter(type_)


def _parsed(payload: bytes) -> dict[str, Any]:
    values: dict[str, Any]
    try:
        values = json.loads(payload, parse_float=Decimal)
    except ValueError:
        # An integer with more digits than Python converts; PostgreSQL has numbers with up to 131,072.
        values = json.loads(payload, parse_float=Decimal, parse_int=exact_integer)
    return values


def _with_floats(value: Any) -> Any:
    """Return a value of JSON with floats instead of Decimals."""
    match value:
        case Decimal():
            return float(value)
        case dict():
            return {name: _with_floats(item) for name, item in value.items()}
        case list():
            return [_with_floats(item) for item in value]
    return value
