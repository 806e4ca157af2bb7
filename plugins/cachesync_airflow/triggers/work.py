"""Work that runs in its own thread, and can outlive the trigger that started it."""

from __future__ import annotations

import asyncio
import functools
import gc
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Final, Protocol

import structlog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

_log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 15.0
"""The interval at which a trigger looks at its run, and waiting work for its successor, in seconds."""


class Work(Protocol):
    """Work that blocks a thread until it is stopped."""

    def run(self) -> None:
        """Work until `stop` is called."""

    def stop(self) -> None:
        """Make `run` return soon. Can be called from any thread, also before `run`."""


class RunningWork:
    """Work in a thread of its own, so that it blocks neither the event loop nor other triggers' threads.

    Args:
        name: the name of the thread.
        open_work: creates the work; called in the thread.

    Attributes:
        ended: completes when the work has ended; its exception is the error that ended it.
    """

    def __init__(self, name: str, open_work: Callable[[], Work]) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._open_work = open_work
        self._work: Work | None = None
        self._stopping = False
        self.ended = asyncio.get_running_loop().run_in_executor(self._executor, self._run)

    def _run(self) -> None:
        work = self._work = self._open_work()
        _exempt_from_garbage_collection()
        # `stop` may have been called before there was any work to stop.
        if self._stopping:
            work.stop()
        work.run()

    async def has_ended(self, seconds: float) -> bool:
        """Wait for the work to end, for at most this many seconds, and return whether it has."""
        await asyncio.wait({self.ended}, timeout=seconds)
        return self.ended.done()

    async def stop(self) -> None:
        """Stop the work, and wait until it has ended."""
        self._stopping = True
        if self._work is not None:
            self._work.stop()
        await asyncio.to_thread(self._executor.shutdown)


@functools.cache
def _exempt_from_garbage_collection() -> None:
    """Let the garbage collector pass over what has been loaded so far; once per process.

    Airflow has loaded hundreds of thousands of objects, which live as long as the process. Each full
    collection would examine them all, while every thread waits.
    """
    # What is garbage already would never be freed.
    gc.collect()
    gc.freeze()


class _Waiting:
    """Work whose trigger has ended, and which the next trigger with the same name continues."""

    def __init__(self) -> None:
        self._work: dict[Hashable, RunningWork] = {}
        # Keeps the tasks from being garbage-collected.
        self._guards: set[asyncio.Task[None]] = set()

    def keep(self, name: Hashable, work: RunningWork, has_successor: Callable[[], Awaitable[bool]]) -> None:
        """Let the work continue until it is taken over, a trigger elsewhere succeeds it, or the process ends.

        Args:
            name: identifies the work.
            work: the running work.
            has_successor: returns whether work with this name runs elsewhere, or is no longer wanted.
        """
        self._work[name] = work
        guard = asyncio.create_task(self._guard(name, work, has_successor))
        self._guards.add(guard)
        guard.add_done_callback(self._guards.discard)

    def take_over(self, name: Hashable) -> RunningWork | None:
        """Return the work that waits under this name, which then belongs to the caller, or None."""
        return self._work.pop(name, None)

    async def _guard(
        self, name: Hashable, work: RunningWork, has_successor: Callable[[], Awaitable[bool]]
    ) -> None:
        try:
            while not await work.has_ended(LOOK_SECONDS) and self._work.get(name) is work:
                if await has_successor():
                    break
            if work.ended.done() and self._work.get(name) is work:
                _log.error(
                    "work ended before the next run took it over",
                    name=name,
                    error=str(work.ended.exception()),
                )
        finally:
            # The loop is canceled when the triggerer shuts down.
            if self._work.get(name) is work:
                del self._work[name]
                await work.stop()


waiting: Final = _Waiting()
