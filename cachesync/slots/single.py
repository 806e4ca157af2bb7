"""Access to one slot at a time, for a service."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, Literal, Self

from redis.exceptions import RedisError

from cachesync.errors import CacheRefusedError, CacheUnavailableError
from cachesync.slots.clients import check_url, is_cluster, reading_client, service_client
from cachesync.slots.cluster import Cluster
from cachesync.slots.condition import Condition
from cachesync.slots.round_trips import RoundTrips
from cachesync.slots.scripts import is_emptied

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Sequence

    from redis import Redis

    from cachesync.slots.layout import SlotChange

# Redis does nothing else while it runs a script.
_ADVANCED_TOGETHER: Final = 100
_SCANNED_TOGETHER: Final = 1000


class Slots:
    """Reads and changes slots, in one Redis or in a Redis Cluster.

    Args:
        redis: the Redis.
        reading: a client for the reads of other threads than that of the event loop; None in a Redis Cluster.
    """

    def __init__(self, redis: RoundTrips | Cluster, reading: Redis | None = None) -> None:
        self._redis = redis
        self._reading = reading

    @classmethod
    async def open(cls, url: str, seconds: float, prefix: str) -> Self:
        """Open the slots at a URL; the Redis need not be available yet.

        Args:
            url: the URL of a Redis or a Redis Cluster.
            seconds: the timeout for a reply.
            prefix: how the names of an entity's slots begin.

        Raises:
            SettingsError: the URL is not a Redis URL.
        """
        # No key of a row contains NUL.
        probe = f"{prefix}\0"
        if not is_cluster(url):
            redis = RoundTrips(service_client(url, seconds), probe, Condition())
            return cls(redis, reading_client(url, seconds))
        check_url(url)
        cluster = Cluster(url, seconds, probe)
        await cluster.refresh()
        return cls(cluster)

    def get(self, name: str) -> Awaitable[bytes | None]:
        """Return the content of a slot; None if it is empty.

        Args:
            name: the slot's Redis key.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        return self._redis.node_for(name).read(name)

    def get_at_once(self, name: str) -> bytes | None:
        """Return the content of a slot in any thread, without the event loop.

        Args:
            name: the slot's Redis key.

        Returns:
            The content; None if the slot is empty, or if only `get` can tell.
        """
        if self._reading is None or not self._redis.node_for(name).is_trusted:
            return None
        try:
            # As in `RoundTrips`, MGET is for a key of any Redis type.
            replies: Any = self._reading.mget(name)
        except (RedisError, OSError):
            return None
        content: bytes | None = replies[0]
        return content

    async def get_many(self, names: Sequence[str]) -> list[bytes | BaseException | None]:
        """Return the contents of slots in one round trip; in a Redis Cluster, in one per primary.

        Args:
            names: the slots' Redis keys.

        Returns:
            For each slot what `get` returns, or a CacheUnavailableError.
        """
        contents: dict[str, bytes | BaseException | None] = {}
        waiting: dict[str, Awaitable[bytes | None]] = {}
        for name in names:
            try:
                waiting[name] = self.get(name)
            except CacheUnavailableError as error:
                contents[name] = error
        replies = await asyncio.gather(*waiting.values(), return_exceptions=True)
        contents.update(zip(waiting, replies, strict=True))
        return [contents[name] for name in names]

    async def lease(
        self,
        name: str,
        token: str,
        lease_ms: int,
        fingerprint: bytes,
        purpose: Literal["read", "write"],
        *,
        refuted: bytes = b"",
    ) -> bytes | None:
        """Take the lease of a slot whose content cannot be served.

        Args:
            name: the slot's Redis key.
            token: the token of the new lease.
            lease_ms: the lifetime of the lease, in milliseconds.
            fingerprint: the schema fingerprint of the values that the caller can serve.
            purpose: `write` also replaces *absent* with the lease.
            refuted: content that is replaced with the lease too.

        Returns:
            None if the lease was taken; otherwise the content of the slot.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        node = self._redis.node_for(name)
        slot: bytes | None = await node.run("lease", 1, name, token, lease_ms, fingerprint, purpose, refuted)
        if slot is None:
            node.condition.stored()
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
        return bool(await self._redis.node_for(name).run("fill", 1, name, token, content, ttl_ms))

    async def change(self, change: SlotChange, token: str) -> bool:
        """Apply a committed change of this service to its slot; if Redis refuses it, empty the slot.

        Args:
            change: the change.
            token: the token of the lease that the write took; empty if it did not take one.

        Returns:
            Whether the slot now has the change or nothing, rather than something newer.

        Raises:
            CacheUnavailableError: Redis did not respond, or refused to empty the slot too.
        """
        node = self._redis.node_for(change.name)
        try:
            effect = await node.run("change", 1, *change, token)
        except CacheRefusedError as error:
            if is_emptied(error):
                return True
        except CacheUnavailableError:
            node.delete_before_reading(change.name)
            raise
        else:
            return bool(effect != b"older")
        await self.delete(change.name)
        return True

    async def delete(self, name: str) -> None:
        """Empty a slot, whatever it has; if that fails, before this process reads from the Redis again.

        Args:
            name: the slot's Redis key.

        Raises:
            CacheUnavailableError: Redis did not respond, or refused it.
        """
        node = self._redis.node_for(name)
        try:
            await node.call("DEL", name)
        except CacheUnavailableError:
            node.delete_before_reading(name)
            raise

    async def advance(self, changes: Sequence[SlotChange]) -> None:
        """Bring what was read past the cache to the slots, if Redis is available.

        Args:
            changes: what the rows that were read, all of one entity, change.
        """
        together = 1 if isinstance(self._redis, Cluster) else _ADVANCED_TOGETHER
        batches = [changes[start : start + together] for start in range(0, len(changes), together)]
        await asyncio.gather(*map(self._advance, batches))

    async def _advance(self, changes: Sequence[SlotChange]) -> None:
        names = [change.name for change in changes]
        rows = [part for change in changes for part in (change.version, change.content)]
        with suppress(CacheUnavailableError):
            node = self._redis.node_for(names[0])
            await node.run("advance", len(names), *names, changes[0].ttl_ms, *rows)

    async def names(self, prefix: str) -> AsyncIterator[list[str]]:
        """Yield the names of all slots that begin with a prefix, many at a time.

        A slot that is there all the time is yielded at least once.

        Args:
            prefix: the prefix, without special characters of patterns.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        for node in self._redis.nodes():
            cursor: bytes | int = 0
            while True:
                cursor, names = await node.call(
                    "SCAN", cursor, "MATCH", f"{prefix}*", "COUNT", _SCANNED_TOGETHER
                )
                # Other names were given by other programs.
                yield [name.decode() for name in names if _is_text(name)]
                if int(cursor) == 0:
                    break

    async def release(self, name: str, token: str) -> None:
        """Give up a lease without filling the slot.

        Args:
            name: the slot's Redis key.
            token: the token of the lease.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        await self._redis.node_for(name).run("release", 1, name, token)

    async def add_to_hash(self, name: str, field: str, number: int) -> None:
        """Add to a number in a hash, which is no slot.

        Args:
            name: the hash's Redis key.
            field: the field.
            number: what to add.

        Raises:
            CacheUnavailableError: Redis did not respond, or refused it.
        """
        await self._redis.node_for(name).call("HINCRBY", name, field, number)

    @property
    def open_breakers(self) -> int:
        """The number of breakers that are open."""
        return sum(node.is_open for node in self._redis.known())

    @property
    def refuses_commands(self) -> bool:
        """Whether the Redis, or a primary of the Redis Cluster, responds but refuses commands."""
        return any(node.condition.refuses for node in self._redis.known())

    async def problem(self) -> str | None:
        """Return why the Redis, or a primary of the Redis Cluster, cannot be used now; None if it can."""
        return await self._redis.problem()

    async def close(self) -> None:
        """Wait for the commands in progress, then disconnect."""
        await self._redis.close()
        if self._reading is not None:
            self._reading.close()


def _is_text(name: bytes) -> bool:
    try:
        name.decode()
    except UnicodeDecodeError:
        return False
    return True
