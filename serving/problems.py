"""Errors of requests as problem details (RFC 9457)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NoReturn

import falcon
import orjson
import structlog

from cachesync.errors import (
    CaptureLostError,
    ConstraintViolatedError,
    DatabaseUnavailableError,
    DuplicateRowError,
    InvalidValueError,
    NotInstalledError,
    ReferenceViolatedError,
    RowNotFoundError,
    VersionMismatchError,
)

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import Any

    from falcon.asgi import App, Response

    from serving.request import Request

MEDIA_TYPE: Final = "application/problem+json"
_RETRY_SECONDS: Final = "1"
OVERLOADED_DETAIL: Final = "the service has more requests than it can answer in time; try again"
# Somebody must do something first.
_INSTALL_SECONDS: Final = "10"
_MAX_MESSAGE_LENGTH: Final = 300
# For errors that Falcon raises without a description.
_OWN_DETAILS: Final = {
    404: "there is no resource at this path",
    405: "the Allow header lists the methods that this path supports",
}

_log: Final = structlog.stdlib.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of problem.

    Attributes:
        status: the HTTP status.
        name: identifies the kind in the member `type`, `/problems/{name}`.
        title: summary of the kind for people; the same for every problem of the kind.
    """

    status: int
    name: str
    title: str


MALFORMED_REQUEST: Final = Kind(400, "malformed-request", "The request is not valid HTTP")
INVALID_KEY: Final = Kind(400, "invalid-key", "The key in the path is invalid")
INVALID_PARAMETER: Final = Kind(400, "invalid-parameter", "A query parameter is invalid")
INVALID_HEADER: Final = Kind(400, "invalid-header", "A header is invalid")
INVALID_ENCODING: Final = Kind(400, "invalid-encoding", "The body is not UTF-8")
MALFORMED_JSON: Final = Kind(400, "malformed-json", "The body is not valid JSON")
DUPLICATE_MEMBER: Final = Kind(400, "duplicate-member", "An object in the body has a duplicate member")
TOO_DEEP: Final = Kind(400, "too-deep", "The body is nested too deeply")
ROW_NOT_FOUND: Final = Kind(404, "row-not-found", "No row has this key")
REQUEST_TIMEOUT: Final = Kind(408, "request-timeout", "The request did not arrive in time")
DUPLICATE_ROW: Final = Kind(409, "duplicate-row", "A row with these values already exists")
REFERENCE_VIOLATED: Final = Kind(409, "reference-violated", "The write violates a foreign key")
PRECONDITION_FAILED: Final = Kind(
    412, "precondition-failed", "The row does not meet a precondition of the request"
)
BODY_TOO_LARGE: Final = Kind(413, "body-too-large", "The body is too large")
TARGET_TOO_LONG: Final = Kind(414, "target-too-long", "The path and query are too long")
UNSUPPORTED_MEDIA_TYPE: Final = Kind(
    415, "unsupported-media-type", "The media type of the body is not supported"
)
NOT_AN_OBJECT: Final = Kind(422, "not-an-object", "The body is not a JSON object")
UNKNOWN_FIELD: Final = Kind(422, "unknown-field", "A field is unknown")
READ_ONLY_FIELD: Final = Kind(422, "read-only-field", "A field is read-only")
MISSING_FIELD: Final = Kind(422, "missing-field", "A required field is missing")
WRONG_TYPE: Final = Kind(422, "wrong-type", "A value has the wrong type")
OUT_OF_RANGE: Final = Kind(422, "out-of-range", "A number is out of range")
TOO_LONG: Final = Kind(422, "too-long", "A string is too long")
INVALID_TEXT: Final = Kind(422, "invalid-text", "A string contains a character that PostgreSQL cannot store")
INVALID_VALUE: Final = Kind(422, "invalid-value", "A value is invalid")
KEY_MISMATCH: Final = Kind(422, "key-mismatch", "The key in the body differs from the key in the path")
CONSTRAINT_VIOLATED: Final = Kind(422, "constraint-violated", "The row violates a constraint")
HEAD_TOO_LARGE: Final = Kind(431, "head-too-large", "The headers are too large")
INTERNAL: Final = Kind(500, "internal-error", "An internal error occurred")
UNSUPPORTED_CODING: Final = Kind(501, "unsupported-coding", "The transfer coding is not supported")
DATABASE_UNAVAILABLE: Final = Kind(503, "database-unavailable", "The database is unavailable")
CAPTURE_LOST: Final = Kind(503, "capture-lost", "The change would not reach the caches")
NOT_INSTALLED: Final = Kind(503, "not-installed", "The table is not as it was installed")
OVERLOADED: Final = Kind(503, "overloaded", "The service is overloaded")
NOT_READY: Final = Kind(503, "not-ready", "The service is not ready")
UNSUPPORTED_VERSION: Final = Kind(505, "unsupported-version", "The HTTP version is not supported")

KINDS: Final = tuple(value for value in list(globals().values()) if isinstance(value, Kind))


@dataclass(frozen=True, slots=True)
class FieldError:
    """An error in one part of the request.

    Attributes:
        field: the name of the field, parameter or header.
        message: what is wrong with it.
    """

    field: str
    message: str


class Problem(falcon.HTTPError):
    """Raised to respond with a problem.

    Attributes:
        kind: the kind of problem.
        errors: the fields, parameters or headers at fault.
    """

    def __init__(
        self,
        kind: Kind,
        detail: str,
        errors: Sequence[FieldError] = (),
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(kind.status, title=kind.title, description=detail, headers=dict(headers or {}))
        self.kind = kind
        self.errors = errors


def field_problem(kind: Kind, *errors: FieldError, headers: Mapping[str, str] | None = None) -> Problem:
    """Create a problem with fields, parameters or headers.

    Args:
        kind: the kind of problem.
        errors: at least one error; the first becomes the detail of the problem.
        headers: headers of the response.
    """
    return Problem(kind, f"{errors[0].field}: {errors[0].message}", errors, headers)


def overloaded() -> Problem:
    """Create the problem of a request that an overloaded service refuses."""
    return Problem(OVERLOADED, OVERLOADED_DETAIL, headers={"Retry-After": _RETRY_SECONDS})


def document(
    kind: Kind,
    detail: str,
    instance: str,
    errors: Sequence[FieldError] = (),
    extension: Mapping[str, bool | str] | None = None,
) -> bytes:
    """Return a problem as JSON.

    Args:
        kind: the kind of problem.
        detail: what is wrong this time.
        instance: the path of the request as a URI reference.
        errors: the fields, parameters or headers at fault.
        extension: additional members.
    """
    members: dict[str, Any] = {
        "type": f"/problems/{kind.name}",
        "title": kind.title,
        "status": kind.status,
        "detail": _printable(detail),
        "instance": instance,
    }
    if errors:
        members["errors"] = [
            {"field": _printable(error.field), "message": _printable(error.message)} for error in errors
        ]
    return orjson.dumps({**members, **(extension or {})})


def bare_response(
    kind: Kind, detail: str, instance: str, request_id: str
) -> tuple[list[tuple[bytes, bytes]], bytes]:
    """Return the headers and the body of a response that is sent without Falcon.

    Args:
        kind: the kind of problem.
        detail: what is wrong this time.
        instance: the path of the request as a URI reference.
        request_id: the ID of the request.
    """
    body = document(kind, detail, instance)
    headers = [
        (b"content-type", MEDIA_TYPE.encode()),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id.encode()),
    ]
    if kind is OVERLOADED:
        headers.append((b"retry-after", _RETRY_SECONDS.encode()))
    return headers, body


def add_handlers(app: App[Any, Any]) -> None:
    """Respond to every error of the application with a problem."""
    app.set_error_serializer(_serialize)
    app.add_error_handler(DatabaseUnavailableError, _database_unavailable)
    app.add_error_handler(CaptureLostError, _capture_lost)
    app.add_error_handler(NotInstalledError, _not_installed)
    app.add_error_handler(RowNotFoundError, _row_not_found)
    app.add_error_handler(DuplicateRowError, _duplicate_row)
    app.add_error_handler(VersionMismatchError, _version_mismatch)
    app.add_error_handler(ConstraintViolatedError, _constraint_violated)
    app.add_error_handler(InvalidValueError, _invalid_value)
    app.add_error_handler(Exception, _unexpected)


def _serialize(req: Request, resp: Response, error: falcon.HTTPError) -> None:
    if isinstance(error, Problem):
        kind, detail, errors = error.kind, error.description or "", error.errors
    else:
        # Falcon's own errors: unknown path, unsupported method, or malformed header.
        title = falcon.code_to_http_status(error.status_code).partition(" ")[2]
        kind = Kind(error.status_code, title.lower().replace(" ", "-"), title)
        detail, errors = error.description or _OWN_DETAILS.get(error.status_code, title), ()
    resp.content_type = MEDIA_TYPE
    resp.data = document(kind, detail, req.target, errors)


async def _database_unavailable(
    _req: Request, _resp: Response, _error: DatabaseUnavailableError, _params: dict[str, Any]
) -> NoReturn:
    detail = "the request needs the database, which is unavailable; try again"
    raise Problem(DATABASE_UNAVAILABLE, detail, headers={"Retry-After": _RETRY_SECONDS})


async def _capture_lost(
    req: Request, _resp: Response, error: CaptureLostError, _params: dict[str, Any]
) -> NoReturn:
    _log.error("capture lost", path=req.target, request_id=req.request_id, error=str(error))
    raise Problem(CAPTURE_LOST, str(error), headers={"Retry-After": _RETRY_SECONDS})


async def _not_installed(
    _req: Request, _resp: Response, error: NotInstalledError, _params: dict[str, Any]
) -> NoReturn:
    raise Problem(NOT_INSTALLED, str(error), headers={"Retry-After": _INSTALL_SECONDS})


async def _row_not_found(
    _req: Request, _resp: Response, error: RowNotFoundError, _params: dict[str, Any]
) -> NoReturn:
    raise Problem(ROW_NOT_FOUND, str(error))


async def _duplicate_row(
    _req: Request, _resp: Response, error: DuplicateRowError, _params: dict[str, Any]
) -> NoReturn:
    raise _about(DUPLICATE_ROW, error.columns, error.message)


async def _version_mismatch(
    _req: Request, _resp: Response, error: VersionMismatchError, _params: dict[str, Any]
) -> NoReturn:
    raise Problem(PRECONDITION_FAILED, str(error))


async def _constraint_violated(
    _req: Request, _resp: Response, error: ConstraintViolatedError, _params: dict[str, Any]
) -> NoReturn:
    kind = REFERENCE_VIOLATED if isinstance(error, ReferenceViolatedError) else CONSTRAINT_VIOLATED
    raise _about(kind, error.columns, error.message)


async def _invalid_value(
    _req: Request, _resp: Response, error: InvalidValueError, _params: dict[str, Any]
) -> NoReturn:
    raise _about(INVALID_VALUE, () if error.column is None else (error.column,), error.message)


async def _unexpected(req: Request, _resp: Response, error: Exception, _params: dict[str, Any]) -> NoReturn:
    _log.error(
        "unexpected error", method=req.method, path=req.target, request_id=req.request_id, exc_info=error
    )
    raise Problem(INTERNAL, f"the service's log has the details under the request ID {req.request_id}")


def _about(kind: Kind, columns: Sequence[str], message: str) -> Problem:
    if not columns:
        return Problem(kind, message)
    return field_problem(kind, *(FieldError(column, message) for column in columns))


def _printable(text: str) -> str:
    """Return the text with characters that UTF-8 can express, shortened if it is long."""
    text = text.encode("utf-8", "backslashreplace").decode()
    return text if len(text) <= _MAX_MESSAGE_LENGTH else f"{text[:_MAX_MESSAGE_LENGTH]}…"
