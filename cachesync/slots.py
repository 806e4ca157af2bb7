"""The slots of one service's cache."""

from __future__ import annotations

from typing import Any, Literal, Self

from redis.exceptions import NoScriptError

from cachesync.cluster import Cluster
from cachesync.redis_client import is_cluster, service_client
from cachesync.round_trips import RoundTrips
from cachesync.slot import script


class Slots:
    """Reads and changes slots, in one Redis or in a Redis Cluster."""

    def __init__(self, redis: RoundTrips | Cluster) -> None:
        self._redis = redis

    @classmethod
    async def open(cls, url: str, seconds: float) -> Self:
        """Those at a URL, with the longest wait for an answer; Redis may be away.

        Raises:
            ValueError: the URL is none of a Redis.
        """
        if not is_cluster(url):
            return cls(RoundTrips(service_client(url, seconds)))
        cluster = Cluster(url, seconds)
        await cluster.find()
        return cls(cluster)

    async def get(self, name: str) -> bytes | None:
        """A slot's content; None where it is empty.

        Raises:
            CacheUnavailableError: Redis does not answer.
        """
        slot: bytes | None = await self._redis.of(name).call("GET", name)
        return slot

    async def lease(
        self, name: str, token: str, lease_ms: int, fingerprint: bytes, purpose: Literal["read", "write"]
    ) -> bytes | None:
        """Take the lease of a slot that has nothing to serve; None where it was taken, else the slot.

        Raises:
            CacheUnavailableError: Redis does not answer.
        """
        slot: bytes | None = await self._run("lease", name, token, lease_ms, fingerprint, purpose)
        return slot

    async def fill(self, name: str, token: str, slot: bytes, ttl_ms: int) -> bool:
        """Fill the slot whose lease is held; whether that was accepted.

        Raises:
            CacheUnavailableError: Redis does not answer.
        """
        return bool(await self._run("fill", name, token, slot, ttl_ms))

    async def change(self, name: str, version: bytes, slot: bytes, ttl_ms: int, token: str) -> None:
        """Bring a committed change of this service to a slot.

        Raises:
            CacheUnavailableError: Redis does not answer.
        """
        await self._run("change", name, version, slot, ttl_ms, token)

    async def release(self, name: str, token: str) -> None:
        """Give a lease back.

        Raises:
            CacheUnavailableError: Redis does not answer.
        """
        await self._run("release", name, token)

    async def answers(self) -> bool:
        """Whether Redis answers now; of a cluster, every primary."""
        return await self._redis.answers()

    async def close(self) -> None:
        """Wait for what is under way, and disconnect."""
        await self._redis.close()

    async def _run(self, name: str, slot: str, *arguments: bytes | str | int) -> Any:
        lua = script(name)
        redis = self._redis.of(slot)
        try:
            return await redis.call("EVALSHA", lua.sha, 1, slot, *arguments)
        except NoScriptError:
            # Redis was restarted or flushed its scripts; EVAL loads it again.
            return await redis.call("EVAL", lua.source, 1, slot, *arguments)
