"""Access to one slot at a time, for a service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from redis.exceptions import NoScriptError

from cachesync.slots.clients import is_cluster, service_client
from cachesync.slots.cluster import Cluster
from cachesync.slots.round_trips import RoundTrips
from cachesync.slots.scripts import script_calls

if TYPE_CHECKING:
    from cachesync.slots.layout import SlotChange


class Slots:
    """Reads and changes slots, in one Redis or in a Redis Cluster."""

    def __init__(self, redis: RoundTrips | Cluster) -> None:
        self._redis = redis

    @classmethod
    async def open(cls, url: str, seconds: float) -> Self:
        """Open the slots at a URL; Redis need not be available yet.

        Args:
            url: of a Redis or a Redis Cluster.
            seconds: the timeout of one response.

        Raises:
            SettingsError: the URL is not a Redis URL.
        """
        if not is_cluster(url):
            return cls(RoundTrips(service_client(url, seconds)))
        cluster = Cluster(url, seconds)
        await cluster.find()
        return cls(cluster)

    async def get(self, name: str) -> bytes | None:
        """Return a slot's content; None if it is empty.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        slot: bytes | None = await self._redis.of(name).call("GET", name)
        return slot

    async def lease(
        self, name: str, token: str, lease_ms: int, fingerprint: bytes, purpose: Literal["read", "write"]
    ) -> bytes | None:
        """Take the lease of a slot that has nothing to serve.

        Args:
            name: the slot's Redis key.
            token: the token of the new lease.
            lease_ms: how long it holds, in milliseconds.
            fingerprint: the schema fingerprint that the caller can serve.
            purpose: a write also replaces *absent*.

        Returns:
            None if the lease was taken; otherwise the slot's content.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        slot: bytes | None = await self._run("lease", name, token, lease_ms, fingerprint, purpose)
        return slot

    async def fill(self, name: str, token: str, content: bytes, ttl_ms: int) -> bool:
        """Fill a slot whose lease the caller holds.

        Args:
            name: the slot's Redis key.
            token: the token of that lease.
            content: the new content, a value or *absent*.
            ttl_ms: its lifetime in milliseconds.

        Returns:
            Whether the slot accepted it.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        return bool(await self._run("fill", name, token, content, ttl_ms))

    async def change(self, change: SlotChange, token: str) -> None:
        """Bring a committed change of this service to its slot.

        Args:
            change: what it does.
            token: the token of the lease that the write took; empty if it holds none.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        await self._run("change", *change, token)

    async def release(self, name: str, token: str) -> None:
        """Give a lease back.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        await self._run("release", name, token)

    async def answers(self) -> bool:
        """Return whether Redis responds now; for a cluster, whether every primary does."""
        return await self._redis.answers()

    async def close(self) -> None:
        """Wait for pending commands, and disconnect."""
        await self._redis.close()

    async def _run(self, name: str, slot: str, *arguments: bytes | str | int) -> Any:
        redis = self._redis.of(slot)
        steps = script_calls(name, [(slot, *arguments)])
        (command,) = next(steps)
        while True:
            try:
                answer = await redis.call(*command)
            except NoScriptError as error:
                answer = error
            try:
                (command,) = steps.send([answer])
            except StopIteration as end:
                return end.value[0]
