"""A service's Redis Cluster: each primary is a Redis of its own, which fails by itself."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import structlog
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from cachesync.errors import CacheUnavailableError
from cachesync.slots.clients import node_url, service_client
from cachesync.slots.round_trips import RoundTrips

if TYPE_CHECKING:
    from collections.abc import Coroutine

_log = structlog.get_logger(__name__)

# Between two looks at who has which hash slots.
_PAUSE_SECONDS: Final = 1.0


class Cluster:
    """The primaries of a Redis Cluster.

    redis-py's own asyncio client of a cluster is not used: its pipeline fails as a whole with one node, it
    does not find a node's successor without second tries, and an answer of it may fail with any exception.

    Args:
        url: leads to any one node.
        seconds: the longest wait for an answer.

    Raises:
        ValueError: the URL is none of a Redis Cluster.
    """

    def __init__(self, url: str, seconds: float) -> None:
        self._url = url
        self._seconds = seconds
        given = urlsplit(url)
        self._given = node_url(url, given.hostname or "", given.port or 6379)
        self._first = self._open(self._given)
        self._primaries: dict[str, RoundTrips] = {}
        self._owners: list[RoundTrips | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._looking: asyncio.Task[None] | None = None
        self._next_look = 0.0
        self._known = True
        self._closing: set[asyncio.Task[None]] = set()

    def of(self, name: str) -> RoundTrips:
        """The primary that has a key.

        Raises:
            CacheUnavailableError: none is known.
        """
        owner = self._owners[key_slot(name.encode())]
        if owner is None:
            self._look_again()
            message = "no primary of the Redis Cluster is known to have this key"
            raise CacheUnavailableError(message)
        return owner

    async def find(self) -> None:
        """Learn who has which hash slots from the first node that tells; all stays as it is if none does."""
        self._next_look = asyncio.get_running_loop().time() + _PAUSE_SECONDS
        problem = ""
        for url, node in [*self._primaries.items(), (self._given, self._first)]:
            try:
                ranges = await node.call("CLUSTER SLOTS")
            except CacheUnavailableError as error:
                problem = str(error)
                continue
            self._take(ranges, urlsplit(url).hostname or "")
            self._known = True
            return
        if self._known:
            _log.warning("no node of the Redis Cluster tells who has which keys", error=problem)
        self._known = False

    async def answers(self) -> bool:
        """Whether every primary answers now."""
        answers = await asyncio.gather(*(node.answers() for node in self._primaries.values()))
        return bool(answers) and all(answers)

    async def close(self) -> None:
        """Wait for what is under way, and disconnect."""
        if self._looking is not None:
            await self._looking
        await asyncio.gather(
            *self._closing, *(node.close() for node in (*self._primaries.values(), self._first))
        )

    def _open(self, url: str) -> RoundTrips:
        return RoundTrips(service_client(url, self._seconds), self._look_again)

    def _look_again(self) -> None:
        """Find who has which hash slots in the background, unless that is under way or was just done."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._next_look or (self._looking is not None and not self._looking.done()):
            return
        self._looking = loop.create_task(self.find())

    def _take(self, ranges: list[list[Any]], asked: str) -> None:
        """Take over what a node said; it leaves its own host out where it does not know it."""
        former, self._primaries = self._primaries, {}
        owners: list[RoundTrips | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, (host, port, *_), *_ in ranges:
            url = node_url(self._url, host.decode() if host else asked, port)
            node = self._primaries.get(url) or former.pop(url, None) or self._open(url)
            self._primaries[url] = node
            owners[first : last + 1] = [node] * (last + 1 - first)
        self._owners = owners
        for gone in former.values():
            self._in_background(gone.close())

    def _in_background(self, closing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
