"""Memory and response times of a service while thousands of clients keep it waiting.

For each kind of client: how many connections it got, the worker process's memory, the slowest response to a
well-behaved client in the meantime, and how many connections the service has closed by the end.

`python -m benchmarks.connections` starts the system.
"""

from __future__ import annotations

import asyncio
import resource
import time
from typing import TYPE_CHECKING, Final

import httpx
import typer
from rich.console import Console

from benchmarks.http_client import Client
from local.ports import HOST
from local.settings import Settings
from local.system import System

if TYPE_CHECKING:
    from local.service import Service

_PAUSE_SECONDS: Final = 0.25
_PAGE: Final = b"GET /students?limit=1000 HTTP/1.1\r\nHost: x\r\n\r\n"
_KINDS: Final = {
    "idle": b"",
    "slow headers": b"GET /students/1 HTTP/1.1\r\nHost: x\r\nX: ",
    "slow bodies": b"PUT /students/1 HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    b"Content-Length: 20\r\n\r\n{",
    "unread responses": _PAGE * 20,
}


class _Silent(asyncio.Protocol):
    """A client that sends its part of a request, and then neither sends nor reads."""

    def __init__(self, sent: bytes) -> None:
        self.closed = False
        self._sent = sent

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._sent)
        if self._sent.startswith(_PAGE):
            transport.pause_reading()

    def connection_lost(self, _: Exception | None) -> None:
        self.closed = True


async def keep_waiting(service: Service, sent: bytes, count: int, seconds: float) -> str:
    """Open connections of one kind, wait, and return the figures as a line of text."""
    loop = asyncio.get_running_loop()
    [worker] = service.tree()[1:]
    before = peak = worker.memory_info().rss
    clients: list[_Silent] = []
    for _ in range(count):
        try:
            clients.append((await loop.create_connection(lambda: _Silent(sent), HOST, service.port))[1])
        except OSError:
            continue
    failed, slowest, end = 0, 0.0, loop.time() + seconds
    client = Client(HOST, service.port)
    while loop.time() < end:
        began = time.perf_counter()
        try:
            await client.request("GET", "/students/1")
        except (OSError, EOFError):
            failed += 1
        slowest = max(slowest, time.perf_counter() - began)
        peak = max(peak, worker.memory_info().rss)
        await asyncio.sleep(_PAUSE_SECONDS)
    await client.close()
    closed = count - len(clients) + sum(each.closed for each in clients)
    return (
        f"memory {before / 2**20:4.0f} MB, at most {peak / 2**20:4.0f} MB  slowest response"
        f" {1000 * slowest:5.0f} ms, failed {failed}  closed {closed} of {count} within {seconds:.0f} s"
    )


def main(count: int = 10_000, seconds: float = 30) -> None:
    """Measure an sb worker process with each kind of client."""
    console = Console()
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    with System(Settings(), console) as system:
        system.airflow.stop()  # not needed, and it would use CPU time
        service = system.services["sb"]
        with httpx.Client(base_url=service.url) as client:
            for key in range(1000):
                client.put(f"/students/{key}", json={"name": "A" * 1000}).raise_for_status()
        for name, sent in _KINDS.items():
            line = asyncio.run(keep_waiting(service, sent, count, seconds))
            console.print(f"{name:17}{line}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    typer.run(main)
