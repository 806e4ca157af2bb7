"""A stand-in for PgBouncer, which cannot be installed with pip: it does what version 1.18 was seen to do."""

from __future__ import annotations

import asyncio
import struct
from contextlib import asynccontextmanager, suppress
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

# The only settings of a client that PgBouncer passes on.
_TRACKED: Final = {"user", "database", "application_name", "client_encoding", "datestyle", "timezone"}


@asynccontextmanager
async def pooler(host: str, port: int, *, ignores_settings: bool) -> AsyncIterator[int]:
    """Listen in front of a PostgreSQL and provide the port.

    Args:
        host: the host of the PostgreSQL.
        port: its port.
        ignores_settings: whether settings are dropped, as with `ignore_startup_parameters`, or rejected.
    """

    handlers: set[asyncio.Task[None]] = set()

    async def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handler = asyncio.current_task()
        assert handler is not None
        handlers.add(handler)
        with suppress(OSError, asyncio.IncompleteReadError):
            await _serve(reader, writer, host, port, ignores_settings=ignores_settings)
        writer.close()

    server = await asyncio.start_server(connected, "127.0.0.1", 0)
    yield server.sockets[0].getsockname()[1]
    server.close()
    await asyncio.gather(*handlers)


async def _serve(
    reader: asyncio.StreamReader,
    writer: asyncio.StreamWriter,
    host: str,
    port: int,
    *,
    ignores_settings: bool,
) -> None:
    startup = await _body(reader)
    while len(startup) == 4:  # a request for encryption
        writer.write(b"N")
        startup = await _body(reader)
    words = startup[4:-2].decode().split("\0")
    settings = dict(zip(words[::2], words[1::2], strict=True))
    unknown = [name for name in settings if name.lower() not in _TRACKED]
    if unknown and not ignores_settings:
        text = f"unsupported startup parameter: {unknown[0]}"
        fields = b"SFATAL\0VFATAL\0C08P01\0M" + text.encode() + b"\0\0"
        writer.write(b"E" + struct.pack("!I", len(fields) + 4) + fields)
        await writer.drain()
        return
    server_reader, server_writer = await asyncio.open_connection(host, port)
    kept = "".join(f"{name}\0{value}\0" for name, value in settings.items() if name not in unknown) + "\0"
    packet = startup[:4] + kept.encode()
    server_writer.write(struct.pack("!I", len(packet) + 4) + packet)
    copying = asyncio.create_task(_copy(reader, server_writer))
    try:
        await _responses(server_reader, writer)
    finally:
        copying.cancel()
        server_writer.close()


async def _responses(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass responses on, with another process number for the client."""
    while True:
        kind = await reader.readexactly(1)
        body = await _body(reader)
        if kind == b"K":
            body = struct.pack("!i", -7) + body[4:]
        writer.write(kind + struct.pack("!I", len(body) + 4) + body)
        await writer.drain()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


async def _body(reader: asyncio.StreamReader) -> bytes:
    (length,) = struct.unpack("!I", await reader.readexactly(4))
    return await reader.readexactly(length - 4)
