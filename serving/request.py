"""The request class of the services."""

from __future__ import annotations

import itertools
import re
import secrets
from time import perf_counter
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote_from_bytes, unquote_to_bytes

import falcon.asgi
from falcon.constants import COMBINED_METHODS

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable, Mapping

    Message = Mapping[str, Any]
    Receive = Callable[[], Awaitable[Message]]
    Send = Callable[[dict[str, Any]], Awaitable[None]]

STARTED: Final = "cachesync.started"
"""The key in a scope under which the time of arrival is passed on, from `time.perf_counter`."""

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")
# All printable ASCII characters stay as they are. Other bytes are not allowed in a URI.
_TARGET: Final = "".join(map(chr, range(0x21, 0x7F)))
# Replaces a percent-encoded slash, which is part of a key rather than a separator. Decoding with
# `surrogateescape` never produces this surrogate, only those for bytes from 0x80 up.
_SLASH: Final = "\udc2f"
# WEBSOCKET is Falcon's own name for a WebSocket handshake, not an HTTP method.
_METHODS: Final = frozenset(COMBINED_METHODS) - {"WEBSOCKET"}
_counter: Final = itertools.count(1)
_prefix = ""


class Request(falcon.asgi.Request):
    """A Falcon request that records its start, and decodes its target strictly.

    Attributes:
        started: time of arrival, from `time.perf_counter`.
        outcome: value of the response's `X-Cache` header; empty for no header.
    """

    __slots__ = ("_request_id", "outcome", "started")

    def __init__(
        self, scope: dict[str, Any], receive: Receive, first_event: Any = None, options: Any = None
    ) -> None:
        self.started = scope.get(STARTED) or perf_counter()
        self.outcome = ""
        self._request_id = ""
        path: bytes = scope["raw_path"]
        if b"%" in path or not path.isascii():
            scope["path"] = _segments(path)
        if not scope["query_string"].isascii():
            scope["query_string"] = quote_from_bytes(scope["query_string"], safe=_TARGET).encode()
        super().__init__(scope, receive, first_event, options)
        if self.method not in _METHODS:
            # Falcon responds with 400 to a method that it does not know, but with 405 to TRACE, which no path
            # supports.
            self.method = "TRACE"

    @property
    def request_id(self) -> str:
        """The client's `X-Request-ID` if it is well-formed, else an ID that is unique to this request."""
        if not self._request_id:
            self._request_id = _request_id(self.get_header("X-Request-ID"))
        return self._request_id

    @property
    def target(self) -> str:
        """The request path as a URI reference."""
        return target(self.scope)


def request_id(headers: Iterable[tuple[bytes, bytes]]) -> str:
    """Return the ID of a request that is refused before it becomes a `Request`.

    Args:
        headers: the headers of the request.
    """
    for name, value in headers:
        if name == b"x-request-id":
            return _request_id(value.decode("latin-1"))
    return _request_id(None)


def target(scope: Mapping[str, Any]) -> str:
    """Return the path of a request as a URI reference."""
    return quote_from_bytes(scope["raw_path"], safe=_TARGET)


def _request_id(given: str | None) -> str:
    if given is not None and _SANE_ID.fullmatch(given):
        return given
    return f"{_prefix}-{next(_counter):x}"


def begin_request_ids() -> None:
    """Choose the random prefix of the request IDs that this process generates."""
    global _prefix  # noqa: PLW0603 - chosen once, when the process starts
    _prefix = secrets.token_hex(8)


def segment_text(segment: str) -> str:
    """Return the decoded text of one path segment, as Falcon's router passes it.

    Raises:
        UnicodeEncodeError: the segment is not UTF-8.
    """
    if segment.isascii():
        return segment
    text = segment.replace(_SLASH, "/")
    text.encode()
    return text


def _segments(path: bytes) -> str:
    return "/".join(
        unquote_to_bytes(segment).decode("utf-8", "surrogateescape").replace("/", _SLASH)
        for segment in path.split(b"/")
    )
