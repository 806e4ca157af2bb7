"""The patches to gunicorn and prometheus-client, on the real classes."""

from __future__ import annotations

import asyncio
import logging
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
from gunicorn.asgi.protocol import ASGIProtocol  # type: ignore[import-untyped]
from gunicorn.config import Config  # type: ignore[import-untyped]
from prometheus_client import CollectorRegistry, Histogram

from serving.gunicorn_internals import answer_parse_errors, close_idle_connections, read_settings_once
from serving.prometheus_internals import BufferedHistogram

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

KEEPALIVE_SECONDS = 0.1
GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
NO_CONTENT = b"HTTP/1.1 204 "

_log = logging.getLogger(__name__)


@pytest.fixture(autouse=True)
def _unpatched_afterwards() -> Iterator[None]:
    original = dict(vars(ASGIProtocol))
    yield
    for name, value in original.items():
        if vars(ASGIProtocol)[name] is not value:
            setattr(ASGIProtocol, name, value)


async def no_content(_scope: object, receive: Any, send: Any) -> None:
    """Respond once the body of the request is complete."""
    while (await receive())["more_body"]:
        pass
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@asynccontextmanager
async def connection() -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to a server with gunicorn's protocol."""
    cfg = Config()
    cfg.set("http_parser", "fast")
    cfg.settings["keepalive"].value = KEEPALIVE_SECONDS
    worker = SimpleNamespace(
        alive=True,
        asgi=no_content,
        cfg=cfg,
        log=SimpleNamespace(access_log_enabled=False, debug=_log.debug, exception=_log.exception),
        loop=asyncio.get_running_loop(),
        max_requests=100,
        nr=0,
        nr_conns=0,
        state={},
    )
    server = await worker.loop.create_server(lambda: ASGIProtocol(worker), "127.0.0.1")
    async with server:
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        try:
            yield reader, writer
        finally:
            writer.close()
            await writer.wait_closed()


async def test_request_that_the_fast_parser_rejects_gets_a_400() -> None:
    answer_parse_errors()
    async with connection() as (reader, writer):
        writer.write(b"G@T / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert (await reader.read()).startswith(b"HTTP/1.1 400 ")


async def test_idle_connection_is_closed() -> None:
    close_idle_connections()
    async with connection() as (reader, writer), asyncio.timeout(50 * KEEPALIVE_SECONDS):
        writer.write(GET)
        assert (await reader.read()).startswith(NO_CONTENT)


async def test_connection_is_not_closed_during_a_request() -> None:
    close_idle_connections()
    async with connection() as (reader, writer), asyncio.timeout(50 * KEEPALIVE_SECONDS):
        writer.write(GET)
        assert (await reader.readuntil(b"\r\n\r\n")).startswith(NO_CONTENT)
        writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{")
        await asyncio.sleep(3 * KEEPALIVE_SECONDS)
        writer.write(b"}")
        assert (await reader.read()).startswith(NO_CONTENT)


def test_settings_are_read_without_a_lookup(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_cfg: Config, name: str) -> None:
        raise AssertionError(name)

    cfg = Config()
    expected = {name: getattr(cfg, name) for name in cfg.settings}
    read_settings_once(cfg)
    monkeypatch.setattr(Config, "__getattr__", fail)
    assert {name: getattr(cfg, name) for name in cfg.settings} == expected


def samples(registry: CollectorRegistry) -> dict[tuple[str, ...], float]:
    return {
        (sample.name, *sample.labels.values()): sample.value
        for metric in registry.collect()
        for sample in metric.samples
        if not sample.name.endswith("_created")
    }


def test_histogram_counts_in_memory_until_it_shares() -> None:
    plain, buffered = CollectorRegistry(), CollectorRegistry()
    buckets = (0.5, 1, 2)
    reference = Histogram("seconds", "", ["method"], buckets=buckets, registry=plain).labels("GET")
    histogram = BufferedHistogram("seconds", "", ["method"], buckets=buckets, registry=buffered).labels("GET")
    for _ in range(2):
        before = samples(buffered)
        for amount in (0, 0.5, 0.75, 1, 1.5, 7):
            reference.observe(amount)
            histogram.observe(amount)
        assert samples(buffered) == before
        histogram.share()
        assert samples(buffered) == samples(plain) != before
