"""Asks for what the page shows, once for all who look at it."""

from __future__ import annotations

import asyncio
import hashlib
import threading
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final, Literal, Protocol, TypeAlias, TypeVar

from cachesync.errors import CacheSyncError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable

    from cachesync.overview.models import KeyReport, Point, Status

_Answer = TypeVar("_Answer")

Period = Literal["hour", "day"]

_STATUS_SECONDS: Final = 1.0
# A history has a point per minute.
_HISTORY_SECONDS: Final = 10.0
# Each connects to the database, and a lookup to every server of the system.
_AT_ONCE: Final = 4
# More than many people cause; the rest of them is refused, since nobody would wait for the answers.
_MAX_QUESTIONS: Final = 100


Lags: TypeAlias = dict[str, dict[str, list[tuple[int, float]]]]
"""By service and entity: minutes since 1970 in which changes were followed, with the lag in seconds."""


class TooManyQuestionsError(CacheSyncError):
    """So many questions wait for an answer that this one is not asked."""

    def __init__(self) -> None:
        super().__init__("too many people ask at once; try again in some seconds")


class Overview(Protocol):
    """What the page asks: `cachesync.overview.overview.Overview`."""

    async def status(self, *, day: bool) -> Status:
        """Return the overview of all caches."""

    async def history(
        self,
        period: Period,
        service: str | None = None,
        entity: str | None = None,
        *,
        each_entity: bool = False,
    ) -> tuple[Point, ...]:
        """Return what the live check has seen."""

    async def show(self, entity: str, key: str) -> KeyReport:
        """Return what is known of one key."""


@dataclass(frozen=True)
class Snapshot:
    """The status as it is sent.

    Attributes:
        body: its JSON.
        etag: identifies all of it but the times of the looks, which change each time.
    """

    body: bytes
    etag: str

    @classmethod
    def of(cls, status: Status) -> Snapshot:
        """Encode a status."""
        unchanging = status.model_copy(update={"taken_at": None, "live_check_at": None})
        digest = hashlib.sha256(unchanging.model_dump_json(warnings=False).encode()).hexdigest()
        return cls(status.model_dump_json().encode(), f'"{digest[:32]}"')


class Reader:
    """Asks an overview, in an event loop in a thread of its own, so that Airflow's never waits for it.

    An answer is shared by all who ask for the same while it is on its way, and for a moment after.

    Args:
        current: returns the overview; called in that thread before each question.
    """

    def __init__(self, current: Callable[[], Overview]) -> None:
        self._current = current
        self._answers: dict[tuple[str | None, ...], asyncio.Task[Any]] = {}
        self._places = asyncio.Semaphore(_AT_ONCE)
        self._questions = 0

    def look_ahead(self) -> None:
        """Begin with what the page asks for first, while a browser still loads it."""
        for question in (self.status("hour"), self.history("hour", None, None)):
            asyncio.run_coroutine_threadsafe(question, self._loop)

    async def status(self, period: Period) -> Snapshot:
        """Return the overview of all caches, at most a second older than its own measurement."""

        async def ask() -> Snapshot:
            return Snapshot.of(await self._current().status(day=period == "day"))

        return await self._shared(("status", period), _STATUS_SECONDS, ask)

    async def history(self, period: Period, service: str | None, entity: str | None) -> tuple[Point, ...]:
        """Return what the live check has seen."""

        async def ask() -> tuple[Point, ...]:
            async with self._place():
                return await self._current().history(period, service, entity)

        return await self._shared(("history", period, service, entity), _HISTORY_SECONDS, ask)

    async def lags(self) -> Lags:
        """Return the 99th percentile of the lag of each entity in each cache, by minute of the last hour."""

        async def ask() -> Lags:
            async with self._place():
                points = await self._current().history("hour", each_entity=True)
            lags: Lags = {}
            for point in points:
                if point.entity is not None and point.lag_p99_s is not None:
                    minutes = lags.setdefault(point.service, {}).setdefault(point.entity, [])
                    minutes.append((int(point.at.timestamp()) // 60, round(point.lag_p99_s, 4)))
            return lags

        return await self._shared(("lags",), _HISTORY_SECONDS, ask)

    async def show(self, entity: str, key: str) -> KeyReport:
        """Return what is known of one key."""

        async def ask() -> KeyReport:
            async with self._place():
                return await self._current().show(entity, key)

        return await self._shared(("show", entity, key), _STATUS_SECONDS, ask)

    @asynccontextmanager
    async def _place(self) -> AsyncIterator[None]:
        if self._questions >= _MAX_QUESTIONS:
            raise TooManyQuestionsError
        self._questions += 1
        try:
            async with self._places:
                yield
        finally:
            self._questions -= 1

    async def _shared(
        self, question: tuple[str | None, ...], seconds: float, ask: Callable[[], Awaitable[_Answer]]
    ) -> _Answer:
        async def answer() -> _Answer:
            known: asyncio.Task[_Answer] | None = self._answers.get(question)
            if known is None:
                known = self._answers[question] = self._loop.create_task(asked())
                known.add_done_callback(lambda _: self._loop.call_later(seconds, self._answers.pop, question))
            # Whoever asked first may not wait for it to the end.
            return await asyncio.shield(known)

        async def asked() -> _Answer:
            return await ask()

        return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(answer(), self._loop))

    @cached_property
    def _loop(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name="cachesync page", daemon=True).start()
        return loop
