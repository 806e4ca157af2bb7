"""A minimal HTTP/1.1 client, so that a benchmark leaves the CPU to what it measures."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


_IDLE_SECONDS: Final = 1.0


class Response(NamedTuple):
    """An HTTP response; header names are in lower case."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Client:
    """A client that keeps one connection open per concurrent request."""

    def __init__(self, host: str, port: int) -> None:
        self._host = host
        self._port = port
        self._idle: list[tuple[float, asyncio.StreamReader, asyncio.StreamWriter]] = []

    async def request(self, method: str, path: str, body: bytes = b"") -> Response:
        """Send a request with a JSON body and return the response."""
        async with self._connection() as (reader, writer):
            writer.write(
                b"%b %b HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%b"
                % (method.encode(), path.encode(), len(body), body)
            )
            head = await reader.readuntil(b"\r\n\r\n")
            status, *lines = head[:-4].split(b"\r\n")
            headers = {
                name.lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines)
            }
            content = await reader.readexactly(int(headers.get(b"content-length", b"0")))
            return Response(int(status.split(b" ", 2)[1]), headers, content)

    async def close(self) -> None:
        """Close all idle connections."""
        for _, _, writer in self._idle:
            writer.close()
            await writer.wait_closed()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        newest = self._idle.pop() if self._idle else None
        if newest is not None and time.monotonic() - newest[0] < _IDLE_SECONDS:
            _, reader, writer = newest
        else:
            # The others have been idle for even longer, and the server might be closing them.
            for _, _, idle in self._idle:
                idle.close()
            self._idle.clear()
            reader, writer = await asyncio.open_connection(self._host, self._port)
        try:
            yield reader, writer
        except BaseException:
            writer.close()
            raise
        self._idle.append((time.monotonic(), reader, writer))
