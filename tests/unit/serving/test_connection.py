"""An overloaded service refuses reads without parsing them: only what is certainly one whole request."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, cast

import pytest
from uvicorn.config import Config
from uvicorn.server import ServerState

from serving import uvicorn_internals
from serving.overload import Admission
from serving.uvicorn_internals import Connection

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

GET = b"GET /students/7?limit=1 HTTP/1.1\r\nHost: x\r\nX-Request-ID: find-me\r\n\r\n"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\n"


class Transport:
    """Remembers what was written."""

    def __init__(self) -> None:
        self.written = b""
        self.ended = False

    def write(self, data: bytes) -> None:
        self.written += data

    def write_eof(self) -> None:
        self.ended = True

    def can_write_eof(self) -> bool:
        return True

    def close(self) -> None:
        self.ended = True

    def is_closing(self) -> bool:
        return False

    def get_extra_info(self, _name: str, default: object = None) -> object:
        return default

    def get_write_buffer_size(self) -> int:
        return 0


@pytest.fixture(autouse=True)
def reads(monkeypatch: pytest.MonkeyPatch) -> Admission:
    """The admission of reads: none is admitted."""
    admission = Admission(1.0, 0)
    monkeypatch.setattr(uvicorn_internals.connections, "admission", lambda _method: admission)
    return admission


@pytest.fixture
async def transport() -> Transport:
    return Transport()


@pytest.fixture
async def connection(transport: Transport) -> AsyncIterator[Connection]:
    async def app(_scope: object, _receive: object, send: Any) -> None:
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

    config = Config(cast("Any", app), interface="asgi3", lifespan="off", log_config=None, http=Connection)
    config.load()
    connection = Connection(config, ServerState(), app_state={}, _loop=asyncio.get_running_loop())
    connection.connection_made(cast("Any", transport))
    yield connection
    connection.connection_lost(None)


def test_refused_read_gets_the_same_response_with_and_without_parsing(
    connection: Connection, transport: Transport, reads: Admission
) -> None:
    connection.data_received(GET)
    unparsed, transport.written = transport.written, b""
    connection.data_received(GET[:20])
    connection.data_received(GET[20:])
    assert transport.written == unparsed
    assert unparsed.startswith(b"HTTP/1.1 503 ")
    assert b"\r\nretry-after: 1\r\n" in unparsed
    assert b"\r\nx-request-id: find-me\r\n" in unparsed
    assert unparsed.endswith(b'"instance":"/students/7"}')
    assert reads.refused == 2


def test_refused_head_gets_no_body(connection: Connection, transport: Transport) -> None:
    connection.data_received(GET.replace(b"GET", b"HEAD"))
    assert transport.written.endswith(b"\r\n\r\n")


@pytest.mark.parametrize(
    ("data", "responses", "ended"),
    [
        (GET * 3, 3, False),
        (GET + GET[:30], 1, False),
        (GET.replace(b"Host: x", b"Host: x\r\nConnection: close"), 1, True),
        (GET.replace(b"HTTP/1.1", b"HTTP/1.0"), 1, True),
        (GET.replace(b"Host: x", b"Host: x\r\nUpgrade: h2c\r\nConnection: upgrade"), 1, False),
        (GET.replace(b"Host: x", b"Host: x\r\nContent-Length: %d" % len(GET)) + GET, 1, False),
        (GET.replace(b"Host: x", b"Host: x\r\nContent-Length: %d" % len(GET)), 1, False),
        (GET.replace(b"Host: x", b"Host: x\r\nTransfer-Encoding: chunked"), 1, False),
        (GET.replace(b"Host: x", b"Host: x\r\nTransfer-Encoding: gzip"), 1, True),
        (GET.replace(b"Host: x", b"Host : x"), 1, True),
    ],
    ids=[
        "pipelined",
        "one and a part",
        "close",
        "HTTP/1.0",
        "upgrade",
        "body",
        "body announced",
        "chunks announced",
        "coding",
        "malformed",
    ],
)
def test_refused_read_ends_where_the_parser_says(
    connection: Connection, transport: Transport, data: bytes, responses: int, *, ended: bool
) -> None:
    connection.data_received(data)
    assert transport.written.count(b"HTTP/1.1 ") == responses
    assert transport.ended == ended


def test_body_of_a_refused_request_is_not_a_request(
    connection: Connection, transport: Transport, reads: Admission
) -> None:
    connection.data_received(GET.replace(b"Host: x", b"Host: x\r\nContent-Length: %d" % len(GET)))
    connection.data_received(GET)
    assert reads.refused == 1
    connection.data_received(GET)
    assert reads.refused == 2
    assert transport.written.count(b"HTTP/1.1 503 ") == 2


def test_client_that_is_refused_often_is_not_taken_for_a_slow_one(
    connection: Connection, transport: Transport
) -> None:
    for _ in range(10):
        connection.data_received(GET)
        connection.sweep(uvicorn_internals.connections.timeout)
    assert not transport.ended


def test_idle_connection_is_closed_after_the_keep_alive_time(
    connection: Connection, transport: Transport
) -> None:
    connection.data_received(GET)
    connection.sweep(1)
    connection.sweep(connection.timeout_keep_alive - 1)
    assert not transport.ended
    connection.sweep(1)
    assert transport.ended


async def test_overload_does_not_affect_health_checks(connection: Connection, transport: Transport) -> None:
    connection.data_received(LIVE)
    await asyncio.gather(*connection.tasks)
    assert transport.written.startswith(b"HTTP/1.1 204 ")
