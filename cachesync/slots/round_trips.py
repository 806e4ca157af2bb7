"""Commands to one Redis, sent together."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any, Final, Self

from redis.exceptions import MovedError, NoScriptError, RedisError

from cachesync import metrics
from cachesync.errors import CacheUnavailableError
from cachesync.slots.breaker import Breaker

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from cachesync.slots.scripts import Command

_FAILURES: Final = 3
_PAUSE_SECONDS: Final = 1.0
_MOST_ROUND_TRIPS: Final = 1

# RuntimeError: what uvloop says of a connection that was reset since its last use; redis-py does not see it.
_NO_ANSWER: Final = (RedisError, OSError, RuntimeError)

_Waiting = tuple["Command", asyncio.Future[Any]]


class RoundTrips:
    """Commands that are asked for while a round trip is under way go with the next one, all together.

    Under load, what a round trip costs is most of the cost of a hit.

    Args:
        client: the Redis.
        misplaced: given for a node of a cluster: called when it does not answer, or says that another node
            has a key.
    """

    def __init__(self, client: Redis, misplaced: Callable[[], None] | None = None) -> None:
        self._client = client
        self._misplaced = misplaced
        self._breaker = Breaker(_FAILURES, _PAUSE_SECONDS)
        self._waiting: list[_Waiting] = []
        self._round_trips: set[asyncio.Task[None]] = set()

    def of(self, _: str) -> Self:
        """Itself: one Redis has every key."""
        return self

    def call(self, *command: bytes | str | int) -> asyncio.Future[Any]:
        """The answer to a command; CacheUnavailableError where there is none, NoScriptError as it is."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[Any] = loop.create_future()
        self._waiting.append((command, future))
        if len(self._waiting) == 1 and len(self._round_trips) < _MOST_ROUND_TRIPS:
            loop.call_soon(self._send)
        return future

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
        gets: list[_Waiting] = []
        others = batch
        # A cluster refuses one command for keys of several hash slots, even where one node has them all.
        if self._misplaced is None:
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
            if self._misplaced is not None:
                self._misplaced()
            return
        self._breaker.succeeded()
        if gets:
            slots = answers.pop(0)
            answers[:0] = [slots] * len(gets) if isinstance(slots, Exception) else slots
        for (_, future), answer in zip([*gets, *others], answers, strict=True):
            if not future.done():
                self._answer(future, answer)

    def _answer(self, future: asyncio.Future[Any], answer: Any) -> None:
        if isinstance(answer, NoScriptError):
            future.set_exception(answer)
        elif isinstance(answer, Exception):
            # Such as OOM or LOADING: this command was not carried out, the connection is sound.
            metrics.cache_failures.inc()
            future.set_exception(CacheUnavailableError(str(answer)))
            if self._misplaced is not None and isinstance(answer, MovedError):
                self._misplaced()
        else:
            future.set_result(answer)


def _fail(batch: list[_Waiting], error: Exception) -> None:
    for _, future in batch:
        if not future.done():
            future.set_exception(error)
