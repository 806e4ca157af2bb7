"""Commands to one Redis, batched into round trips."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Self

from redis.exceptions import MovedError, NoScriptError

from cachesync import metrics
from cachesync.errors import CacheUnavailableError
from cachesync.slots.breaker import Breaker

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from cachesync.slots.scripts import Command

_FAILURES: Final = 3
_PAUSE_SECONDS: Final = 1.0
_MAX_ROUND_TRIPS: Final = 1

_Pending = tuple["Command", asyncio.Future[Any]]


class RoundTrips:
    """Sends the commands that are issued during one round trip together in the next one.

    Under load, the round trip makes up most of the cost of a hit.

    Args:
        client: the client of the Redis.
        on_stale_map: called when the Redis does not respond or replies that another node owns a key. Given
            if, and only if, the Redis is a node of a Redis Cluster.
    """

    def __init__(self, client: Redis, on_stale_map: Callable[[], None] | None = None) -> None:
        self._client = client
        self._on_stale_map = on_stale_map
        self._breaker = Breaker(_FAILURES, _PAUSE_SECONDS)
        self._pending: list[_Pending] = []
        self._round_trips: set[asyncio.Task[None]] = set()

    def node_for(self, _: str) -> Self:
        """Return the Redis that owns a key: a single Redis owns every key."""
        return self

    def call(self, *command: bytes | str | int) -> asyncio.Future[Any]:
        """Send a command with the next round trip.

        Returns:
            The reply. The future fails with a NoScriptError if the Redis does not know the script, and with a
            CacheUnavailableError if the Redis did not respond, rejected the command, or is not being called
            after repeated failures.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._pending.append((command, future))
        if len(self._pending) == 1 and len(self._round_trips) < _MAX_ROUND_TRIPS:
            loop.call_soon(self._send)
        return future

    async def is_available(self) -> bool:
        """Return whether the Redis responds now."""
        try:
            await self._client.ping()
        except Exception:  # noqa: BLE001 - for every reason there is, it is not available
            return False
        return True

    async def close(self) -> None:
        """Wait for the round trip in progress, then disconnect."""
        await asyncio.gather(*self._round_trips, return_exceptions=True)
        await self._client.aclose()

    def _send(self) -> None:
        batch, self._pending = self._pending, []
        if not batch:
            return
        if not self._breaker.allows():
            _fail(batch, CacheUnavailableError("Redis is not being called after repeated failures"))
            return
        task = asyncio.get_running_loop().create_task(self._round_trip(batch))
        self._round_trips.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, round_trip: asyncio.Task[None]) -> None:
        self._round_trips.discard(round_trip)
        self._send()

    async def _round_trip(self, batch: list[_Pending]) -> None:
        gets: list[_Pending] = []
        others = batch
        # A cluster rejects a command with keys of several hash slots, even if one node owns all of them.
        if self._on_stale_map is None:
            gets = [pending for pending in batch if pending[0][0] == "GET"]
            others = [pending for pending in batch if pending[0][0] != "GET"]
        try:
            replies = await self._execute(gets, others)
        # Not only redis-py's errors: uvloop raises RuntimeError for a connection that was reset since its
        # last use, and no reply may be waited for forever, whatever went wrong.
        except Exception as error:  # noqa: BLE001
            self._breaker.failed()
            metrics.cache_failures.inc()
            _fail(batch, CacheUnavailableError(f"Redis is unavailable: {str(error) or type(error).__name__}"))
            if self._on_stale_map is not None:
                self._on_stale_map()
            return
        self._breaker.succeeded()
        for (_, future), reply in zip([*gets, *others], replies, strict=True):
            if not future.done():
                self._resolve(future, reply)

    async def _execute(self, gets: list[_Pending], others: list[_Pending]) -> list[Any]:
        """Send commands in one round trip; return the replies to the GETs, then those to the others."""
        pipeline = self._client.pipeline(transaction=False)
        if gets:
            # One command: packing many commands and parsing many replies would cost a hit as much as
            # everything else combined.
            pipeline.execute_command("MGET", *(command[1] for command, _ in gets))
        for command, _ in others:
            pipeline.execute_command(*command)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        if gets:
            slots = replies.pop(0)
            replies[:0] = [slots] * len(gets) if isinstance(slots, Exception) else slots
        return replies

    def _resolve(self, future: asyncio.Future[Any], reply: Any) -> None:
        if isinstance(reply, NoScriptError):
            future.set_exception(reply)
        elif isinstance(reply, Exception):
            # For example OOM or LOADING: this command was not executed, but the connection is sound.
            metrics.cache_failures.inc()
            future.set_exception(CacheUnavailableError(str(reply)))
            if self._on_stale_map is not None and isinstance(reply, MovedError):
                self._on_stale_map()
        else:
            future.set_result(reply)


def _fail(batch: list[_Pending], error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
