"""The HTTP resources of an entity: its rows, and a single row."""

from __future__ import annotations

import re
from keyword import iskeyword
from typing import TYPE_CHECKING, Final
from urllib.parse import parse_qsl, quote, urlencode

import orjson
from falcon import HTTPRouteNotFound

from cachesync.errors import DuplicateRowError, InvalidValueError, VersionMismatchError
from cachesync.lookup import columns_name
from cachesync.service.cache import Outcome
from serving import problems
from serving.conditions import creates_only, etag, expected_versions, none_match, refuse
from serving.hits import READ
from serving.problems import FieldError, Problem, field_problem
from serving.request import segment_text

if TYPE_CHECKING:
    from collections.abc import Mapping

    from falcon.asgi import Response

    from cachesync.postgres.key import Key
    from cachesync.service.cache import EntityCache, Read, Written
    from cachesync.service.row_input import RowInput
    from serving.body import Bodies
    from serving.request import Request

DEFAULT_PAGE: Final = 100
# The names that Falcon's router accepts.
_FIELD: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_NO_SUCH_KEY: Final = "no {} has this key"
_LIMIT: Final = re.compile(r"[1-9][0-9]{0,8}")


class Rows:
    """`/{path}`: lists the rows of an entity page by page, and inserts rows.

    Args:
        cache: the entity's cache.
        bodies: parses the bodies of its writes.
        page_limit: maximum number of rows per page.
    """

    def __init__(self, cache: EntityCache, bodies: Bodies, page_limit: int) -> None:
        self.entity = cache.entity.name
        self._cache = cache
        self._bodies = bodies
        self._path = cache.entity.path
        self._page_limit = page_limit

    async def on_get(self, req: Request, resp: Response) -> None:
        """Respond with a page of rows in key order, read from the database."""
        parameters = _parameters(req)
        limit = self._limit(parameters.get("limit"))
        req.outcome = Outcome.BYPASS
        try:
            page = await self._cache.page(parameters.get("after"), limit)
        except InvalidValueError as error:
            raise field_problem(problems.INVALID_PARAMETER, FieldError("after", error.message)) from None
        following = None
        if page.more:
            following = f"{self._path}?{urlencode({'after': page[-1].key, 'limit': limit})}"
            resp.set_header("Link", f'<{following}>; rel="next"')
        resp.data = b'{"items": [%b], "next": %b}' % (
            b", ".join([row.payload for row in page]),
            orjson.dumps(following),
        )

    on_head = on_get

    async def on_post(self, req: Request, resp: Response) -> None:
        """Insert a row."""
        refuse(req, "If-Match", "If-None-Match")
        row = await self._bodies.to_insert(req)
        written = await self._cache.insert(row)
        _answer(req, resp, written, self._cache)

    def _limit(self, text: str | None) -> int:
        if text is None:
            return min(DEFAULT_PAGE, self._page_limit)
        if not _LIMIT.fullmatch(text) or int(text) > self._page_limit:
            raise field_problem(
                problems.INVALID_PARAMETER,
                FieldError("limit", f"must be an integer from 1 to {self._page_limit}"),
            )
        return int(text)


class OneRow:
    """`/{path}/{key}`: reads and writes one row. A key of several columns has a segment for each.

    Args:
        cache: the entity's cache.
        bodies: parses the bodies of its writes.
    """

    def __init__(self, cache: EntityCache, bodies: Bodies) -> None:
        self.entity = cache.entity.name
        self._cache = cache
        self._bodies = bodies

    async def on_get(self, req: Request, resp: Response, /, **segments: str) -> None:
        """Read the row through the cache.

        A cached payload is sent as is, neither decoded nor encoded.
        """
        given = req.scope.get(READ)
        try:
            if isinstance(given, Exception):
                raise given
            read = given or await self._cache.read(self._texts(segments))
        except InvalidValueError as error:
            raise _invalid_key(error) from None
        _answer_read(req, resp, read, _NO_SUCH_KEY.format(self.entity))

    on_head = on_get

    async def on_put(self, req: Request, resp: Response, /, **segments: str) -> None:
        """Replace the row, or create it if it does not exist."""
        key = self._key(segments)
        if self._cache.key.generated:
            refuse(req, "If-None-Match")
        create = creates_only(req)
        expected = expected_versions(req)
        row = await self._bodies.to_replace(req, key)
        if create:
            written = await self._create(row)
        else:
            written = await self._replace(key, row, expected)
        _answer(req, resp, written, self._cache, key)

    async def on_patch(self, req: Request, resp: Response, /, **segments: str) -> None:
        """Apply a JSON merge patch to the row."""
        key = self._key(segments)
        refuse(req, "If-None-Match")
        expected = expected_versions(req)
        row = await self._bodies.to_merge(req, key)
        written = await self._cache.merge(key, row, expected)
        _answer(req, resp, written, self._cache, key)

    async def on_delete(self, req: Request, resp: Response, /, **segments: str) -> None:
        """Delete the row."""
        key = self._key(segments)
        refuse(req, "If-None-Match")
        written = await self._cache.delete(key, expected_versions(req))
        _report_bypass(req, written)
        resp.status = 204

    async def _create(self, row: RowInput) -> Written:
        try:
            return await self._cache.insert(row)
        except DuplicateRowError as error:
            if error.columns == self._cache.key.names:
                raise Problem(problems.PRECONDITION_FAILED, "a row with this key already exists") from None
            raise

    async def _replace(self, key: str, row: RowInput, expected: frozenset[int] | None) -> Written:
        if expected is not None or not self._cache.key.generated:
            return await self._cache.replace(key, row, expected)
        try:
            # The database generates the keys, so a new row would get a different one.
            return await self._cache.replace(key, row, frozenset())
        except VersionMismatchError:
            raise self._not_found() from None

    def _not_found(self) -> Problem:
        return Problem(problems.ROW_NOT_FOUND, _NO_SUCH_KEY.format(self.entity))

    def _texts(self, segments: Mapping[str, str]) -> tuple[str, ...]:
        """Return the text of each column of the key in a path."""
        texts = []
        for name, column in zip(path_fields(self._cache.key), self._cache.key.names, strict=True):
            try:
                texts.append(segment_text(segments[name]))
            except UnicodeEncodeError:
                raise _invalid_key(InvalidValueError(column, "is not valid UTF-8")) from None
        return tuple(texts)

    def _key(self, segments: Mapping[str, str]) -> str:
        try:
            return self._cache.key.canonical(self._texts(segments))
        except InvalidValueError as error:
            raise _invalid_key(error) from None


class Found:
    """`/{path}/by/{columns}/{value}`: reads the row that has a value in unique columns.

    The columns of one lookup are separated by commas, and each has a segment for its value.

    Args:
        cache: the entity's cache.
    """

    def __init__(self, cache: EntityCache) -> None:
        self.entity = cache.entity.name
        self._cache = cache

    async def on_get(self, req: Request, resp: Response, /, columns: str, **segments: str) -> None:
        """Read the row through the cache."""
        lookup = self._cache.entity.lookups.get(_lookup_name(columns))
        if lookup is None or len(lookup) != len(segments):
            raise HTTPRouteNotFound
        texts = []
        for name, segment in zip(lookup, segments.values(), strict=True):
            try:
                texts.append(segment_text(segment))
            except UnicodeEncodeError:
                raise _invalid_key(InvalidValueError(name, "is not valid UTF-8")) from None
        try:
            read = await self._cache.find(lookup, tuple(texts))
        except InvalidValueError as error:
            raise _invalid_key(error) from None
        _answer_read(req, resp, read, f"no {self.entity} has this value")

    on_head = on_get


def lookup_fields(columns: int) -> list[str]:
    """Return the names of the fields in the path of a lookup by so many columns.

    At the same place in a path, Falcon's router accepts only one name.
    """
    return [f"value_{number}" for number in range(1, columns + 1)]


def _lookup_name(segment: str) -> str:
    """Return the name of the columns in a decoded segment of a path, where a comma separates them."""
    try:
        return columns_name(segment_text(segment).split(","))
    except UnicodeEncodeError:
        return ""


def path_fields(key: Key) -> list[str]:
    """Return the names of the fields in the path of a row, one for each column of its key."""
    if len(key.columns) == 1:
        return ["key"]
    if all(_FIELD.fullmatch(name) and not iskeyword(name) for name in key.names):
        return list(key.names)
    return [f"key_{number}" for number in range(1, len(key.columns) + 1)]


def _invalid_key(error: InvalidValueError) -> Problem:
    return field_problem(problems.INVALID_KEY, FieldError(error.column or "key", error.message))


def _answer_read(req: Request, resp: Response, read: Read, not_found: str) -> None:
    """Respond to a read of one row."""
    req.outcome = read.outcome
    row = read.row
    if row is None:
        raise Problem(problems.ROW_NOT_FOUND, not_found)
    tag = etag(row.version)
    condition = req.get_header("If-None-Match")
    if condition is None or none_match(condition, tag):
        resp.data = row.payload
    else:
        resp.status = 304
    resp.set_header("ETag", tag)


def _answer(
    req: Request, resp: Response, written: Written, cache: EntityCache, key: str | None = None
) -> None:
    """Respond to a write other than a delete.

    Args:
        req: the request.
        resp: the response.
        written: the write.
        cache: the entity's cache.
        key: the key in the path of the request, if there is one.
    """
    row = written.row
    if row is None:
        raise AssertionError
    _report_bypass(req, written)
    resp.set_header("ETag", etag(row.version))
    resp.data = row.payload
    own_path = "/".join([cache.entity.path, *(quote(part, safe="") for part in cache.key.parts(row.key))])
    if written.created:
        resp.status = 201
        resp.set_header("Location", own_path)
    elif row.key != key:
        # A trigger of the table has changed the key.
        resp.set_header("Content-Location", own_path)


def _report_bypass(req: Request, written: Written) -> None:
    if not written.cached:
        req.outcome = Outcome.BYPASS


def _parameters(req: Request) -> dict[str, str]:
    """Return the parameters of the query string, decoded strictly."""
    try:
        pairs = parse_qsl(req.query_string, keep_blank_values=True, errors="strict", max_num_fields=100)
    except UnicodeDecodeError:
        raise Problem(problems.INVALID_PARAMETER, "the query string is not valid UTF-8") from None
    except ValueError:
        raise Problem(problems.INVALID_PARAMETER, "the query string has too many parameters") from None
    parameters: dict[str, str] = {}
    for name, value in pairs:
        if name in parameters:
            raise field_problem(problems.INVALID_PARAMETER, FieldError(name, "appears more than once"))
        parameters[name] = value
    return parameters
