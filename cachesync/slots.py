"""The slots of one service's cache, over an asyncio Redis client."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Literal

from redis.exceptions import NoScriptError, RedisError

from cachesync import metrics
from cachesync.breaker import Breaker
from cachesync.slot import script

if TYPE_CHECKING:
    from redis.asyncio import Redis

_FAILURES: Final = 3
_PAUSE_SECONDS: Final = 1.0
_MOST_ROUND_TRIPS: Final = 1

# RuntimeError: what uvloop says of a connection that was reset since its last use; redis-py does not see it.
_NO_ANSWER: Final = (RedisError, OSError, RuntimeError)

_Command = tuple[bytes | str | int, ...]
_Waiting = tuple[_Command, asyncio.Future[Any]]


class CacheUnavailableError(Exception):
    """Redis did not answer in time, or has not for a while; the database has to."""


class Slots:
    """Reads and changes slots.

    Commands that are asked for while a round trip to Redis is under way go with the next one, all
    together: under load, what a round trip costs is most of the cost of a hit.
    """

    def __init__(self, client: Redis) -> None:
        self._client = client
        self._breaker = Breaker(_FAILURES, _PAUSE_SECONDS)
        self._waiting: list[_Waiting] = []
        self._round_trips: set[asyncio.Task[None]] = set()

    async def get(self, name: str) -> bytes | None:
        """A slot's content; None where it is empty.

        Raises:
            CacheUnavailableError: Redis does not answer.
        """
        slot: bytes | None = await self._call("GET", name)
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
        """Whether Redis answers now."""
        try:
            await self._client.ping()
        except _NO_ANSWER:
            return False
        return True

    async def close(self) -> None:
        """Wait for what is under way, and disconnect."""
        await asyncio.gather(*self._round_trips, return_exceptions=True)
        await self._client.aclose()

    async def _run(self, name: str, slot: str, *arguments: bytes | str | int) -> Any:
        lua = script(name)
        try:
            return await self._call("EVALSHA", lua.sha, 1, slot, *arguments)
        except NoScriptError:
            # Redis was restarted or flushed its scripts; EVAL loads it again.
            return await self._call("EVAL", lua.source, 1, slot, *arguments)

    def _call(self, *command: bytes | str | int) -> asyncio.Future[Any]:
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((command, future))
        if len(self._waiting) == 1 and len(self._round_trips) < _MOST_ROUND_TRIPS:
            loop.call_soon(self._send)
        return future

    def _send(self) -> None:
        batch, self._waiting = self._waiting, []
        if not batch:
            return
        if not self._breaker.allows():
            _fail(batch, CacheUnavailableError("left alone after repeated failures"))
            return
        task = asyncio.get_running_loop().create_task(self._round_trip(batch))
        self._round_trips.add(task)
        task.add_done_callback(self._came_back)

    def _came_back(self, round_trip: asyncio.Task[None]) -> None:
        self._round_trips.discard(round_trip)
        self._send()

    async def _round_trip(self, batch: list[_Waiting]) -> None:
        gets = [waiting for waiting in batch if waiting[0][0] == "GET"]
        others = [waiting for waiting in batch if waiting[0][0] != "GET"]
        pipeline = self._client.pipeline(transaction=False)
        if gets:
            # One command: to pack many and to read many answers costs hits as much as all the rest of them.
            pipeline.execute_command("MGET", *(command[1] for command, _ in gets))
        for command, _ in others:
            pipeline.execute_command(*command)
        try:
            answers = await pipeline.execute(raise_on_error=False)
        except _NO_ANSWER as error:
            self._breaker.failed()
            metrics.cache_failures.inc()
            _fail(batch, CacheUnavailableError(str(error)))
            return
        self._breaker.succeeded()
        if gets:
            slots = answers.pop(0)
            answers[:0] = [slots] * len(gets) if isinstance(slots, Exception) else slots
        for (_, future), answer in zip([*gets, *others], answers, strict=True):
            if future.done():
                continue
            if isinstance(answer, NoScriptError):
                future.set_exception(answer)
            elif isinstance(answer, Exception):
                # Such as OOM or LOADING: this command was not carried out, the connection is sound.
                metrics.cache_failures.inc()
                future.set_exception(CacheUnavailableError(str(answer)))
            else:
                future.set_result(answer)


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
