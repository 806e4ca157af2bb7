"""Work in the triggerer."""

from __future__ import annotations

import gc
import threading
from typing import TYPE_CHECKING

import pytest
from cachesync_airflow.triggers.work import RunningWork

if TYPE_CHECKING:
    from collections.abc import Iterator


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
    gc.unfreeze()
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("unfrozen")
async def test_garbage_collector_passes_over_what_was_loaded_before_the_work_began() -> None:
    loaded = [{"number": number} for number in range(100)]
    waiting = Waiting()
    work = RunningWork("waiting", lambda: waiting)
    try:
        while not waiting.began.is_set():
            assert not await work.has_ended(0.01)
        assert not any(one is loaded[0] for one in gc.get_objects())
        assert gc.get_freeze_count() >= len(loaded)
    finally:
        await work.stop()
