"""The canonical text of the value of a key column: the same in SQL and here, and for all equal values.

PostgreSQL can read each of these texts as a value of its type, whatever the settings of the session are.
"""

from __future__ import annotations

import re
import uuid
from datetime import UTC, date, datetime, time
from decimal import Decimal
from typing import TYPE_CHECKING, Final, Protocol

from cachesync.postgres.statements import statement

if TYPE_CHECKING:
    from collections.abc import Callable


class Typed(Protocol):
    """What decides the texts of a column's values; see `Column`."""

    @property
    def base_type(self) -> str:
        """PostgreSQL's internal name of the type."""

    @property
    def max_length(self) -> int | None:
        """The maximum number of characters."""

    @property
    def precision(self) -> int | None:
        """The maximum number of digits of a numeric."""

    @property
    def scale(self) -> int | None:
        """The maximum number of digits after its decimal point."""

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The labels of an enum."""

    @property
    def cast_enum(self) -> bool:
        """Whether the enum has casts of its own."""


INTEGER_RANGES: Final = {
    name: (-(1 << bits - 1), (1 << bits - 1) - 1) for name, bits in (("int2", 16), ("int4", 32), ("int8", 64))
}
"""The minimum and maximum of each integer type."""

_INTEGER: Final = re.compile(r"0|-?[1-9][0-9]{0,18}")
_NUMBER: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]{1,6})?")
# The maximum digits of PostgreSQL's numeric before and after the decimal point.
_MAX_DIGITS: Final = 131_072
_MAX_DECIMALS: Final = 16_383
_ENDLESS: Final = frozenset({"infinity", "-infinity"})
# The last moment of a day, which is not that of the next day's beginning.
_MIDNIGHT: Final = "24:00:00"
# Python cuts off what PostgreSQL rounds.
_TOO_FINE: Final = re.compile(r".*[.,][0-9]{7}.*", re.DOTALL)
_DATED: Final = re.compile(r"([0-9]{4,7})(-[^ ]+)( BC)?")
# The calendar repeats itself after so many years.
_CYCLE: Final = 400
_FIRST_YEAR: Final = -4713
_FIRST_DAY: Final = "-11-24"
_LAST_YEARS: Final = {"date": 5_874_897, "timestamp": 294_276, "timestamptz": 294_276}


def is_storable(text: str) -> bool:
    """Return whether PostgreSQL can store a text: it has no NUL, and no unpaired surrogate."""
    try:
        return b"\0" not in text.encode()
    except UnicodeEncodeError:
        return False


def canonical_text(column: Typed, text: str) -> str | None:
    """Return the canonical text of a value of a key column.

    Args:
        column: the column.
        text: the value in one of its spellings.

    Returns:
        The canonical text; None if the column cannot have such a value.
    """
    if column.labels is not None:
        return text if text in column.labels else None
    canonical = _CANONICAL.get(column.base_type)
    try:
        return None if canonical is None else canonical(column, text)
    except (ValueError, OverflowError):
        return None


def canonical_expression(column: Typed, value: str) -> str:
    """Return the SQL expression for the canonical text of a value of a key column.

    Args:
        column: the column.
        value: the expression for the value.
    """
    return statement(f"postgres/text_of_{_EXPRESSIONS.get(column.base_type, 'any')}", value=value).strip()


def can_have_any_character(column: Typed) -> bool:
    """Return whether the texts of a key column are not made of digits, letters and a few other characters."""
    return column.labels is not None or column.base_type in _TEXTS


def _integer(column: Typed, text: str) -> str | None:
    low, high = INTEGER_RANGES[column.base_type]
    return text if _INTEGER.fullmatch(text) and low <= int(text) <= high else None


def _text(column: Typed, text: str) -> str | None:
    fits = column.max_length is None or len(text) <= column.max_length
    return text if fits and is_storable(text) else None


def _padded(column: Typed, text: str) -> str | None:
    return _text(column, text.rstrip(" "))


def _uuid(_column: Typed, text: str) -> str:
    return str(uuid.UUID(text))


def _boolean(_column: Typed, text: str) -> str | None:
    return text if text in {"true", "false"} else None


def _numeric(column: Typed, text: str) -> str | None:
    if text == "NaN" or (text in {"Infinity", "-Infinity"} and column.precision is None):
        return text
    if not _NUMBER.fullmatch(text):
        return None
    number = Decimal(text)
    if not number:
        return "0"
    exponent = number.as_tuple().exponent
    if number.adjusted() >= _MAX_DIGITS or not isinstance(exponent, int) or -exponent > _MAX_DECIMALS:
        return None
    whole, _, fraction = f"{number:f}".partition(".")
    fraction = fraction.rstrip("0")
    if not _fits(column, whole.lstrip("-0"), fraction):
        return None
    return f"{whole}.{fraction}" if fraction else whole


def _fits(column: Typed, whole: str, fraction: str) -> bool:
    """Return whether a numeric column can have a value with these digits."""
    if column.precision is None or column.scale is None:
        return True
    if len(whole) > max(0, column.precision - column.scale) or len(fraction) > max(0, column.scale):
        return False
    return column.scale >= 0 or whole.endswith("0" * -column.scale)


def _time(_column: Typed, text: str) -> str | None:
    # Newer versions of Python take 24:00 for 00:00.
    if text == _MIDNIGHT or text.removeprefix("T").startswith("24"):
        return text if text == _MIDNIGHT else None
    moment = time.fromisoformat(text)
    return None if moment.tzinfo is not None or _TOO_FINE.match(text) else _without_zeros(moment.isoformat())


def _dated(column: Typed, text: str) -> str | None:
    if text in _ENDLESS:
        return text
    near = _NEAR[column.base_type]
    found = _DATED.fullmatch(text)
    if found is None or not (found[3] or len(found[1]) > len("9999")):
        return near(text)
    # Python does not have these years. They have no other spelling here.
    number, rest = int(found[1]), found[2]
    year = 1 - number if found[3] else number
    is_canonical = number > 0 and found[1] == f"{number:04}"
    if not is_canonical or year > _LAST_YEARS[column.base_type]:
        return None
    if year < _FIRST_YEAR or (year == _FIRST_YEAR and rest < _FIRST_DAY):
        return None
    stand_in = f"{2000 + year % _CYCLE}{rest}"
    return text if near(stand_in) == stand_in else None


def _date(text: str) -> str:
    return date.fromisoformat(text).isoformat()


def _timestamp(text: str) -> str | None:
    moment = datetime.fromisoformat(text)
    return None if moment.tzinfo is not None or _TOO_FINE.match(text) else _without_zeros(moment.isoformat())


def _timestamptz(text: str) -> str | None:
    moment = datetime.fromisoformat(text)
    if _TOO_FINE.match(text):
        return None
    # The sessions of services have this time zone, too.
    in_utc = moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
    return _without_zeros(in_utc.replace(tzinfo=None).isoformat()) + "Z"


def _without_zeros(text: str) -> str:
    return text.rstrip("0") if "." in text else text


_NEAR: Final[dict[str, Callable[[str], str | None]]] = {
    "date": _date,
    "timestamp": _timestamp,
    "timestamptz": _timestamptz,
}
_TEXTS: Final = frozenset({"text", "varchar", "bpchar"})
_CANONICAL: Final[dict[str, Callable[[Typed, str], str | None]]] = {
    **dict.fromkeys(INTEGER_RANGES, _integer),
    "text": _text,
    "varchar": _text,
    "bpchar": _padded,
    "uuid": _uuid,
    "bool": _boolean,
    "numeric": _numeric,
    **dict.fromkeys(_NEAR, _dated),
    "time": _time,
}
# The other types have the same text in every session, and only one for each value. That of a `bpchar` is
# without the blanks at its end. JSON has ISO 8601 whatever DateStyle is.
_EXPRESSIONS: Final = {
    "numeric": "numeric",
    "date": "date",
    "timestamp": "date",
    "timestamptz": "timestamptz",
}

KEY_TYPES: Final = frozenset(_CANONICAL)
"""The built-in types whose values have a canonical text; enums have one, too."""

_REASONS: Final = {
    "citext": "which treats different texts as equal, in a way that depends on the locale of the database",
    "float4": "whose equal values can have different texts (0 and -0)",
    "float8": "whose equal values can have different texts (0 and -0)",
    "interval": "whose equal values can have different texts (1 day and 24 hours)",
    "money": "whose texts depend on the locale of the session",
    "bytea": "whose texts depend on the settings of the session",
}


def refusal(column: Typed) -> str:
    """Return why a column cannot be part of a key, as the continuation of `it has the type ..., `."""
    if column.cast_enum:
        return "an enum with casts of its own, which could run with the privileges of others"
    return _REASONS.get(column.base_type, "for which there is no canonical text")
