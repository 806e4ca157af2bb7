"""Commands to one Redis, batched into round trips."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, Self

from redis.exceptions import AskError, NoScriptError

from cachesync import metrics
from cachesync.errors import CacheRefusedError, CacheUnavailableError
from cachesync.slots.breaker import Breaker
from cachesync.slots.scripts import call_script, refusal_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from cachesync.slots.condition import Condition
    from cachesync.slots.scripts import Command

_FAILURES: Final = 3
_PAUSE_SECONDS: Final = 1.0
_MAX_ROUND_TRIPS: Final = 1
# For this long, a Redis that deleted something counts as one that can.
_TRUST_SECONDS: Final = 0.2
# As many deletes as fit into a round trip together with everything else.
_MAX_OVERDUE: Final = 1000

_Pending = tuple["Command", asyncio.Future[Any]]


class RoundTrips:
    """Sends the commands that are issued during one round trip together in the next one.

    Under load, the round trip makes up most of the cost of a hit.

    A Redis that refuses even to delete slots could be read, but its slots can be older than a write that it
    refused. It is therefore not read until it deletes again, which the reads find out along the way. Slots
    that did not take a write of this process are deleted before anything is read again.

    Args:
        client: the client of the Redis.
        probe: a key that is never a slot, and that this Redis owns.
        on_stale_map: called when the Redis does not respond or replies that another node owns a key. Given
            if, and only if, the Redis is a node of a Redis Cluster.

    Attributes:
        probe: that key.
        condition: what is known about the Redis.
    """

    def __init__(
        self,
        client: Redis,
        probe: str,
        condition: Condition,
        on_stale_map: Callable[[], None] | None = None,
    ) -> None:
        self._client = client
        self.probe = probe
        self._on_stale_map = on_stale_map
        self._breaker = Breaker(_FAILURES, _PAUSE_SECONDS)
        self._deletes = Breaker(1, _PAUSE_SECONDS)
        self._deleted_at = -_TRUST_SECONDS
        self._overdue: set[str] = set()
        self._pending: list[_Pending] = []
        self._round_trips: set[asyncio.Task[None]] = set()
        self.condition = condition

    def node_for(self, _: str) -> Self:
        """Return the Redis that owns a key: a single Redis owns every key."""
        return self

    def call(self, *command: bytes | str | int) -> asyncio.Future[Any]:
        """Send a command with the next round trip.

        Returns:
            The reply. The future fails with a NoScriptError if the Redis does not know the script, with a
            CacheRefusedError if the Redis rejected the command, and with a CacheUnavailableError if the Redis
            did not respond, or is not being called after repeated failures.
        """
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._pending.append((command, future))
        if len(self._pending) == 1 and len(self._round_trips) < _MAX_ROUND_TRIPS:
            loop.call_soon(self._send)
        return future

    def delete_before_reading(self, name: str) -> None:
        """Delete a slot before anything is read again, because it may be older than a write.

        If too many wait for that, the stream brings the slot up to date, as it does for other processes.
        """
        if len(self._overdue) < _MAX_OVERDUE:
            self._overdue.add(name)

    async def problem(self) -> str | None:
        """Return why the Redis cannot be used as a cache now; None if it can."""
        try:
            await self._client.mget(self.probe)
            await self._client.delete(self.probe)
            await call_script("probe", (self.probe,), self._client.execute_command)
        except Exception as error:  # noqa: BLE001 - whatever the reason, it cannot be used
            return refusal_of(error) or type(error).__name__
        return None

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
        gets: list[_Pending] = []
        others: list[_Pending] = []
        for pending in batch:
            (gets if pending[0][0] == "GET" else others).append(pending)
        deletes: list[str] = []
        if gets and (self._overdue or time.monotonic() >= self._deleted_at + _TRUST_SECONDS):
            if self._deletes.allows():
                deletes = [self.probe, *self._overdue]
            else:
                _fail(gets, CacheUnavailableError("Redis is not being read while it refuses to delete"))
                if not others:
                    return
                gets = []
        task = asyncio.get_running_loop().create_task(self._round_trip(others, deletes, gets))
        self._round_trips.add(task)
        task.add_done_callback(self._finished)

    def _finished(self, round_trip: asyncio.Task[None]) -> None:
        self._round_trips.discard(round_trip)
        self._send()

    async def _round_trip(self, others: list[_Pending], deletes: list[str], gets: list[_Pending]) -> None:
        commands: list[Command] = [*(command for command, _ in others), *(("DEL", name) for name in deletes)]
        try:
            replies, slots = await self._execute(commands, [str(command[1]) for command, _ in gets])
        # Not only redis-py's errors: uvloop raises RuntimeError for a connection that was reset since its
        # last use, and no reply may be waited for forever, whatever went wrong.
        except Exception as error:  # noqa: BLE001
            self._breaker.failed()
            metrics.cache_failures.inc()
            reason = str(error) or type(error).__name__
            if self._breaker.is_open:
                self.condition.unavailable(reason)
            _fail([*others, *gets], CacheUnavailableError(f"Redis is unavailable: {reason}"))
            if self._on_stale_map is not None:
                self._on_stale_map()
            return
        self._breaker.succeeded()
        self.condition.responded()
        for command, reply in zip(commands, replies, strict=True):
            if command[0] == "DEL":
                self._note_delete(str(command[1]), reply)
        for (_, future), reply in zip(others, replies, strict=False):
            self._resolve(future, reply)
        refusal = next((reply for reply in replies[len(others) :] if _is_refusal(reply)), None)
        for (_, future), slot in zip(gets, slots, strict=True):
            self._resolve(future, slot if refusal is None else refusal)

    async def _execute(self, commands: list[Command], names: list[str]) -> tuple[list[Any], list[Any]]:
        """Send commands in one round trip, and then read slots; return the replies and the slots."""
        pipeline = self._client.pipeline(transaction=False)
        for command in commands:
            pipeline.execute_command(*command)
        # MGET instead of GET, which fails for a key of another Redis type. One command for all slots: packing
        # many commands and parsing many replies would cost a hit as much as everything else combined. But a
        # cluster rejects a command with keys of several hash slots, even if one node owns all of them.
        if self._on_stale_map is not None:
            for name in names:
                pipeline.execute_command("MGET", name)
        elif names:
            pipeline.execute_command("MGET", *names)
        replies: list[Any] = await pipeline.execute(raise_on_error=False)
        read = replies[len(commands) :]
        del replies[len(commands) :]
        if len(read) == len(names):
            return replies, [one if isinstance(one, Exception) else one[0] for one in read]
        slots = read[0]
        return replies, [slots] * len(names) if isinstance(slots, Exception) else slots

    def _note_delete(self, name: str, reply: Any) -> None:
        if _is_refusal(reply):
            self._deletes.failed()
            self._deleted_at = -_TRUST_SECONDS
            return
        self._overdue.discard(name)
        if not isinstance(reply, Exception):
            self._deletes.succeeded()
            self._deleted_at = time.monotonic()

    def _resolve(self, future: asyncio.Future[Any], reply: Any) -> None:
        if not isinstance(reply, Exception):
            if not future.done():
                future.set_result(reply)
            return
        error = reply
        if _is_refusal(reply):
            # For example OOM or LOADING: this command was not executed, but the connection is sound.
            metrics.cache_failures.inc()
            error = CacheRefusedError(str(reply))
            self.condition.refused(refusal_of(reply))
        elif isinstance(reply, AskError):
            error = CacheUnavailableError(str(reply))
            if self._on_stale_map is not None:
                self._on_stale_map()
        if not future.done():
            future.set_exception(error)


def _is_refusal(reply: Any) -> bool:
    """Return whether a reply is an error other than that the script or the key is somewhere else."""
    return isinstance(reply, Exception) and not isinstance(reply, (NoScriptError, AskError))


def _fail(batch: list[_Pending], error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
