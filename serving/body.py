"""The body of a write: read, validated against the entity's schema, and passed on as the client wrote it.

Numbers are never converted to floats. PostgreSQL gets the digits that the client sent.
"""

from __future__ import annotations

import json
import re
from decimal import Decimal, InvalidOperation
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NoReturn

from jsonschema_rs import Draft202012Validator

from cachesync.errors import CaptureLostError, InvalidValueError
from cachesync.service.row_input import RowInput, exact_integer, text_of
from serving import problems
from serving.problems import FieldError, Kind, Problem, field_problem
from serving.schema import insert_schema, patch_schema, replace_schema

if TYPE_CHECKING:
    from collections.abc import Iterator

    from jsonschema_rs import ValidationError

    from cachesync.service.cache import EntityCache
    from serving.request import Request
    from serving.schema import Schema

JSON: Final = "application/json"
MERGE_PATCH: Final = "application/merge-patch+json"

# Deep enough for any table, and within the recursion limits of later readers.
_MAX_DEPTH: Final = 64
# The maximum digits of PostgreSQL's numeric before and after the decimal point.
_MAX_DIGITS: Final = 131_072
_MAX_DECIMALS: Final = 16_383
_MAX_ERRORS: Final = 20
_EXPONENT_DIGITS: Final = 6
# Shorter numbers can be written with all of their digits.
_SHORT_DIGITS: Final = 40
# With as many zeros and underscores as PostgreSQL accepts.
_EXPONENT: Final = re.compile(r"(?<=[0-9.])[eE]([+-]?)([0-9_]+)")
# PostgreSQL reads hexadecimal, octal and binary integers in quadratic time: 50 ms for 14,000 hex digits,
# 2.5 s for 100,000.
_NON_DECIMAL: Final = re.compile(r"0[xXoObB]([0-9a-fA-F_]+)")
_QUADRATIC: Final = 1_000
# Arrays, composite values, ranges and JSON paths, whose numbers can be in strings.
_CATEGORIES_WITH_NUMBERS: Final = frozenset("ACR")
_TYPES_WITH_NUMBERS: Final = frozenset({"jsonpath"})
_TYPES_WITHOUT_NUMBERS: Final = frozenset({"_text", "_varchar", "_bpchar", "_jsonb"})
_SPACE: Final = re.compile(r"[ \t\n\r]*")

_KINDS: Final = {
    "required": problems.MISSING_FIELD,
    "additionalProperties": problems.UNKNOWN_FIELD,
    "type": problems.WRONG_TYPE,
    "minimum": problems.OUT_OF_RANGE,
    "maximum": problems.OUT_OF_RANGE,
    "exclusiveMinimum": problems.OUT_OF_RANGE,
    "exclusiveMaximum": problems.OUT_OF_RANGE,
    "maxLength": problems.TOO_LONG,
}


class Bodies:
    """Parses and validates the bodies of one entity's writes.

    All methods raise a Problem if the body is not valid for the entity. If the table may no longer be as
    described, they raise a CaptureLostError instead.

    Args:
        cache: the entity's cache, which has the columns.
        limit: maximum size of a body in bytes.
    """

    def __init__(self, cache: EntityCache, limit: int) -> None:
        self._cache = cache
        self._limit = limit
        self._describe()

    def _describe(self) -> None:
        cache = self._cache
        self._columns = cache.columns
        self._key = cache.key
        self._integers = frozenset(
            column.name for column in cache.columns if column.integer_range is not None
        )
        self._generated = frozenset(column.name for column in cache.columns if column.generated)
        self._texts_of_numbers = frozenset(
            column.name
            for column in cache.columns
            if column.base_type in _TYPES_WITH_NUMBERS
            or (
                column.category in _CATEGORIES_WITH_NUMBERS and column.base_type not in _TYPES_WITHOUT_NUMBERS
            )
        )
        self._insert = _validator(insert_schema(cache))
        self._replace = _validator(replace_schema(cache))
        self._patch = _validator(patch_schema(cache))

    async def to_insert(self, request: Request) -> RowInput:
        """Return the row in the body of a POST."""
        text, members = await self._read(request, JSON)
        self._validate(self._insert, members)
        return self._exact(text, members)

    async def to_replace(self, request: Request, key: str) -> RowInput:
        """Return the row in the body of a PUT, with the key from the path added.

        Args:
            request: the request.
            key: the key in the path.
        """
        text, members = await self._read(request, JSON)
        self._validate(self._replace, members)
        self._compare_key(members, key)
        row = self._exact(text, members)
        missing = {
            column.name: int(part) if column.name in self._integers else part
            for column, part in zip(self._key.columns, self._key.parts(key), strict=True)
            if column.name not in members and not column.generated
        }
        if not missing:
            return row
        start = row.text.index("{") + 1
        added = ",".join(f"{json.dumps(name)}:{json.dumps(value)}" for name, value in missing.items())
        comma = "," if members else ""
        text = f"{row.text[:start]}{added}{comma}{row.text[start:]}"
        return RowInput(text, {**missing, **row.values})

    async def to_merge(self, request: Request, key: str) -> RowInput:
        """Return the merge patch in the body of a PATCH.

        Args:
            request: the request.
            key: the key in the path.
        """
        text, members = await self._read(request, MERGE_PATCH, JSON)
        self._validate(self._patch, members)
        self._compare_key(members, key)
        return self._exact(text, members)

    async def _read(self, request: Request, *media_types: str) -> tuple[str, dict[str, Any]]:
        if self._cache.columns is not self._columns:
            self._describe()
        _require_media_type(request, media_types)
        declared = request.content_length
        if declared is not None and declared > self._limit:
            self._refuse_length()
        data = await request.stream.read(self._limit + 1)
        if len(data) > self._limit:
            self._refuse_length()
        if declared is not None and len(data) < declared:
            raise Problem(problems.REQUEST_TIMEOUT, f"received {len(data)} of {declared} bytes")
        try:
            text = data.decode()
        except UnicodeDecodeError as error:
            detail = f"invalid UTF-8 at byte offset {error.start}"
            raise Problem(problems.INVALID_ENCODING, detail) from None
        return text, self._parse(text)

    def _refuse_length(self) -> NoReturn:
        detail = f"the body must not exceed {self._limit} bytes"
        raise Problem(problems.BODY_TOO_LARGE, detail)

    def _parse(self, text: str) -> dict[str, Any]:
        """Return the members of a JSON object with exact numbers."""
        members = _decode(text)
        size = len(text)
        for name, value in members.items():
            try:
                _require_text(name)
                size += _growth(value, 1, texts=name in self._texts_of_numbers)
            except _UnstorableError as error:
                raise field_problem(error.kind, FieldError(name, error.message)) from None
        # 1e131071 has eight characters, and in PostgreSQL's JSON 131,072.
        if size > self._limit:
            detail = f"with its numbers, the body counts as {size} characters; at most {self._limit}"
            raise Problem(problems.BODY_TOO_LARGE, detail)
        return members

    def _validate(self, validator: Draft202012Validator, members: dict[str, Any]) -> None:
        try:
            errors = list(validator.iter_errors(members))
        except ValueError:
            # The validator converts integers, which Python refuses for more than 4,300 digits.
            errors = list(validator.iter_errors({name: _rounded(value) for name, value in members.items()}))
        found = list(islice((finding for error in errors for finding in self._findings(error)), _MAX_ERRORS))
        # The table may have changed since it was described, and the body may be right.
        if found and self._cache.problem is not None:
            raise CaptureLostError(self._cache.problem)
        if found:
            raise field_problem(found[0][0], *(finding for _, finding in found))

    def _findings(self, error: ValidationError) -> Iterator[tuple[Kind, FieldError]]:
        match error.kind.as_dict():
            case {"property": str(name)}:
                yield problems.MISSING_FIELD, FieldError(name, "is required")
            case {"unexpected": list(names)}:
                for name in names:
                    if name in self._generated:
                        yield problems.READ_ONLY_FIELD, FieldError(name, "is generated by the database")
                    else:
                        yield problems.UNKNOWN_FIELD, FieldError(name, "is not a field of this entity")
            case _:
                kind = _KINDS.get(error.kind.name, problems.INVALID_VALUE)
                yield kind, FieldError(str(error.instance_path[0]), error.message)

    def _compare_key(self, members: dict[str, Any], key: str) -> None:
        for column, part in zip(self._key.columns, self._key.parts(key), strict=True):
            if column.name not in members:
                continue
            given = members[column.name]
            if column.name in self._integers and not isinstance(given, str):
                # The schema also accepts 1.0 and 1e2.
                given = int(given)
            try:
                canonical = column.canonical_key(text_of(given))
            except InvalidValueError as error:
                raise field_problem(problems.INVALID_VALUE, FieldError(column.name, error.message)) from None
            if canonical != part:
                raise field_problem(
                    problems.KEY_MISMATCH,
                    FieldError(column.name, f"must be the key in the path, {part!r}, or omitted"),
                )

    def _exact(self, text: str, members: dict[str, Any]) -> RowInput:
        """Write integers such as 1.0 and 1e2 the way PostgreSQL parses them: 1 and 100."""
        odd = {name: int(value) for name, value in members.items() if self._is_odd(name, value)}
        if not odd:
            return RowInput(text, members)
        pieces = []
        done = 0
        for name, start, end in _spans(text):
            if name in odd:
                pieces += [text[done:start], str(odd[name])]
                done = end
        return RowInput("".join([*pieces, text[done:]]), members | odd)

    def _is_odd(self, name: str, value: object) -> bool:
        return name in self._integers and isinstance(value, Decimal)


def _validator(schema: Schema) -> Draft202012Validator:
    return Draft202012Validator(schema, validate_formats=False)


def _require_media_type(request: Request, accepted: tuple[str, ...]) -> None:
    name, _, parameters = (request.content_type or "").partition(";")
    charset = parameters.strip().lower().replace('"', "")
    if name.strip().lower() not in accepted or charset not in {"", "charset=utf-8"}:
        header = "Accept-Patch" if request.method == "PATCH" else "Accept"
        message = f"must be {' or '.join(accepted)}, encoded in UTF-8"
        raise field_problem(
            problems.UNSUPPORTED_MEDIA_TYPE,
            FieldError("Content-Type", message),
            headers={header: ", ".join(accepted)},
        )


def _rounded(value: object) -> object:
    """Return a value that the schema accepts or rejects for the same reason, without long integers."""
    match value:
        case Decimal():
            return Decimal(f"{'-' if value.is_signed() else ''}1E{value.adjusted()}")
        case dict():
            return {}
        case list():
            return []
    return value


def _decode(text: str) -> dict[str, Any]:
    try:
        members = _DECODER.decode(text)
    except json.JSONDecodeError as error:
        detail = f"{error.msg} at line {error.lineno}, column {error.colno}"
        raise Problem(problems.MALFORMED_JSON, detail) from None
    except RecursionError:
        raise _too_deep() from None
    if not isinstance(members, dict):
        raise Problem(problems.NOT_AN_OBJECT, "the body must be an object whose members are the row's fields")
    return members


class _UnstorableError(Exception):
    """A value that PostgreSQL cannot store in any column."""

    def __init__(self, kind: Kind, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


def _growth(value: object, depth: int, *, texts: bool) -> int:
    """Return how many characters a value grows by if PostgreSQL writes its numbers out in full.

    The time that numbers take PostgreSQL counts as characters, too.

    Args:
        value: the value.
        depth: the number of objects and arrays that contain it.
        texts: whether its strings can be numbers.

    Raises:
        _UnstorableError: PostgreSQL cannot store the value.
    """
    growth = 0
    if isinstance(value, str):
        _require_text(value)
        if texts:
            growth = sum(_zeros(_exponent(*match.groups())) for match in _EXPONENT.finditer(value))
            growth += sum(len(match[1]) ** 2 // _QUADRATIC for match in _NON_DECIMAL.finditer(value))
    elif isinstance(value, Decimal):
        growth = _require_number(value)
    elif isinstance(value, dict | list):
        if depth == _MAX_DEPTH:
            raise _too_deep()
        if isinstance(value, dict):
            for name in value:
                _require_text(name)
            value = list(value.values())
        growth = sum(_growth(item, depth + 1, texts=texts) for item in value)
    return growth


def _require_text(text: str) -> None:
    if "\0" in text:
        raise _UnstorableError(problems.INVALID_TEXT, "must not contain the character NUL")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _UnstorableError(problems.INVALID_TEXT, "must not contain an unpaired surrogate") from None


def _require_number(number: Decimal) -> int:
    _, digits, exponent = number.as_tuple()
    if not isinstance(exponent, int) or number.adjusted() >= _MAX_DIGITS or -exponent > _MAX_DECIMALS:
        raise _UnstorableError(problems.OUT_OF_RANGE, "is a number that PostgreSQL cannot store")
    return _zeros(exponent if exponent > 0 else min(0, exponent + len(digits)))


def _exponent(sign: str, digits: str) -> int:
    """Return an exponent; 0 if it is so large that PostgreSQL refuses the number."""
    significant = digits.replace("_", "").lstrip("0")
    return int(f"{sign}{significant or 0}") if len(significant) <= _EXPONENT_DIGITS else 0


def _zeros(exponent: int) -> int:
    """Return how many zeros replace an exponent; 0 if they are few, or if PostgreSQL refuses the number."""
    most = _MAX_DIGITS if exponent > 0 else _MAX_DECIMALS
    return abs(exponent) if _SHORT_DIGITS < abs(exponent) <= most else 0


def _too_deep() -> Problem:
    return Problem(problems.TOO_DEEP, f"objects and arrays can be nested up to {_MAX_DEPTH} levels deep")


def _decimal(digits: str) -> Decimal:
    try:
        return Decimal(digits)
    except InvalidOperation:
        return Decimal("Infinity")


def _refuse_constant(name: str) -> NoReturn:
    message = f"{name} is not a JSON value"
    raise Problem(problems.MALFORMED_JSON, message)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members: dict[str, Any] = {}
    for name, value in pairs:
        if name in members:
            raise field_problem(problems.DUPLICATE_MEMBER, FieldError(name, "appears twice in one object"))
        members[name] = value
    return members


_DECODER: Final = json.JSONDecoder(
    object_pairs_hook=_distinct,
    parse_int=exact_integer,
    parse_float=_decimal,
    parse_constant=_refuse_constant,
)


def _spans(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield the name of each member of a well-formed object, and where its value starts and ends."""
    at = _after_space(text, text.index("{") + 1)
    while text[at] != "}":
        name, at = _DECODER.raw_decode(text, at)
        start = _after_space(text, _after_space(text, at) + 1)
        _, at = _DECODER.raw_decode(text, start)
        yield name, start, at
        at = _after_space(text, at)
        if text[at] == ",":
            at = _after_space(text, at + 1)


def _after_space(text: str, at: int) -> int:
    match = _SPACE.match(text, at)
    assert match is not None  # noqa: S101 - it matches the empty string
    return match.end()
