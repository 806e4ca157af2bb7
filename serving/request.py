"""A request as the resources see it."""

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
    from falcon._typing import AsgiReceive

_SANE_ID: Final = re.compile(r"[A-Za-z0-9._:+/=-]{1,128}")
# Everything that may stand in a request target as it is; what is left are bytes that no URI may hold.
_TARGET: Final = "".join(map(chr, range(0x21, 0x7F)))
# Stands for a slash that was percent-encoded, which is part of a key and separates nothing. Decoding
# with `surrogateescape` never gives this one, it stands for bytes from 0x80 on only.
_SLASH: Final = "\udc2f"
# Falcon counts its own name for a handshake among the methods.
_METHODS: Final = frozenset(COMBINED_METHODS) - {"WEBSOCKET"}
_counter: Final = itertools.count(1)
_prefix = ""


class Request(falcon.asgi.Request):
    """A Falcon request that keeps time, and reads its target without guessing.

    Attributes:
        started: when it arrived, by `time.perf_counter`.
        outcome: the value of its `X-Cache` header; empty where it has none.
    """

    __slots__ = ("_request_id", "outcome", "started")

    def __init__(
        self, scope: dict[str, Any], receive: AsgiReceive, first_event: Any = None, options: Any = None
    ) -> None:
        self.started = perf_counter()
        self.outcome = ""
        self._request_id = ""
        path: bytes = scope["raw_path"]
        if b"%" in path or not path.isascii():
            scope["path"] = _segments(path)
        if not scope["query_string"].isascii():
            scope["query_string"] = quote_from_bytes(scope["query_string"], safe=_TARGET).encode()
        super().__init__(scope, receive, first_event, options)
        if self.method not in _METHODS:
            # Falcon has a 400 for methods that it does not know; as one that no path takes, it gets its 405.
            self.method = "TRACE"

    @property
    def request_id(self) -> str:
        """The client's `X-Request-ID` where it is a sane one, else one that is unique to this request."""
        if not self._request_id:
            given = self.get_header("X-Request-ID")
            if given is not None and _SANE_ID.fullmatch(given):
                self._request_id = given
            else:
                self._request_id = f"{_prefix}-{next(_counter):x}"
        return self._request_id

    @property
    def target(self) -> str:
        """The path as a URI reference."""
        return quote_from_bytes(self.scope["raw_path"], safe=_TARGET)


def begin_request_ids() -> None:
    """Choose this process's part of the request ids that it makes."""
    global _prefix  # noqa: PLW0603 - chosen once, when the process starts to serve
    _prefix = secrets.token_hex(8)


def segment_text(segment: str) -> str:
    """The text of one segment of a path.

    Raises:
        UnicodeEncodeError: the client sent bytes that are not UTF-8.
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
