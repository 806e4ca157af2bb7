"""Work that runs until it is stopped, such as a stream or a relay, in Airflow or in a process of its own."""

from __future__ import annotations

import asyncio
import functools
import gc
import os
import signal
import threading
import time
from abc import ABC, abstractmethod
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NoReturn, Protocol

import structlog

from cachesync.backoff import Backoff
from cachesync.errors import CacheSyncError, SettingsError
from cachesync.metrics import process as metrics

if TYPE_CHECKING:
    from collections.abc import Callable

_log = structlog.get_logger(__name__)

# As Airflow retries the sensors.
_BACKOFF: Final = Backoff(first=5, longest=60)
# Work that has gone on for longer than this has nothing in common with the failures before it.
_STEADY_SECONDS: Final = 300.0
# A Kafka client can wait for a minute for a broker that does not respond, and nothing can interrupt it.
_STOP_SECONDS: Final = 5.0


class Work(Protocol):
    """Work that blocks a thread until it is stopped."""

    def run(self) -> None:
        """Work until `stop` is called."""

    def stop(self) -> None:
        """Make `run` return soon. Can be called from any thread, also before `run`."""


class LoopWork(ABC):
    """Work that is one coroutine, in an event loop of its own."""

    def __init__(self) -> None:
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    @abstractmethod
    async def work(self) -> None:
        """Work until it is canceled."""

    def run(self) -> None:
        """Work until `stop` is called."""
        with suppress(asyncio.CancelledError):
            asyncio.run(self._begin())

    def stop(self) -> None:
        """Make `run` return soon. Can be called from any thread, also before `run`."""
        self._stopping.set()
        if self._loop is not None and self._task is not None:
            with suppress(RuntimeError):  # `run` has already returned and its loop is closed
                self._loop.call_soon_threadsafe(self._task.cancel)

    async def _begin(self) -> None:
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        if not self._stopping.is_set():
            await self.work()


class RunningWork:
    """Work in a thread of its own, so that it blocks neither the event loop nor other threads.

    Args:
        name: the name of the thread.
        open_work: creates the work; called in the thread.

    Attributes:
        ended: completes when the work has ended; its exception is the error that ended it.
    """

    def __init__(self, name: str, open_work: Callable[[], Work]) -> None:
        self._executor = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._errors = metrics.restarts.labels(name)
        self._open_work = open_work
        self._work: Work | None = None
        self._stopping = False
        self.ended = asyncio.get_running_loop().run_in_executor(self._executor, self._run)

    def _run(self) -> None:
        try:
            work = self._work = self._open_work()
            _exempt_from_garbage_collection()
            # `stop` may have been called before there was any work to stop.
            if self._stopping:
                work.stop()
            work.run()
        except Exception:
            self._errors.inc()
            raise

    async def has_ended(self, seconds: float) -> bool:
        """Wait for the work to end, for at most this many seconds, and return whether it has."""
        await asyncio.wait({self.ended}, timeout=seconds)
        return self.ended.done()

    def request_stop(self) -> None:
        """Make the work end soon."""
        self._stopping = True
        if self._work is not None:
            self._work.stop()

    async def stop(self) -> None:
        """Stop the work, and wait until it has ended."""
        self.request_stop()
        await asyncio.to_thread(self._executor.shutdown)


async def keep_working(name: str, open_work: Callable[[], Work]) -> None:
    """Work until the process receives SIGTERM or SIGINT; start again, with backoff, after an error.

    The process ends at once, with status 0, if the work does not end within seconds after the signal.

    Args:
        name: the name of the work, for the log.
        open_work: creates the work; called again after each error.

    Raises:
        SettingsError: a setting is invalid, so that starting again could only fail in the same way.
    """
    stopping = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopping.set)
    stop: asyncio.Future[Any] = asyncio.create_task(stopping.wait())
    failures = 0
    while not stop.done():
        started = time.monotonic()
        _log.info("starting", work=name)
        work = RunningWork(name, open_work)
        await asyncio.wait({work.ended, stop}, return_when=asyncio.FIRST_COMPLETED)
        work.request_stop()
        if not await work.has_ended(_STOP_SECONDS):
            _leave(name)
        await work.stop()
        error = work.ended.exception()
        if isinstance(error, SettingsError):
            raise error
        if error is not None:
            _report(name, error)
        if not stop.done():
            failures = 1 if time.monotonic() - started > _STEADY_SECONDS else failures + 1
            await asyncio.wait({stop}, timeout=_BACKOFF.delay(failures))
    _log.info("stopped", work=name)


def _leave(name: str) -> NoReturn:
    """End the process as if it had crashed, which loses nothing.

    What was applied but not committed is applied again, and what was sent but not marked is sent again.
    """
    _log.warning("a server does not respond, not waiting for it", work=name)
    _log.info("stopped", work=name)
    os._exit(0)


def _report(name: str, error: BaseException) -> None:
    _log.error(
        "ended with an error",
        work=name,
        error=str(error) or type(error).__name__,
        # The text of an error of the library says everything.
        exc_info=None if isinstance(error, CacheSyncError) else error,
    )


@functools.cache
def _exempt_from_garbage_collection() -> None:
    """Let the garbage collector pass over what has been loaded so far; once per process.

    Airflow has loaded hundreds of thousands of objects, which live as long as the process. Each full
    collection would examine them all, while every thread waits.
    """
    # What is garbage already would never be freed.
    gc.collect()
    gc.freeze()
