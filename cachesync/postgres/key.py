"""The key of an entity: its columns, and the text that names a row in slots, messages, and the change log.

The text of a key of one column is the canonical text of its value. That of several columns is the canonical
texts of their values, joined as `cachesync.key_text` does it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Final, Self

from cachesync import key_text
from cachesync.errors import InvalidValueError
from cachesync.key_text import SEPARATOR
from cachesync.postgres.canonical import can_have_any_character, canonical_expression
from cachesync.postgres.statements import identifier, statement

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from cachesync.entity import Entity
    from cachesync.postgres.catalog import Column

# The operators of the functions that every write calls have their schema.
_EQUAL: Final = "OPERATOR(pg_catalog.=)"
_UNEQUAL: Final = "OPERATOR(pg_catalog.<>)"
_JOIN: Final = f" OPERATOR(pg_catalog.||) '{SEPARATOR}' OPERATOR(pg_catalog.||) "


@dataclass(frozen=True, slots=True)
class Key:
    """The columns of a key. The methods that return SQL qualify every name.

    Attributes:
        columns: the columns, in the order of the primary key.
    """

    columns: tuple[Column, ...]

    @classmethod
    def of(cls, entity: Entity, columns: Iterable[Column]) -> Self:
        """Return the key of an entity.

        Args:
            entity: the entity.
            columns: the columns of its table.
        """
        by_name = {column.name: column for column in columns}
        return cls(tuple(by_name[name] for name in entity.key))

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the columns."""
        return tuple(column.name for column in self.columns)

    @property
    def generated(self) -> bool:
        """Whether a client cannot choose the key, because only PostgreSQL can write a part of it."""
        return any(column.generated for column in self.columns)

    def canonical(self, given: object) -> str:
        """Return the text of a key in canonical form.

        Args:
            given: the text in any spelling of its values, or a sequence with the text of each column's value.

        Raises:
            InvalidValueError: this cannot be the key of a row.
        """
        if isinstance(given, tuple | list):
            texts: Sequence[object] = given
        elif len(self.columns) == 1:
            return self.columns[0].canonical_key(given)
        elif isinstance(given, str):
            texts = self.parts(given)
        else:
            message = f"a key is text, or a text for each of its columns, not {type(given).__name__}"
            raise InvalidValueError(None, message)
        if len(texts) != len(self.columns):
            message = f"a key has a part for each of {', '.join(self.names)}, separated by {SEPARATOR}"
            raise InvalidValueError(None, message)
        return self.text_of(
            [column.canonical_key(text) for column, text in zip(self.columns, texts, strict=True)]
        )

    def text_of(self, parts: Sequence[str]) -> str:
        """Return the text of the key with these canonical texts of its columns' values."""
        return key_text.joined(parts)

    def parts(self, text: str) -> list[str]:
        """Return the text of each column's value."""
        return key_text.split(text, len(self.columns))

    def in_view(self) -> Key:
        """Return the key as the columns of the entity's view."""
        if len(self.columns) == 1:
            return Key((replace(self.columns[0], name="key"),))
        return Key(
            tuple(replace(column, name=f"key_{number}") for number, column in enumerate(self.columns, 1))
        )

    def view_columns(self, row: str) -> str:
        """Return the expressions for the columns of `in_view`; for several, their text precedes them."""
        values = [
            f"{_value(row, column)} AS {identifier(shown.name)}"
            for column, shown in zip(self.columns, self.in_view().columns, strict=True)
        ]
        return values[0] if len(values) == 1 else ", ".join([f"{self.text(row)} AS key", *values])

    def text(self, row: str) -> str:
        """Return the expression for the text of a row's key."""
        texts = [canonical_expression(column, _value(row, column)) for column in self.columns]
        if len(texts) == 1:
            return texts[0]
        parts = [
            statement("postgres/escaped", text=text).strip() if can_have_any_character(column) else text
            for column, text in zip(self.columns, texts, strict=True)
        ]
        return f"({_JOIN.join(parts)})"

    def matches(self, row: str, text: str) -> str:
        """Return the condition that a row has the key with a text, which must be in canonical form."""
        values = self._values(text)
        return _all(
            f"{_comparable(row, column)} {_EQUAL} {value}"
            for column, value in zip(self.columns, values, strict=True)
        )

    def follows(self, row: str, text: str) -> str:
        """Return the condition that a row follows the key with a text."""
        rows = ", ".join(_comparable(row, column) for column in self.columns)
        return f"({rows}) > ({', '.join(self._values(text))})"

    def same(self, one: str, other: str) -> str:
        """Return the condition that two rows have the same key."""
        return _all(
            f"{_comparable(one, column)} {_EQUAL} {_comparable(other, column)}" for column in self.columns
        )

    def differs(self, one: str, other: str) -> str:
        """Return the condition that two rows have different keys."""
        return _any(
            f"{_comparable(one, column)} {_UNEQUAL} {_comparable(other, column)}" for column in self.columns
        )

    def is_unknown(self, row: str) -> str:
        """Return the condition that a part of a row's key is null."""
        return _any(f"{_value(row, column)} IS NULL" for column in self.columns)

    def listed(self, row: str) -> str:
        """Return the columns, separated by commas, by which rows are in the order of their keys."""
        return ", ".join(_value(row, column) for column in self.columns)

    def _values(self, text: str) -> list[str]:
        """Return the expressions for the values of the columns in the text of a key."""
        if len(self.columns) == 1:
            return [f"{text}::{self.columns[0].sql_type}"]
        return [
            f"{_part(column, text, number)}::{column.sql_type}"
            for number, column in enumerate(self.columns, 1)
        ]


def _part(column: Column, text: str, number: int) -> str:
    part = statement("postgres/part", text=text, number=str(number)).strip()
    return statement("postgres/unescaped", text=part).strip() if can_have_any_character(column) else part


def _value(row: str, column: Column) -> str:
    return f"{row}.{identifier(column.name)}"


def _comparable(row: str, column: Column) -> str:
    value = _value(row, column)
    # The operators of enums do not take domains over them. An index is used all the same.
    return value if column.labels is None else f"{value}::{column.sql_type}"


def _all(conditions: Iterable[str]) -> str:
    return f"({' AND '.join(conditions)})"


def _any(conditions: Iterable[str]) -> str:
    return f"({' OR '.join(conditions)})"
