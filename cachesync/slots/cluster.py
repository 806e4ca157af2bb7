"""A service's Redis Cluster: each primary is a Redis of its own that fails independently."""

from __future__ import annotations

import asyncio
from itertools import count
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit

import structlog
from redis.crc import REDIS_CLUSTER_HASH_SLOTS, key_slot

from cachesync.errors import CacheUnavailableError
from cachesync.slots.clients import node_url, service_client
from cachesync.slots.condition import Condition
from cachesync.slots.round_trips import RoundTrips

if TYPE_CHECKING:
    from collections.abc import Coroutine

_log = structlog.get_logger(__name__)

# Minimum time between two refreshes of the hash slot map.
_REFRESH_SECONDS: Final = 1.0


class Cluster:
    """The primaries of a Redis Cluster.

    redis-py's own asyncio cluster client is not used: its pipeline fails as a whole if one node fails, it
    finds the successor of a failed node only through retries, and a call can fail with any exception.

    Args:
        url: the URL of any one node.
        seconds: the timeout for a reply.
        probe: the beginning of keys that are never slots.

    Raises:
        ValueError: the URL is not a Redis Cluster URL.
    """

    def __init__(self, url: str, seconds: float, probe: str) -> None:
        self._url = url
        self._seconds = seconds
        self._probe = probe
        parts = urlsplit(url)
        self._seed_url = node_url(url, parts.hostname or "", parts.port or 6379)
        self._seed = self._open(self._seed_url, probe)
        self._primaries: dict[str, RoundTrips] = {}
        self._owners: list[RoundTrips | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        self._refreshing: asyncio.Task[None] | None = None
        self._next_refresh = 0.0
        self._refreshed = True
        self._closing: set[asyncio.Task[None]] = set()

    def node_for(self, key: str) -> RoundTrips:
        """Return the primary that owns a key.

        Raises:
            CacheUnavailableError: the owner is unknown.
        """
        owner = self._owners[key_slot(key.encode())]
        if owner is None:
            self._refresh_soon()
            message = "no known primary of the Redis Cluster owns the hash slot of this key"
            raise CacheUnavailableError(message)
        return owner

    def nodes(self) -> list[RoundTrips]:
        """Return every primary that owns keys.

        Raises:
            CacheUnavailableError: the owner of some keys is unknown.
        """
        if None in self._owners:
            self._refresh_soon()
            message = "no known primary of the Redis Cluster owns some of the hash slots"
            raise CacheUnavailableError(message)
        return list(self._primaries.values())

    def known(self) -> list[RoundTrips]:
        """Return every primary that is known, even if the owner of some keys is not."""
        return list(self._primaries.values())

    async def refresh(self) -> None:
        """Take the hash slot map from the first node that returns it; if none does, keep the current one."""
        self._next_refresh = asyncio.get_running_loop().time() + _REFRESH_SECONDS
        problem = ""
        for url, node in [*self._primaries.items(), (self._seed_url, self._seed)]:
            try:
                ranges = await node.call("CLUSTER", "SLOTS")
            except CacheUnavailableError as error:
                problem = str(error)
                continue
            self._replace_map(ranges, urlsplit(url).hostname or "")
            self._refreshed = True
            return
        if self._refreshed:
            _log.warning("no Redis Cluster node returned the hash slot map", error=problem)
        self._refreshed = False

    async def problem(self) -> str | None:
        """Return why some primaries cannot be used as a cache now; None if all can."""
        if not self._primaries:
            return "no Redis Cluster node returned the hash slot map"
        problems = await asyncio.gather(*(node.problem() for node in self._primaries.values()))
        return (
            "; ".join(
                f"{urlsplit(url).netloc.rpartition('@')[2]}: {problem}"
                for url, problem in zip(self._primaries, problems, strict=True)
                if problem is not None
            )
            or None
        )

    async def close(self) -> None:
        """Wait for the round trips in progress, then disconnect."""
        if self._refreshing is not None:
            await self._refreshing
        await asyncio.gather(
            *self._closing, *(node.close() for node in (*self._primaries.values(), self._seed))
        )

    def _open(self, url: str, probe: str) -> RoundTrips:
        condition = Condition(node=urlsplit(url).netloc.rpartition("@")[2])
        return RoundTrips(service_client(url, self._seconds), probe, condition, self._refresh_soon)

    def _refresh_soon(self) -> None:
        """Refresh the hash slot map in the background, unless a refresh is in progress or has just ended."""
        loop = asyncio.get_running_loop()
        if loop.time() < self._next_refresh or (self._refreshing is not None and not self._refreshing.done()):
            return
        self._refreshing = loop.create_task(self.refresh())

    def _replace_map(self, ranges: list[list[Any]], queried_host: str) -> None:
        """Replace the hash slot map with a node's reply to CLUSTER SLOTS.

        The reply leaves out the queried node's own host if the node does not know it.
        """
        former, self._primaries = self._primaries, {}
        owners: list[RoundTrips | None] = [None] * REDIS_CLUSTER_HASH_SLOTS
        for first, last, (host, port, *_), *_ in ranges:
            url = node_url(self._url, host.decode() if host else queried_host, port)
            node = self._primaries.get(url)
            if node is None:
                probe = next(
                    key
                    for key in (f"{self._probe}{number}" for number in count())
                    if first <= key_slot(key.encode()) <= last
                )
                node = former.pop(url) if url in former else self._open(url, probe)
                node.probe = probe
                self._primaries[url] = node
            owners[first : last + 1] = [node] * (last + 1 - first)
        self._owners = owners
        for removed in former.values():
            self._close_in_background(removed.close())

    def _close_in_background(self, closing: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(closing)
        self._closing.add(task)
        task.add_done_callback(self._closing.discard)
