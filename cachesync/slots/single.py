"""Access to one slot at a time, for a service."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, Self

from redis.exceptions import NoScriptError

from cachesync.slots.clients import check_url, is_cluster, service_client
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
        """Open the slots at a URL; the Redis need not be available yet.

        Args:
            url: the URL of a Redis or a Redis Cluster.
            seconds: the timeout for a reply.

        Raises:
            SettingsError: the URL is not a Redis URL.
        """
        if not is_cluster(url):
            return cls(RoundTrips(service_client(url, seconds)))
        check_url(url)
        cluster = Cluster(url, seconds)
        await cluster.refresh()
        return cls(cluster)

    async def get(self, name: str) -> bytes | None:
        """Return the content of a slot; None if it is empty.

        Args:
            name: the slot's Redis key.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        slot: bytes | None = await self._redis.node_for(name).call("GET", name)
        return slot

    async def lease(
        self, name: str, token: str, lease_ms: int, fingerprint: bytes, purpose: Literal["read", "write"]
    ) -> bytes | None:
        """Take the lease of a slot whose content cannot be served.

        Args:
            name: the slot's Redis key.
            token: the token of the new lease.
            lease_ms: the lifetime of the lease, in milliseconds.
            fingerprint: the schema fingerprint of the values that the caller can serve.
            purpose: `write` also replaces *absent* with the lease.

        Returns:
            None if the lease was taken; otherwise the content of the slot.

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
            ttl_ms: the lifetime of the content, in milliseconds.

        Returns:
            Whether the slot was filled.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        return bool(await self._run("fill", name, token, content, ttl_ms))

    async def change(self, change: SlotChange, token: str) -> None:
        """Apply a committed change of this service to its slot.

        Args:
            change: the change.
            token: the token of the lease that the write took; empty if it did not take one.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        await self._run("change", *change, token)

    async def release(self, name: str, token: str) -> None:
        """Give up a lease without filling the slot.

        Args:
            name: the slot's Redis key.
            token: the token of the lease.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        await self._run("release", name, token)

    async def is_available(self) -> bool:
        """Return whether the Redis responds now; for a Redis Cluster, whether every primary does."""
        return await self._redis.is_available()

    async def close(self) -> None:
        """Wait for the commands in progress, then disconnect."""
        await self._redis.close()

    async def _run(self, name: str, slot: str, *arguments: bytes | str | int) -> Any:
        redis = self._redis.node_for(slot)
        steps = script_calls(name, [(slot, *arguments)])
        (command,) = next(steps)
        while True:
            try:
                reply = await redis.call(*command)
            except NoScriptError as error:
                reply = error
            try:
                (command,) = steps.send([reply])
            except StopIteration as end:
                return end.value[0]
