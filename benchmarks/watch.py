"""Observes from outside when changes become readable in a Redis."""

from __future__ import annotations

import asyncio
import re
import time
from bisect import bisect_left
from collections import Counter, deque
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, ClassVar, Final
from urllib.parse import urlsplit

import hiredis

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

# The writers of the benchmarks put a number into the column `name` that grows with every change of a row.
_NUMBER: Final = re.compile(rb'"name":"(\d+) *"')
_SLOT: Final = b"sb:student:"


class _Replies(asyncio.Protocol):
    """Stamps each reply of a Redis with the time at which it arrived."""

    def __init__(self, on_reply: Callable[[object, float], None]) -> None:
        self._on_reply = on_reply
        self._reader = hiredis.Reader()

    def data_received(self, data: bytes) -> None:
        now = time.time()
        self._reader.feed(data)
        while (reply := self._reader.gets()) is not False:
            self._on_reply(reply, now)


class _Connection:
    """A connection to a Redis."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self.close = transport.close

    @classmethod
    async def open(cls, url: str, on_reply: Callable[[object, float], None]) -> _Connection:
        address = urlsplit(url)
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(
            lambda: _Replies(on_reply), str(address.hostname), address.port or 6379
        )
        return cls(transport)

    def send(self, *words: str | bytes) -> None:
        # The client's stub allows a single word only.
        self._transport.write(hiredis.pack_command(words))  # type: ignore[arg-type]


class Watch:
    """Records when each change of sb's slots could be read.

    Redis reports each change of a slot as a keyspace notification; the slot is then read to see which change
    it holds. The time is that of the notification, at which the slot could be read.
    """

    # Redis reports to all or to none.
    _watching: ClassVar[Counter[str]] = Counter()

    def __init__(self) -> None:
        self._seen: dict[int, list[tuple[int, float]]] = {}
        self._asked: deque[tuple[int, float]] = deque()
        self._reading: _Connection | None = None

    @classmethod
    @asynccontextmanager
    async def watching(cls, url: str, keys: str) -> AsyncIterator[Watch]:
        """Watch the rows whose keys match a glob pattern until the block ends."""
        watch = cls()
        listening = await _Connection.open(url, watch._on_notification)
        watch._reading = await _Connection.open(url, watch._on_value)
        cls._watching[url] += 1
        listening.send("CONFIG", "SET", "notify-keyspace-events", "K$")
        listening.send("PSUBSCRIBE", f"__keyspace@*__:{_SLOT.decode()}{keys}")
        try:
            yield watch
        finally:
            listening.send("PUNSUBSCRIBE")
            cls._watching[url] -= 1
            if not cls._watching[url]:
                listening.send("CONFIG", "SET", "notify-keyspace-events", "")
            await asyncio.sleep(0.05)
            listening.close()
            watch._reading.close()

    def readable(self, key: int, number: int) -> float | None:
        """Return when this change or a later one of the row could be read; None if it has not been seen.

        The time is in seconds since the epoch.
        """
        seen = self._seen.get(key, [])
        index = bisect_left(seen, number, key=lambda one: one[0])
        return seen[index][1] if index < len(seen) else None

    def _on_notification(self, reply: object, now: float) -> None:
        if isinstance(reply, list) and reply[0] == b"pmessage" and self._reading is not None:
            slot = reply[2].partition(b":")[2]
            self._asked.append((int(slot.removeprefix(_SLOT)), now))
            self._reading.send("GET", slot)

    def _on_value(self, reply: object, _: float) -> None:
        key, when = self._asked.popleft()
        found = _NUMBER.search(reply) if isinstance(reply, bytes) else None
        seen = self._seen.setdefault(key, [])
        if found is not None and (not seen or int(found[1]) > seen[-1][0]):
            seen.append((int(found[1]), when))
