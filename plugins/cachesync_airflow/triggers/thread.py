"""A trigger whose work runs in a thread of its own and never ends by itself."""

from __future__ import annotations

import asyncio
from abc import abstractmethod
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol

from airflow.triggers.base import BaseTrigger, TriggerEvent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


class Work(Protocol):
    """What a thread does."""

    def run(self) -> None:
        """Work until `stop`."""

    def stop(self) -> None:
        """Make `run` return soon; from any thread."""


class ThreadTrigger(BaseTrigger):
    """Works until it is cancelled; yields an event only when it cannot go on.

    The work runs in a thread of its own, so that it blocks neither the triggerer's event loop nor the
    thread that other triggers share.

    Args:
        arguments: what the trigger can be made again from.
    """

    def __init__(self, **arguments: Any) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._arguments = arguments
        self._name = "-".join(map(str, (type(self).__name__, *arguments.values())))

    @abstractmethod
    def open(self) -> Work:
        """Connect; called in the thread."""

    def serialize(self) -> tuple[str, dict[str, Any]]:
        """How Airflow makes this trigger again in the triggerer."""
        return f"{type(self).__module__}.{type(self).__qualname__}", self._arguments

    async def run(self) -> AsyncIterator[TriggerEvent]:
        """Work; the one event's payload is the text of the error."""
        executor = ThreadPoolExecutor(1, thread_name_prefix=self._name)
        loop = asyncio.get_running_loop()
        work: Work | None = None
        try:
            work = await loop.run_in_executor(executor, self.open)
            self.log.info("%s runs", self._name)
            await loop.run_in_executor(executor, work.run)
        except Exception as error:
            self.log.exception("%s ended", self._name)
            yield TriggerEvent(f"{type(error).__name__}: {error}")
        finally:
            if work is not None:
                work.stop()
            await asyncio.to_thread(executor.shutdown)
