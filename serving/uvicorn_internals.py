"""Connections of the HTTP server: uvicorn's protocol with the checks and limits that it lacks.

It builds on uvicorn's internals, and names the versions that it was tested with.
"""

from __future__ import annotations

import asyncio
import re
import sys
from itertools import islice
from typing import TYPE_CHECKING, Any, Final, NoReturn

import orjson
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.protocols.http.httptools_impl import (
    HEADER_RE,
    HEADER_VALUE_RE,
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)

from cachesync.tested_packages import require_tested
from serving import problems
from serving.overload import Admission
from serving.request import request_id

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from serving.problems import Kind

TESTED: Final = ">=0.54,<0.55"

require_tested("uvicorn", TESTED)

# PostgreSQL can index a text key of 2.7 kB, which is up to three times as long when percent-encoded.
_MAX_TARGET_BYTES: Final = 8190
_MAX_FIELDS: Final = 100
_MAX_HEAD_BYTES: Final = 2**14
# A client may use this many bytes to send one byte of a body in chunks.
_MAX_BYTES_PER_BYTE: Final = 8
# What is left of a body whose response has been sent is read, because many clients send the whole body before
# they read the response. Closing the connection earlier could make them lose it.
_MAX_UNUSED_BYTES: Final = 2**20
# Kept in memory: responses that clients have not read, and bodies that they have not finished.
_MAX_UNREAD_BYTES: Final = 2**26
_MAX_UNFINISHED_BYTES: Final = 2**25
# Of the largest allowed body, so that this many clients can always send one at the same time.
_MIN_UNFINISHED_BODIES: Final = 8
# Connections beyond the limit. While there are any, only health checks and `/metrics` are answered.
_RESERVED: Final = 32
# How many connections are examined, oldest first, for one that can be closed.
_EXAMINED: Final = 100
_MAX_PIPELINED: Final = 100
# A client has this long to close its side of a connection that the service has closed, in seconds.
_CLOSING_SECONDS: Final = 2.0
_HOST: Final = re.compile(rb"[A-Za-z0-9._~!$&'()*+,;=%:\[\]-]*")
_CHECKED: Final = frozenset({b"host", b"transfer-encoding", b"expect"})
_FRAMING: Final = frozenset({b"content-length", b"transfer-encoding"})
# With these, the application frames its response by itself.
_OWN_FRAMING: Final = frozenset({b"connection", b"transfer-encoding"})
_ALWAYS_ANSWERED: Final = (b"/health/", b"/metrics")
_READ: Final = re.compile(rb"(?:GET|HEAD) ((?!/health/|/metrics)/[^\s#]*) ")
_REQUEST_ID: Final = re.compile(rb"\r\n(?i:x-request-id):[ \t]*([^\r]*)")


def _lines(fields: Iterable[tuple[bytes, bytes]]) -> bytes:
    return b"".join([b"%b: %b\r\n" % field for field in fields])


def _overloaded() -> tuple[bytes, bytes]:
    """Return the start of the head, and of the body, of the response to any refused request."""
    fields, body = problems.bare_response(problems.OVERLOADED, problems.OVERLOADED_DETAIL, "", "")
    common = [field for field in fields if field[0] not in {b"content-length", b"x-request-id"}]
    return STATUS_LINE[problems.OVERLOADED.status] + _lines(common), body.removesuffix(b'""}')


_OVERLOADED_HEAD, _OVERLOADED_BODY = _overloaded()


class _RefusedError(Exception):
    """A request that is not carried out, and ends its connection."""

    def __init__(self, kind: Kind, detail: str) -> None:
        super().__init__(detail)
        self.kind = kind


class _Refused:
    """Stands in for the cycle of a request that is refused before the application sees it."""

    response_complete = True
    more_body = False
    message_event = asyncio.Event()


class _Glance:
    """Tells whether bytes are one whole request, at a fifth of the cost of a `Connection`.

    It is the parser that a connection uses, without most of its callbacks, so that both agree on where a
    request ends.
    """

    def __init__(self) -> None:
        self._parser = HttpRequestParser(self)
        self._heads = self._ends = 0

    def is_one_request(self, data: bytes) -> bool:
        """Return whether this is one whole request, without a body, after which the connection stays open."""
        self._heads = self._ends = 0
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            pass
        else:
            # Anything after the request that did not begin another head would not end like this.
            if self._heads == self._ends == 1 and data.endswith(b"\r\n\r\n"):
                return True
        # It may be in the middle of a request.
        self._parser = HttpRequestParser(self)
        return False

    def on_headers_complete(self) -> None:
        """Count a head."""
        stays_open = self._parser.get_http_version() == "1.1" and self._parser.should_keep_alive()
        self._heads += 1 if stays_open else 2

    def on_body(self, _body: bytes) -> None:
        """Note that there is a body."""
        self._heads += 1

    def on_message_complete(self) -> None:
        """Count an end."""
        self._ends += 1


_glance: Final = _Glance()


class _Held:
    """The bytes that are kept in memory for clients; beyond a limit, the slowest client is disconnected.

    Attributes:
        limit: maximum number of bytes.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        # In the order in which the clients became slow.
        self._sizes: dict[Connection, int] = {}
        self._total = 0

    def __contains__(self, connection: Connection) -> bool:
        return connection in self._sizes

    def add(self, connection: Connection, size: int) -> None:
        """Hold more bytes for a client."""
        self._sizes[connection] = self._sizes.get(connection, 0) + size
        self._total += size
        while self._total > self.limit and len(self._sizes) > 1:
            slowest = next(iter(self._sizes))
            slowest.transport.abort()
            self.drop(slowest)

    def keep(self, connection: Connection, size: int) -> None:
        """Hold this many bytes for a client."""
        if size:
            self.add(connection, size - self._sizes.get(connection, 0))
        else:
            self.drop(connection)

    def drop(self, connection: Connection) -> None:
        """Hold nothing for a client any more."""
        self._total -= self._sizes.pop(connection, 0)


class Connections:
    """The open connections of a worker process, and the limits that they share.

    Attributes:
        limit: maximum number of connections whose requests are answered.
        timeout: maximum time for a client to send a request or to read a response, in seconds.
        admission: returns the admission of the requests with a method.
        unread: the responses that clients have not read.
        unfinished: the bodies of requests that have not been answered, which clients may not have finished.
    """

    def __init__(self) -> None:
        self.limit = 1000
        self.timeout = 20.0
        unlimited = Admission(1.0, sys.maxsize)
        self.admission: Callable[[str], Admission] = lambda _method: unlimited
        # In the order in which they were opened.
        self._open: dict[Connection, None] = {}
        self.unread = _Held(_MAX_UNREAD_BYTES)
        self.unfinished = _Held(_MAX_UNFINISHED_BYTES)

    def allow_bodies_of(self, size: int) -> None:
        """Allow bodies of this many bytes."""
        self.unfinished.limit = max(_MAX_UNFINISHED_BYTES, _MIN_UNFINISHED_BODIES * size)

    def __len__(self) -> int:
        return len(self._open)

    def add(self, connection: Connection) -> None:
        """Add a connection; if there are too many, close the oldest one without a request in progress."""
        if len(self._open) >= self.limit:
            oldest = islice(self._open, _EXAMINED)
            idle = next((other for other in oldest if not other.is_busy), None)
            if idle is not None:
                idle.transport.abort()
                self.remove(idle)
        self._open[connection] = None

    def remove(self, connection: Connection) -> None:
        """Forget a connection that has been closed."""
        self._open.pop(connection, None)
        self.unread.drop(connection)
        self.unfinished.drop(connection)

    async def keep_sweeping(self) -> NoReturn:
        """Close the connections of clients that take too long, until canceled."""
        seconds = min(1.0, self.timeout / 4)
        while True:
            await asyncio.sleep(seconds)
            for connection in list(self._open):
                connection.sweep(seconds)


class _Cycle(RequestResponseCycle):
    """Writes an ordinary response at once, and validates its header fields together.

    uvicorn's own cycle writes the head before the body, and validates the name and the value of each field by
    itself, which takes a sixth of the time of a hit.
    """

    _start: Any = None

    async def send(self, message: Any) -> None:
        """Send a part of the response."""
        if not self.response_started and message["type"] == "http.response.start":
            self.response_started = True
            self._start = message
            return
        start, self._start = self._start, None
        if start is None:
            await super().send(message)
            return
        body = message.get("body", b"")
        fields = [*self.default_headers, *start["headers"]]
        by_name = dict(fields)
        length = by_name.get(b"content-length")
        if (
            length is None
            or int(length) != len(body)
            or not _OWN_FRAMING.isdisjoint(by_name)
            # uvicorn sends no body in response to a HEAD request, whatever the application passes.
            or self.scope["method"] == "HEAD"
            or message.get("more_body")
        ):
            self.response_started = False
            await super().send(start)
            await super().send(message)
            return
        if HEADER_RE.search(b"".join(by_name)) or HEADER_VALUE_RE.search(
            b"".join([one for _, one in fields])
        ):
            message = "a header field of the response is invalid"
            raise RuntimeError(message)
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        self.waiting_for_100_continue = False
        if not self.keep_alive:
            fields.append((b"connection", b"close"))
        self.transport.write(b"%b%b\r\n%b" % (STATUS_LINE[start["status"]], _lines(fields), body))
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            self.transport.close()
        self.on_response()


#: Those of this worker process.
connections: Final = Connections()


class Connection(HttpToolsProtocol):
    """A connection that does not outlast its client's patience, and accepts only unambiguous requests.

    Beyond uvicorn's protocol, it limits the head of a request, the time that a client takes, and what it
    leaves unread, requires a valid Host and no transfer coding other than chunked, sends problem details, and
    cancels the request of a client that has left.
    """

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        # Bytes of the current request other than its body.
        self._head_bytes = 0
        self._unused_bytes = 0
        self._field_bytes = 0
        self._in_head = False
        self._in_message = False
        self._host: bytes | None = None
        self._coded = False
        # Whether the parser is given a head again, without the upgrade, because of the body that follows it.
        self._in_repetition = False
        # Responds to a malformed request once the requests before it have been answered.
        self._refusal: bytes | None = None
        self._finished = False
        self._running: RequestResponseCycle | None = None
        self._task: asyncio.Task[None] | None = None
        # Whether the client has too much left to read, and the request that waits for it.
        self._is_unread = False
        self._deferred: tuple[RequestResponseCycle, Callable[..., Any]] | None = None
        # What the client is being waited for, and for how long.
        self._wait: tuple[str, RequestResponseCycle | None] | None = None
        self._waited = 0.0

    @property
    def is_busy(self) -> bool:
        """Whether a request is in progress."""
        return self.cycle is not None and not self.cycle.response_complete

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Register the connection."""
        super().connection_made(transport)
        connections.add(self)
        if len(connections) > connections.limit + _RESERVED:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Cancel the request in progress, whose response nobody would receive."""
        connections.remove(self)
        super().connection_lost(exc)
        # With pipelining, this is not the newest request, the only one that uvicorn considers.
        if self._running is not None and not self._running.response_complete and self._task is not None:
            self._running.disconnected = True
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        """Parse what the client sent, unless it is a read that is refused anyway."""
        reads = connections.admission("GET")
        if reads.is_full and self._shed_unparsed(data, reads):
            return
        while data:
            if self._finished or self._refusal is not None:
                return
            self._head_bytes += len(data)
            try:
                self.parser.feed_data(data)
            except HttpParserUpgrade as upgrade:
                # To any other protocol than HTTP/1.1, which a server may ignore (RFC 9110, section 7.8). The
                # parser takes the body of such a request for data of the other protocol.
                data = self._repeated_head() + data[upgrade.args[0] :]
                continue
            except HttpParserError as error:
                cause = error.__context__
                if isinstance(cause, _RefusedError):
                    self._refuse(cause.kind, str(cause))
                else:
                    self._refuse(problems.MALFORMED_REQUEST, "the request is not valid HTTP/1.1")
            else:
                if self._head_bytes > _MAX_HEAD_BYTES:
                    self._refuse(*_too_large(self._in_head and not self.headers))
            return

    def _repeated_head(self) -> bytes:
        """Return a head after which the parser parses the body of an upgrade; nothing if it has no body."""
        framing = b"".join(b"%b: %b\r\n" % field for field in self.headers if field[0] in _FRAMING)
        self._in_repetition = bool(framing)
        return b"PUT / HTTP/1.1\r\n%b\r\n" % framing if framing else b""

    def _has_ignored_body(self) -> bool:
        """Return whether the parser does not recognize the body of the request; see `data_received`."""
        return self.parser.should_upgrade() and any(name in _FRAMING for name, _ in self.headers)

    def on_message_begin(self) -> None:
        """Begin a request."""
        if self._in_repetition:
            return
        super().on_message_begin()
        self._in_message = True
        self._in_head = True
        self._field_bytes = 0
        self._host = None
        self._coded = False

    def on_url(self, url: bytes) -> None:
        """Add a part of the target."""
        if self._in_repetition:
            return
        super().on_url(url)
        if len(self.url) > _MAX_TARGET_BYTES:
            raise _RefusedError(*_too_large(target=True))
        if b"#" in url:
            raise _RefusedError(problems.MALFORMED_REQUEST, "the target has a fragment")

    def on_header(self, name: bytes, value: bytes) -> None:
        """Add a field of the head; those of a trailer are ignored."""
        if not self._in_head:
            return
        name = name.lower()
        if name in _CHECKED:
            self._check(name, value)
        self._field_bytes += len(name) + len(value)
        self.headers.append((name, value))
        if self._field_bytes > _MAX_HEAD_BYTES or len(self.headers) > _MAX_FIELDS:
            raise _RefusedError(*_too_large(target=False))

    def _check(self, name: bytes, value: bytes) -> None:
        if name == b"host":
            if self._host is not None:
                raise _RefusedError(problems.MALFORMED_REQUEST, "the request has more than one Host")
            if not _HOST.fullmatch(value):
                raise _RefusedError(problems.MALFORMED_REQUEST, "Host is invalid")
            self._host = value
        elif name == b"expect":
            self.expect_100_continue = value.lower() == b"100-continue"
        else:
            if self._coded or value.lower() != b"chunked":
                raise _RefusedError(
                    problems.UNSUPPORTED_CODING, "the only supported transfer coding is chunked"
                )
            self._coded = True

    def on_headers_complete(self) -> None:
        """Begin to answer the request, unless its head is invalid."""
        if self._in_repetition:
            self._in_repetition = False
            return
        self._in_head = False
        version = self.parser.get_http_version()
        if version == "1.1":
            if self._host is None:
                raise _RefusedError(problems.MALFORMED_REQUEST, "the request has no Host")
        elif version != "1.0" or self._coded:
            raise _RefusedError(problems.UNSUPPORTED_VERSION, "the supported HTTP version is 1.1")
        else:
            self.expect_100_continue = False
        if len(self.pipeline) >= _MAX_PIPELINED:
            raise _RefusedError(problems.OVERLOADED, "too many requests wait on this connection; try again")
        if self._can_shed and not self.url.startswith(_ALWAYS_ANSWERED):
            method = self.parser.get_method()
            admission = connections.admission(method.decode())
            if admission.is_full or len(connections) > connections.limit:
                keep_alive = version == "1.1" and self.parser.should_keep_alive()
                identifier = request_id(self.headers)
                self._shed(admission, self.url, identifier, has_body=method != b"HEAD", keep_alive=keep_alive)
                return
            admission.expect()
        super().on_headers_complete()

    @property
    def _can_shed(self) -> bool:
        """Whether nothing must be sent before the response to the next request."""
        return (self.cycle is None or self.cycle.response_complete) and not self._is_unread

    def _shed_unparsed(self, data: bytes, reads: Admission) -> bool:
        """Refuse a read for a fraction of what parsing it costs; return whether that was possible."""
        read = _READ.match(data)
        if (
            read is None
            or len(data) > _MAX_TARGET_BYTES
            or self._in_message
            or self._finished
            or self._refusal is not None
            or not self._can_shed
            or not _glance.is_one_request(data)
        ):
            return False
        given = _REQUEST_ID.search(data)
        headers = () if given is None else ((b"x-request-id", given[1].rstrip()),)
        self._shed(reads, read[1], request_id(headers), has_body=data.startswith(b"GET"), keep_alive=True)
        return True

    def _shed(
        self, admission: Admission, url: bytes, identifier: str, *, has_body: bool, keep_alive: bool
    ) -> None:
        """Refuse a request for a fraction of what passing it to the application costs."""
        admission.refused += 1
        self.cycle = _Refused()  # type: ignore[assignment]
        path = url.partition(b"?")[0].decode("ascii")
        body = b"%b%b}" % (_OVERLOADED_BODY, orjson.dumps(path))
        self.transport.write(
            b"%b%bcontent-length: %d\r\nx-request-id: %b\r\n%b\r\n%b"
            % (
                _OVERLOADED_HEAD,
                _lines(self.server_state.default_headers),
                len(body),
                identifier.encode(),
                b"" if keep_alive else b"connection: close\r\n",
                body if has_body else b"",
            )
        )
        if keep_alive:
            self.on_response_complete()
        else:
            self._finish()

    def on_body(self, body: bytes) -> None:
        """Add a part of the body."""
        self._head_bytes -= (_MAX_BYTES_PER_BYTE + 1) * len(body)
        if self.cycle.response_complete:
            self._unused_bytes += len(body)
            if self._unused_bytes > _MAX_UNUSED_BYTES:
                self._finish()
            return
        super().on_body(body)
        connections.unfinished.add(self, len(body))

    def on_message_complete(self) -> None:
        """End the request."""
        if self._has_ignored_body():
            return
        self._in_message = False
        self.cycle.more_body = False
        self._head_bytes = 0
        self._unused_bytes = 0
        super().on_message_complete()

    def on_response_complete(self) -> None:
        """Continue with the next request, or refuse it.

        Unlike uvicorn's, it sets no timer for each request, which would be a large part of what a refused
        request costs: `sweep` closes idle connections.
        """
        if self._is_unread:
            connections.unread.keep(self, self.transport.get_write_buffer_size())
        self.server_state.total_requests += 1
        if not self.transport.is_closing():
            self.flow.resume_reading()
            if self.pipeline:
                self._start_asgi_task(*self.pipeline.pop())
        if self in connections.unfinished:
            following = self._running if self._deferred is None else self._deferred[0]
            bodies = [cycle.body for cycle in (following, *(one for one, _ in self.pipeline)) if cycle]
            connections.unfinished.keep(self, sum(map(len, bodies)))
        if self._refusal is not None and self.cycle.response_complete and not self.transport.is_closing():
            self._write_refusal(self._refusal)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Callable[..., Any]) -> None:
        if self._is_unread:
            self._deferred = cycle, app
            return
        # uvicorn does not let a protocol choose the class.
        cycle.__class__ = _Cycle
        self._running = cycle
        self._task = task = self.loop.create_task(cycle.run_asgi(app))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    def pause_writing(self) -> None:
        """Note that the client does not read its response.

        The next request of the connection waits, rather than the application, which would count it as one in
        flight.
        """
        self._is_unread = True
        connections.unread.keep(self, self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Note that the client has read its response, and begin the next request."""
        self._is_unread = False
        connections.unread.drop(self)
        if self._deferred is not None:
            cycle, app = self._deferred
            self._deferred = None
            self._start_asgi_task(cycle, app)

    def sweep(self, seconds: float) -> None:
        """Close the connection if its client has taken too long.

        Args:
            seconds: the time since the last call.
        """
        wait = self._awaited()
        if wait is None or wait != self._wait:
            self._wait = wait
            self._waited = 0.0
            return
        self._waited += seconds
        is_between = wait[0] == "request" and self.cycle is not None and self._head_bytes == 0
        if is_between and self._waited >= self.timeout_keep_alive:
            self.transport.close()
        elif self._waited < (_CLOSING_SECONDS if wait[0] == "end" else connections.timeout):
            return
        elif wait[0] == "request" and self._head_bytes > 0:
            self._refuse(problems.REQUEST_TIMEOUT, "the request did not arrive in time")
        else:
            self.transport.abort()

    def _awaited(self) -> tuple[str, RequestResponseCycle | None] | None:
        """Return what the client is being waited for; None if it is not."""
        if self._is_unread or (self.transport.is_closing() and self.transport.get_write_buffer_size()):
            return "reading", self.cycle
        if self._finished:
            return "end", None
        if self.cycle is None or self.cycle.response_complete:
            return "request", self.cycle
        # The application limits the time for the body.
        return None

    def _refuse(self, kind: Kind, detail: str) -> None:
        """Respond with a problem after the responses to earlier requests, then close the connection."""
        self._refusal = self._response(kind, detail, "", close=True)
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            self._write_refusal(self._refusal)
        elif cycle.more_body:
            # The error is in the body of this request, which must not be carried out.
            if self.pipeline:
                self.pipeline.popleft()
                self.cycle = self.pipeline[0][0] if self.pipeline else self._running  # type: ignore[assignment]
            elif not cycle.response_started:
                cycle.disconnected = True
                cycle.message_event.set()
                self._write_refusal(self._refusal)

    def _response(self, kind: Kind, detail: str, instance: str, *, close: bool) -> bytes:
        fields, body = problems.bare_response(kind, detail, instance, request_id(self.headers or ()))
        if close:
            fields.append((b"connection", b"close"))
        head = _lines((*self.server_state.default_headers, *fields))
        return b"%b%b\r\n%b" % (STATUS_LINE[kind.status], head, body)

    def _write_refusal(self, refusal: bytes) -> None:
        self.transport.write(refusal)
        self._finish()

    def _finish(self) -> None:
        """Close this side of the connection, and ignore what still arrives until the client closes its side.

        Closing both at once would reset the connection of a client that is still sending, and could make it
        lose the response.
        """
        self._finished = True
        self._wait = None
        if self.transport.can_write_eof():
            self.transport.write_eof()


def _too_large(target: bool) -> tuple[Kind, str]:  # noqa: FBT001
    if target:
        return problems.TARGET_TOO_LONG, f"the target must not exceed {_MAX_TARGET_BYTES} bytes"
    return (
        problems.HEAD_TOO_LARGE,
        f"the head must not exceed {_MAX_FIELDS} fields and {_MAX_HEAD_BYTES} bytes",
    )
