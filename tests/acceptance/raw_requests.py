"""Requests as raw bytes: a table of what clients and attackers send, and how a server must respond.

Each case is sent on a connection of its own. A server accepts or refuses it: it accepts it with exactly the
given responses, after which the connection still serves the next request; it refuses it with one response, a
4xx or 501 or 505, and closes the connection. Whatever is sent, the victim's row must survive, and the server
must not log an error.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterator

VICTIM: Final = "/students/666"
#: The request that no case may cause to be carried out.
ATTACK: Final = f"DELETE {VICTIM} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
LIVE: Final = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"
_LAST: Final = b"GET /health/live HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
_SECONDS: Final = 20.0
_MEGABYTE: Final = 2**20


class Case(NamedTuple):
    """A request, or several, and the responses.

    Attributes:
        name: what is special about it.
        sent: the bytes; a tuple is sent in separate segments.
        accepted: the statuses of its responses; None if it must be refused.
        closes: whether the connection ends after the responses, although the case is accepted.
    """

    name: str
    sent: bytes | tuple[bytes, ...]
    accepted: tuple[int, ...] | None = None
    closes: bool = False


@dataclass
class Result:
    """What came back.

    Attributes:
        statuses: the statuses of the responses, in order.
        bodies: their bodies.
        closed: whether the server closed the connection.
    """

    statuses: list[int]
    bodies: list[bytes]
    closed: bool

    def answers(self, case: Case) -> bool:
        """Return whether the server responded as the case demands."""
        if case.accepted is None:
            refusals = {*range(400, 432), 501, 505}
            return self.closed and len(self.statuses) == 1 and self.statuses[0] in refusals
        last = () if case.closes else (200,)
        return self.closed and tuple(self.statuses) == case.accepted + last


def run(case: Case, host: str, port: int) -> Result:
    """Send a case and read everything that comes back."""
    with socket.create_connection((host, port), timeout=_SECONDS) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            for segment in (case.sent,) if isinstance(case.sent, bytes) else case.sent:
                connection.sendall(segment)
            if case.accepted is not None and not case.closes:
                connection.sendall(_LAST)
        except OSError:
            pass  # the server has refused what came so far
        return _received(connection, case.sent)


def _received(connection: socket.socket, sent: bytes | tuple[bytes, ...]) -> Result:
    data, closed = b"", True
    try:
        while piece := connection.recv(65536):
            data += piece
    except ConnectionResetError:
        pass
    except TimeoutError:
        closed = False
    first = sent if isinstance(sent, bytes) else b"".join(sent[:40])
    responses = list(_responses(data, head_first=first.startswith(b"HEAD ")))
    return Result([status for status, _ in responses], [body for _, body in responses], closed)


def _responses(data: bytes, *, head_first: bool) -> Iterator[tuple[int, bytes]]:
    while data:
        head, _, data = data.partition(b"\r\n\r\n")
        status = int(head.split(b" ", 2)[1])
        fields = dict(line.lower().split(b":", 1) for line in head.split(b"\r\n")[1:])
        length = int(fields.get(b"content-length", b"0"))
        if status == 204 or status < 200 or head_first:
            length = 0
        head_first = False
        yield status, data[:length]
        data = data[length:]


def _get(*fields: bytes, target: bytes = b"/health/live", host: bytes = b"Host: x") -> bytes:
    return b"\r\n".join([b"GET " + target + b" HTTP/1.1", *([host] if host else []), *fields, b"", b""])


def _put(*fields: bytes, body: bytes = b"") -> bytes:
    head = [b"PUT /students/7 HTTP/1.1", b"Host: x", b"Content-Type: application/json", *fields, b"", b""]
    return b"\r\n".join(head) + body


def _chunked(body: bytes, *fields: bytes) -> bytes:
    return _put(b"Transfer-Encoding: chunked", *fields, body=body)


_ROW: Final = b'{"name":"Ada"}'
_LENGTH: Final = b"Content-Length: 14"
_CHUNKS: Final = b"e\r\n" + _ROW + b"\r\n0\r\n\r\n"
_SAVED: Final = (200,)
_UPGRADE: Final = (b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c")

_VALID: Final = [
    Case("one request", LIVE, (200,)),
    Case("three requests in one segment", LIVE * 3, (200,) * 3),
    Case("fifty requests in one segment", LIVE * 50, (200,) * 50),
    Case("a request byte by byte", tuple(bytes([byte]) for byte in LIVE), (200,)),
    Case("two requests split in the middle of the second", (LIVE + LIVE[:20], LIVE[20:]), (200, 200)),
    Case("a body in a segment of its own", (_put(_LENGTH), _ROW), _SAVED),
    Case("reads and writes in one segment", LIVE + _put(_LENGTH, body=_ROW) + LIVE, (200, 200, 200)),
    Case("the head of a write after a read", (LIVE + _put(_LENGTH), _ROW + LIVE), (200, 200, 200)),
    Case("a request in the body of a read", _get(b"Content-Length: %d" % len(ATTACK)) + ATTACK, (200,)),
    Case("a request in the body of a write", _put(b"Content-Length: %d" % len(ATTACK), body=ATTACK), (400,)),
    Case(
        "a request in the body of a write, whose head came with a read",
        (LIVE + _put(b"Content-Length: %d" % len(ATTACK)), ATTACK),
        (200, 400),
    ),
    Case(
        "a request in a chunk",
        _chunked(b"%x\r\n" % len(ATTACK) + ATTACK + b"\r\n0\r\n\r\n"),
        (400,),
    ),
    Case(
        "a request in the body of a write that is refused without its body",
        (b"PUT /nowhere HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % len(ATTACK), ATTACK),
        (404,),
    ),
    Case("a body above the limit", _put(b"Content-Length: 300000", body=b" " * 300_000), (413,)),
    Case("chunks", _chunked(_CHUNKS), _SAVED),
    Case("chunks, split everywhere", tuple(bytes([byte]) for byte in _chunked(_CHUNKS)), _SAVED),
    Case(
        "chunks of one byte",
        _chunked(b"".join(b"1\r\n%c\r\n" % byte for byte in _ROW) + b"0\r\n\r\n"),
        _SAVED,
    ),
    Case("a chunk extension", _chunked(_CHUNKS.replace(b"e\r\n", b"e;name=value\r\n", 1)), _SAVED),
    Case("a chunk size with leading zeros", _chunked(b"000" + _CHUNKS), _SAVED),
    Case("a trailer", _chunked(_CHUNKS[:-2] + b"X-Check: 1\r\n\r\n"), _SAVED),
    Case("a coding in capitals", _put(b"Transfer-Encoding: Chunked", body=_CHUNKS), _SAVED),
    Case("the head of a row, then a request", b"HEAD" + LIVE[3:] + LIVE, (200, 200)),
    Case("an empty line before the request", b"\r\n" + LIVE, (200,)),
    Case("HTTP/1.0 without a host", b"GET /health/live HTTP/1.0\r\n\r\n", (200,), closes=True),
    Case("a request after Connection: close", _get(b"Connection: close") + ATTACK, (200,), closes=True),
    Case("a request after HTTP/1.0", b"GET /health/live HTTP/1.0\r\n\r\n" + ATTACK, (200,), closes=True),
    Case("an absolute target", _get(target=b"http://x/health/live"), (200,)),
    Case("two spaces before the target", b"GET  /health/live HTTP/1.1\r\nHost: x\r\n\r\n", (200,)),
    Case("a field of 9 kB", _get(b"X: " + b"1" * 9000), (200,)),
    Case("a field value outside ASCII", _get(b"X-Name: \xe4\xff"), (200,)),
    Case("a field name with an underscore", _get(b"Content_Length: 5"), (200,)),
    Case("an upgrade to HTTP/2", _get(b"Connection: Upgrade, HTTP2-Settings", b"Upgrade: h2c"), (200,)),
    Case(
        "a request after one with an upgrade",
        _get(b"Connection: Upgrade", b"Upgrade: websocket", b"Sec-WebSocket-Version: 13") + LIVE,
        (200, 200),
    ),
    *(
        Case(f"{what} with an upgrade", sent, statuses)
        for what, sent, statuses in (
            ("a row", _put(*_UPGRADE, _LENGTH, body=_ROW), _SAVED),
            ("a row in chunks", _put(*_UPGRADE, b"Transfer-Encoding: chunked", body=_CHUNKS), _SAVED),
            (
                "byte by byte, a row",
                tuple(bytes([byte]) for byte in _put(*_UPGRADE, _LENGTH, body=_ROW)),
                _SAVED,
            ),
            ("an empty body", _get(*_UPGRADE, b"Content-Length: 0") + LIVE, (200, 200)),
            (
                "a request in the body of a read",
                _get(*_UPGRADE, b"Content-Length: %d" % len(ATTACK)) + ATTACK + LIVE,
                (200, 200),
            ),
            (
                "a request in the body of a write",
                (_put(*_UPGRADE, b"Content-Length: %d" % len(ATTACK)), ATTACK),
                (400,),
            ),
            (
                "a request in a chunk",
                _put(
                    *_UPGRADE,
                    b"Transfer-Encoding: chunked",
                    body=b"%x\r\n" % len(ATTACK) + ATTACK + b"\r\n0\r\n\r\n",
                ),
                (400,),
            ),
            (
                "after a read, a request in the body of a write",
                LIVE + _put(*_UPGRADE, b"Content-Length: %d" % len(ATTACK), body=ATTACK) + LIVE,
                (200, 400, 200),
            ),
        )
    ),
    Case("two slashes before the path", _get(target=b"//health/live"), (404,)),
    Case(
        "100-continue in HTTP/1.0",
        b"PUT /students/7 HTTP/1.0\r\nContent-Type: application/json\r\nExpect: 100-continue\r\n"
        + _LENGTH
        + b"\r\n\r\n"
        + _ROW,
        _SAVED,
        closes=True,
    ),
    Case(
        "a malformed request after a valid one",
        LIVE + b"GET / HTTP/1.1\r\n\r\n" + ATTACK,
        (200, 400),
        closes=True,
    ),
    Case(
        "a malformed body after a valid request",
        LIVE + _put(b"Transfer-Encoding: chunked", body=b"e\r\n" + _ROW + b"\r\ng\r\n") + ATTACK,
        (200, 400),
        closes=True,
    ),
    Case("OPTIONS *", b"OPTIONS * HTTP/1.1\r\nHost: x\r\n\r\n", (404,)),
    Case(
        "a client that waits for 100 Continue",
        _put(b"Expect: 100-continue", _LENGTH, body=_ROW),
        (100, 200),
    ),
]

_MALFORMED: Final = [
    # The length of the body
    Case("a length and a coding", _put(_LENGTH, b"Transfer-Encoding: chunked", body=_CHUNKS + ATTACK)),
    Case("a coding and a length", _put(b"Transfer-Encoding: chunked", _LENGTH, body=_CHUNKS + ATTACK)),
    Case("two lengths", _put(_LENGTH, b"Content-Length: 2", body=_ROW + ATTACK)),
    Case("two lengths in one field", _put(b"Content-Length: 14, 2", body=_ROW + ATTACK)),
    *(
        Case(f"the length {value!r}", _put(b"Content-Length: " + value, body=_ROW + ATTACK))
        for value in (
            *(b"+14", b"-14", b"0xe", b"1 4", b"14;", b"1_4", b"14.0", b"1e1", b"", b"\xc2\xb9\xc2\xb4"),
            *(b"18446744073709551630", b"99999999999999999999999"),
        )
    ),
    Case("a NUL after the name of the length", _put(b"Content-Length\x00: 14", body=_ROW + ATTACK)),
    Case("a space after the name of the length", _put(b"Content-Length : 14", body=_ROW + ATTACK)),
    # The transfer coding
    *(
        Case(f"the coding {value!r}", _put(b"Transfer-Encoding:" + value, body=_CHUNKS + ATTACK))
        for value in (
            *(b" identity", b" gzip, chunked", b" chunked, gzip", b" chunked, chunked", b" xchunked", b""),
            *(
                b" \x0bchunked",
                b" chunked;q=1",
                b' "chunked"',
                b"\r\n chunked",
                b"\r\n\tchunked",
                b" ,chunked",
            ),
        )
    ),
    Case("a space after the name of the coding", _put(b"Transfer-Encoding : chunked", body=_CHUNKS + ATTACK)),
    Case(
        "two codings",
        _put(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=_CHUNKS + ATTACK),
    ),
    Case(
        "chunks in HTTP/1.0",
        b"PUT /students/7 HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n" + _CHUNKS + ATTACK,
    ),
    # Chunks
    *(
        Case(f"the chunk size {size!r}", _chunked(size + _CHUNKS[1:] + ATTACK))
        for size in (
            *(b"1000000000000000e", b"fffffffffffffffff", b"0xe", b"+e", b"-e", b" e", b"e ", b"", b"g"),
            *(b"e;a\nb", b"e;a\rb", b"e;a\x00b", b"e\n"),
        )
    ),
    Case("a length in a trailer", _chunked(_CHUNKS[:-2] + b"Content-Length: 99\r\n\r\n" + ATTACK)),
    Case("a chunk longer than its size", _chunked(b"d\r\n" + _ROW + b"\r\n0\r\n\r\n" + ATTACK)),
    Case("a chunk without an end of line", _chunked(b"e\r\n" + _ROW + b"0\r\n\r\n" + ATTACK)),
    Case("a chunk that ends with LF", _chunked(b"e\r\n" + _ROW + b"\n0\r\n\r\n" + ATTACK)),
    Case("lines of chunks that end with LF", _chunked(_CHUNKS.replace(b"\r\n", b"\n") + ATTACK)),
    Case("a malformed chunk after a row", _chunked(_CHUNKS[:-5] + b"g\r\n" + ATTACK)),
    # Lines and fields
    Case("lines that end with LF", LIVE.replace(b"\r\n", b"\n")),
    Case("a line that ends with CR", _get(b"X: 1\rY: 2")),
    Case("a field that continues on the next line", _get(b"X: 1\r\n 2")),
    Case("a first field that begins with a space", _get(b"X: 1", host=b" Host: x")),
    Case("a NUL in a field", _get(b"X: a\x00b")),
    Case("a control character in a field", _get(b"X: a\x01b")),
    Case("a field without a colon", _get(b"X")),
    Case("a field without a name", _get(b": x")),
    Case("a field name with a space", _get(b"X Y: 1")),
    Case("a field name outside ASCII", _get(b"X\xe4: 1")),
    Case("no host", _get(host=b"")),
    Case("two hosts", _get(b"Host: y")),
    Case("a host with a space", _get(host=b"Host: a b")),
    Case("a host with a path", _get(host=b"Host: a/b")),
    Case("a host with a user", _get(host=b"Host: a@b")),
    # The request line
    Case("HTTP/0.9", b"GET /health/live\r\n\r\n"),
    *(
        Case(f"the version {version!r}", b"GET /health/live " + version + b"\r\nHost: x\r\n\r\n")
        for version in (
            b"HTTP/9.9",
            b"HTTP/2.0",
            b"HTTP/11",
            b"http/1.1",
            b"HTTP/1.1x",
            b"HTTP/1.",
            b"ICE/1.0",
        )
    ),
    Case("the preface of HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"),
    Case("the begin of TLS", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\x00" * 200),
    Case("a method that no path supports", b"BREW /students HTTP/1.1\r\nHost: x\r\n\r\n"),
    Case("the method 'G@T'", b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n"),
    Case("the method 'get'", b"get /health/live HTTP/1.1\r\nHost: x\r\n\r\n"),
    Case("CONNECT", b"CONNECT x:80 HTTP/1.1\r\nHost: x\r\n\r\n" + ATTACK),
    Case("no target", b"GET HTTP/1.1\r\nHost: x\r\n\r\n"),
    Case("a target with a fragment", _get(target=b"/health/live#x")),
    Case("a relative target", _get(target=b"health/live")),
    Case("a space in the target", _get(target=b"/health/ live")),
    Case("a control character in the target", _get(target=b"/students/\x01")),
    Case("a byte outside ASCII in the target", _get(target=b"/students/\xff")),
    Case("a byte outside ASCII in the query", _get(target=b"/students?after=\xff")),
    # Sizes
    Case("a request line of 9 kB", _get(target=b"/" + b"1" * 9000)),
    Case("a field of 20 kB", _get(b"X: " + b"1" * 20_000)),
    Case("500 fields", _get(*(b"X-%d: 1" % number for number in range(500)))),
    Case("a request line without end", (b"GET /", *[b"1" * _MEGABYTE] * 60)),
    Case("a field without end", (LIVE[:-2] + b"X: ", *[b"1" * _MEGABYTE] * 60)),
    Case("fields without end", (LIVE[:-2], *[b"X: 1\r\n" * 2**17] * 60)),
    Case("empty lines without end", (b"\r\n" * 2**19,) * 60),
    Case("a chunk extension without end", (_chunked(b"e;"), *[b"1" * _MEGABYTE] * 60)),
    Case("chunk extensions without end", (_chunked(b""), *[b"1;" + b"1" * 4000 + b"\r\n1\r\n"] * 2000)),
    Case("a trailer without end", (_chunked(_CHUNKS[:-2] + b"X: "), *[b"1" * _MEGABYTE] * 60)),
    Case("trailers without end", (_chunked(_CHUNKS[:-2]), *[b"X: 1\r\n" * 2**17] * 60)),
    Case("chunks above the limit", (_chunked(b""), *[b"10000\r\n" + b" " * 65536 + b"\r\n"] * 100)),
]

CASES: Final = _VALID + _MALFORMED
