"""The column values of a write."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date, time
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Self
from uuid import UUID

from cachesync.errors import InvalidValueError

if TYPE_CHECKING:
    from collections.abc import Mapping


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
            InvalidValueError: the document is not a JSON object.
        """
        try:
            text = document.decode() if isinstance(document, bytes) else document
            values = json.loads(text, parse_float=Decimal)
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
            values: the values by column name: any value that JSON can express, and also Decimal, UUID, date,
                time and datetime, which PostgreSQL parses from their text.

        Raises:
            InvalidValueError: a value has another type.
        """
        return cls(_encoded(dict(values)), values)

    @property
    def columns(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(self.values)

    def only(self, column: str) -> str:
        """Return the JSON text of an object with only the given column."""
        return _encoded({column: self.values[column]})

    def key_text(self, column: str) -> str | None:
        """Return the value of the key column as text; None if it is not given."""
        return str(self.values[column]) if column in self.values else None


def _encoded(values: dict[str, Any]) -> str:
    texts = []
    for name, value in values.items():
        try:
            text = json.dumps(value, default=_text, ensure_ascii=False, allow_nan=False)
        except (TypeError, ValueError, RecursionError) as error:
            raise InvalidValueError(name, str(error)) from error
        texts.append(f"{json.dumps(name)}: {text}")
    return f"{{{', '.join(texts)}}}"


def _text(value: object) -> str:
    if isinstance(value, Decimal | UUID):
        return str(value)
    if isinstance(value, date | time):
        return value.isoformat()
    message = f"a {type(value).__name__} cannot be the value of a column"
    raise TypeError(message)
