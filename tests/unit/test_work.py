"""Work that runs until it is stopped."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import signal
import subprocess
import sys
import threading
from typing import TYPE_CHECKING

import pytest

from cachesync import work as works
from cachesync.backoff import Backoff
from cachesync.errors import SettingsError, StreamError
from cachesync.work import RunningWork, keep_working

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class Waiting:
    """Work that does nothing until it is stopped."""

    def __init__(self) -> None:
        self.began = threading.Event()
        self._stopped = threading.Event()

    def run(self) -> None:
        self.began.set()
        self._stopped.wait(30)

    def stop(self) -> None:
        self._stopped.set()


@pytest.fixture
def unfrozen() -> Iterator[None]:
    """A process that has not done any work yet, whatever other tests have done in it."""
    works._exempt_from_garbage_collection.cache_clear()  # noqa: SLF001
    gc.unfreeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("unfrozen")
async def test_garbage_collector_passes_over_what_was_loaded_before_the_work_began() -> None:
    # The collector does not track dictionaries of numbers and texts alone.
    loaded = [{"numbers": [number]} for number in range(100)]
    waiting = Waiting()
    work = RunningWork("waiting", lambda: waiting)
    try:
        while not waiting.began.is_set():
            assert not await work.has_ended(0.01)
        assert not any(one is loaded[0] for one in gc.get_objects())
        assert gc.get_freeze_count() >= len(loaded)
    finally:
        await work.stop()


class Failing(Waiting):
    """Work that ends with an error as soon as it runs."""

    def __init__(self, error: Exception) -> None:
        super().__init__()
        self._error = error

    def run(self) -> None:
        raise self._error


def opening(*parts: Waiting) -> Callable[[], Waiting]:
    """Returns a function that returns one of these after the other."""
    remaining = iter(parts)
    return lambda: next(remaining)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(works, "_BACKOFF", Backoff(first=0.01, longest=0.01))


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """Restore the handlers of signals, which the loop resets to their defaults when it closes."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_work_is_stopped_by_a_signal(number: signal.Signals) -> None:
    waiting = Waiting()
    kept = asyncio.create_task(keep_working("waiting", lambda: waiting))
    assert await asyncio.to_thread(waiting.began.wait, 10)
    os.kill(os.getpid(), number)
    await asyncio.wait_for(kept, 10)


@pytest.mark.usefixtures("quick")
async def test_work_that_ends_with_an_error_starts_again() -> None:
    waiting = Waiting()
    failing = [Failing(StreamError("the consumer must be replaced")), Failing(ValueError())]
    kept = asyncio.create_task(keep_working("failing", opening(*failing, waiting)))
    assert await asyncio.to_thread(waiting.began.wait, 10)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(kept, 10)


async def test_wait_after_an_error_ends_with_a_signal() -> None:
    opened = threading.Event()

    def fail() -> Waiting:
        opened.set()
        message = "no server"
        raise OSError(message)

    kept = asyncio.create_task(keep_working("failing", fail))
    assert await asyncio.to_thread(opened.wait, 10)
    os.kill(os.getpid(), signal.SIGTERM)
    await asyncio.wait_for(kept, 2)


async def test_invalid_setting_ends_the_work_for_good() -> None:
    with pytest.raises(SettingsError, match="not a Redis URL"):
        await asyncio.wait_for(keep_working("x", opening(Failing(SettingsError("not a Redis URL")))), 10)


# The work does not end when it is stopped, as if it waited for a server that does not respond.
_STUCK = """
import asyncio, logging, threading

import structlog

from cachesync import logs, work


class Stuck:
    def run(self) -> None:
        print("running", flush=True)
        threading.Event().wait()

    def stop(self) -> None:
        pass


logs.configure(logging.INFO, structlog.processors.JSONRenderer())
work._STOP_SECONDS = 0.2
asyncio.run(work.keep_working("stuck", Stuck))
"""


def test_process_whose_work_does_not_end_after_a_signal_ends_anyway() -> None:
    with subprocess.Popen(
        [sys.executable, "-c", _STUCK], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "running\n"
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=60)
    assert process.returncode == 0
    assert [json.loads(line)["event"] for line in log.splitlines()] == [
        "starting",
        "a server does not respond, not waiting for it",
        "stopped",
    ]
