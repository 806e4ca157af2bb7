"""A TCP proxy that can delay and hold back data, and cut connections."""

from __future__ import annotations

import asyncio
import socket
import struct
import threading
from collections import deque
from contextlib import suppress
from typing import TYPE_CHECKING, Self, cast

import uvloop

from local.ports import HOST, free_port

if TYPE_CHECKING:
    from collections.abc import Callable

# A socket with this SO_LINGER option sends a reset (RST) instead of a FIN when it is closed.
_RESET = struct.pack("ii", 1, 0)


class Proxy:
    """Forwards connections to a port on this machine.

    Attributes:
        port: the port it listens on.
        delay: how late data arrives, in seconds; can be changed at any time.
        target: the port that new connections are forwarded to.
    """

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self.delay = 0.0
        self.target = target
        self.is_cut = False
        self.is_frozen = False
        self.holds_answers = False
        self.ends: set[_End] = set()
        self.connecting: set[asyncio.Task[None]] = set()
        self._loop = uvloop.new_event_loop()
        self._ready = threading.Event()
        self._thread = threading.Thread(target=self._run, name="proxy", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        assert self._ready.wait(10)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)

    def cut(self) -> None:
        """Reset all connections, including new ones, until `mend` is called."""
        self.is_cut = True
        self._loop.call_soon_threadsafe(self._reset)

    def freeze(self) -> None:
        """Hold back all data until `mend` is called, which then delivers it."""
        self.is_frozen = True

    def hold_answers(self) -> None:
        """Hold back data from the target until `mend` is called; data to the target passes."""
        self.holds_answers = True

    def mend(self) -> None:
        """End all faults and deliver the data that was held back."""
        self.delay = 0.0
        self.is_cut = self.is_frozen = self.holds_answers = False
        self._loop.call_soon_threadsafe(self._go_on)

    def _reset(self) -> None:
        for end in list(self.ends):
            end.reset()

    def _go_on(self) -> None:
        for end in list(self.ends):
            end.send()

    def _run(self) -> None:
        server = self._loop.run_until_complete(
            self._loop.create_server(lambda: _End(self, self._loop, is_client=True), HOST, self.port)
        )
        self._ready.set()
        self._loop.run_forever()
        server.close()
        self._reset()
        self._loop.run_until_complete(self._loop.shutdown_asyncgens())
        self._loop.close()


class _End(asyncio.Protocol):
    """One side of a connection; the data it receives goes to the other side."""

    def __init__(self, proxy: Proxy, loop: asyncio.AbstractEventLoop, *, is_client: bool) -> None:
        self._proxy = proxy
        self._loop = loop
        self._is_client = is_client
        self._transport: asyncio.Transport | None = None
        self._other: _End | None = None
        self._waiting: deque[tuple[float, bytes]] = deque()
        self._ended = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        # uvloop's transports have its methods but are not instances of it.
        self._transport = cast("asyncio.Transport", transport)
        self._proxy.ends.add(self)
        if self._is_client:
            connecting = self._loop.create_task(self._connect())
            self._proxy.connecting.add(connecting)
            connecting.add_done_callback(self._proxy.connecting.discard)

    async def _connect(self) -> None:
        other = _End(self._proxy, self._loop, is_client=False)
        try:
            if self._proxy.is_cut:
                raise ConnectionResetError
            await self._loop.create_connection(lambda: other, HOST, self._proxy.target)
        except OSError:
            self.reset()
            return
        other._other = self
        self._other = other
        self.send()
        other.send()

    def data_received(self, data: bytes) -> None:
        self._waiting.append((self._loop.time() + self._proxy.delay, data))
        self.send()

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002 - asyncio's signature
        self._ended = True
        self.send()

    def pause_writing(self) -> None:
        self._other_reads(lambda transport: transport.pause_reading())

    def resume_writing(self) -> None:
        self._other_reads(lambda transport: transport.resume_reading())

    def _other_reads(self, action: Callable[[asyncio.Transport], None]) -> None:
        if self._other is not None and self._other._transport is not None:  # noqa: SLF001
            action(self._other._transport)  # noqa: SLF001

    @property
    def _is_held(self) -> bool:
        return self._proxy.is_frozen or (self._proxy.holds_answers and not self._is_client)

    def send(self) -> None:
        """Send the data that is due to the other side; if this side has ended, then close the other."""
        other = self._other
        if self._is_held or (other is None and not self._ended):
            return
        if other is not None and other._transport is not None:  # noqa: SLF001
            now = self._loop.time()
            while self._waiting and self._waiting[0][0] <= now:
                data = self._waiting.popleft()[1]
                if not other._transport.is_closing():  # noqa: SLF001
                    other._transport.write(data)  # noqa: SLF001
            if self._waiting:
                self._loop.call_at(self._waiting[0][0], self.send)
                return
            if self._ended:
                other._transport.close()  # noqa: SLF001
        if self._ended:
            self._proxy.ends.discard(self)

    def reset(self) -> None:
        """Reset the connection on both sides and discard data that is held back."""
        self._waiting.clear()
        for end in (self, self._other):
            if end is not None and end._transport is not None and not end._transport.is_closing():  # noqa: SLF001
                with suppress(OSError):
                    end._transport.get_extra_info("socket").setsockopt(  # noqa: SLF001
                        socket.SOL_SOCKET, socket.SO_LINGER, _RESET
                    )
                end._transport.abort()  # noqa: SLF001
