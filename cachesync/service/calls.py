"""Calls from threads that have no event loop, into one that runs in a thread of its own.

The rules of the cache run in that loop. What must be done in the thread of the caller, such as using the
caller's connection to the database, is handed back to the caller, which waits for it anyway.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from contextlib import asynccontextmanager, suppress
from contextvars import ContextVar, copy_context
from functools import partial
from queue import SimpleQueue
from typing import TYPE_CHECKING, Any, Generic, TypeAlias, TypeVar

import asyncpg

from cachesync.errors import SettingsError

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine, Generator

T = TypeVar("T")

Steps: TypeAlias = "Generator[T, None, None]"
"""What provides something when it is started, and takes it back when it goes on or is closed."""

_current: ContextVar[_Call[Any]] = ContextVar("call")


class LoopThread:
    """An event loop in a thread of its own, which does not keep the interpreter from ending."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._calls: set[_Call[Any]] = set()
        self._thread = threading.Thread(target=self._run, name="cachesync", daemon=True)
        self._thread.start()

    def call(self, work: Callable[[], Coroutine[Any, Any, T]], *, to_the_end: bool = False) -> T:
        """Do work in the loop, and wait for it.

        Args:
            work: the work.
            to_the_end: whether an interruption of the caller, such as a KeyboardInterrupt, is raised only
                after the end of the work. Otherwise, it cancels the work.

        Raises:
            SettingsError: the loop was closed.
        """
        call = _Call(self._loop, work)
        self._calls.add(call)
        try:
            return call.result(to_the_end=to_the_end)
        finally:
            self._calls.discard(call)

    def close(self) -> None:
        """End the loop, and the calls in progress."""
        with suppress(RuntimeError):
            self._loop.call_soon_threadsafe(self._stop)
        self._thread.join()

    def _stop(self) -> None:
        # They must not wait for their callers, which the database can keep waiting.
        for call in tuple(self._calls):
            call.end()
        self._loop.stop()

    def _run(self) -> None:
        # Cancels the tasks that are left.
        with asyncio.Runner(loop_factory=lambda: self._loop):
            self._loop.run_forever()
        for call in tuple(self._calls):
            call.end()


class _Errand(Generic[T]):
    """What a call asks its caller to do.

    Args:
        loop: the loop of the call.
        function: what to do.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, function: Callable[[], T]) -> None:
        self._loop = loop
        self._function = function
        self._is_begun = False
        self._value: T | None = None
        # Until the function has ended.
        self._error: Exception | None = asyncpg.InterfaceError("the caller was interrupted")
        self.done: asyncio.Future[Any] = loop.create_future()

    def run(self) -> None:
        """Do it, and tell the loop; after an interruption, only tell the loop."""
        if not self._is_begun:
            self._is_begun = True
            try:
                self._value = self._function()
                self._error = None
            except Exception as error:  # noqa: BLE001 - the loop raises it
                self._error = error
        self._loop.call_soon_threadsafe(self._tell)

    def _tell(self) -> None:
        if self.done.done():
            return
        if self._error is None:
            self.done.set_result(self._value)
        else:
            self.done.set_exception(self._error)


class _Call(Generic[T]):
    """A call of one caller. An interruption can hit each line of it that runs in the thread of the caller.

    Args:
        loop: the loop.
        work: the work.

    Attributes:
        held: what the caller holds for the call, and has to give back.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, work: Callable[[], Coroutine[Any, Any, T]]) -> None:
        self._loop = loop
        self._work = work
        self._task: asyncio.Task[T] | None = None
        self._is_ended = False
        self._errands: deque[_Errand[Any]] = deque()
        # Only wakes the caller: an interruption can lose an item.
        self._wake: SimpleQueue[None] = SimpleQueue()
        self.held: list[Steps[Any]] = []

    def result(self, *, to_the_end: bool) -> T:
        """Wait for the call in the thread of the caller; see `LoopThread.call`."""
        interruption: BaseException | None = None
        is_started = False
        try:
            while True:
                try:
                    if not is_started:
                        self._start()
                        is_started = True
                    self._serve()
                    break
                except RuntimeError as error:
                    raise _closed() from error
                except BaseException as error:  # noqa: BLE001 - raised below
                    interruption = interruption or error
                    self._wake.put(None)
                    if not to_the_end:
                        is_started = True
                        self._loop.call_soon_threadsafe(self._cancel)
        finally:
            if not self._is_ended and not to_the_end:
                # The loop was closed, or the caller is interrupted once more.
                self._is_ended = True
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._cancel)
            while self.held:
                self.held.pop().close()
        if interruption is not None:
            raise interruption
        if self._task is None or not self._task.done() or self._task.cancelled():
            raise _closed()
        return self._task.result()

    def _serve(self) -> None:
        """Run errands until the work has ended."""
        while not self._is_ended:
            self._wake.get()
            while self._errands:
                self._errands[0].run()
                self._errands.popleft()

    def end(self) -> None:
        """Wake the caller for the last time."""
        self._is_ended = True
        self._wake.put(None)

    def hand_back(self, errand: _Errand[Any]) -> None:
        """Ask the caller to do something, in the loop."""
        if self._is_ended:
            message = "the call has ended"
            raise asyncpg.InterfaceError(message)
        self._errands.append(errand)
        self._wake.put(None)

    def _start(self) -> None:
        context = copy_context()
        context.run(_current.set, self)
        self._loop.call_soon_threadsafe(self._create_task, context=context)

    def _create_task(self) -> None:
        # After an interruption, the caller starts it once more.
        if self._task is None and not self._is_ended:
            self._task = self._loop.create_task(self._work())
            self._task.add_done_callback(lambda _: self.end())

    def _cancel(self) -> None:
        if self._task is None:
            self.end()
        else:
            self._task.cancel()


def _closed() -> SettingsError:
    return SettingsError("the caches are closed")


async def by_caller(function: Callable[[], T]) -> T:
    """Let the caller of the current call do something in its own thread.

    Args:
        function: what to do.

    Raises:
        asyncpg.InterfaceError: there is no caller, or it was interrupted.
    """
    call = _current.get(None)
    if call is None:
        message = "there is no caller"
        raise asyncpg.InterfaceError(message)
    errand = _Errand(asyncio.get_running_loop(), function)
    call.hand_back(errand)
    value: T = await errand.done
    return value


@asynccontextmanager
async def held_by_caller(steps: Steps[T]) -> AsyncIterator[T]:
    """Let the caller hold what a generator yields once, and give it back.

    Not a context manager: a generator can be closed in any state, so that what the caller holds is given back
    at the latest when the call ends, wherever an interruption has hit.

    Args:
        steps: the generator.
    """
    held = _current.get().held
    value = await by_caller(partial(_take, steps, held))
    try:
        yield value
    except BaseException:
        await by_caller(partial(_give_back, steps, held, is_failed=True))
        raise
    await by_caller(partial(_give_back, steps, held, is_failed=False))


def _take(steps: Steps[T], held: list[Steps[Any]]) -> T:
    held.append(steps)
    return next(steps)


def _give_back(steps: Steps[Any], held: list[Steps[Any]], *, is_failed: bool) -> None:
    if is_failed:
        # What is raised because of the error says less.
        with suppress(Exception):
            steps.close()
    else:
        next(steps, None)
    held.remove(steps)


def done_at_once(work: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Return the result of a coroutine that waits for nothing, because all it calls is blocking."""
    try:
        work().send(None)
    except StopIteration as stopped:
        result: T = stopped.value
        return result
    raise AssertionError
