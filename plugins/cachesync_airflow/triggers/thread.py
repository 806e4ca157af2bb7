"""A trigger whose work runs in its own thread and does not end by itself."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from airflow.triggers.base import BaseTrigger, TriggerEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Work(Protocol):
    """Work that blocks a thread until it is stopped."""

    def run(self) -> None:
        """Work until `stop` is called."""

    def stop(self) -> None:
        """Make `run` return soon. Can be called from any thread."""


class ThreadTrigger(BaseTrigger):
    """Works until it is canceled; yields an event only if the work cannot continue.

    The work runs in its own thread, so that it blocks neither the triggerer's event loop nor the thread that
    other triggers share.

    Args:
        arguments: the arguments from which Airflow can recreate the trigger.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._arguments = arguments
        self._name = "-".join(map(str, (type(self).__name__, *arguments.values())))

    @abstractmethod
    def open(self) -> Work:
        """Create the work. Called in the thread."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """Return the class path and the arguments from which Airflow recreates the trigger."""
        return f"{type(self).__module__}.{type(self).__qualname__}", self._arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Do the work. The only event is the text of the error that ended it."""
        executor = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        loop = asyncio.get_running_loop()
        work: Work | None = None
        try:
            work = await loop.run_in_executor(executor, self.open)
            self.log.info("%s started", self._name)
            await loop.run_in_executor(executor, work.run)
        except Exception as error:
            self.log.exception("%s failed", self._name)
            yield TriggerEvent(f"{type(error).__name__}: {error}")
        finally:
            if work is not None:
                work.stop()
            await asyncio.to_thread(executor.shutdown)
