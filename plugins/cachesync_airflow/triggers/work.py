"""Work that has outlived the trigger that started it."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final

import structlog

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Hashable

    from cachesync.work import RunningWork

_log = structlog.get_logger(__name__)

LOOK_SECONDS: Final = 15.0
"""The interval at which a trigger looks at its run, and waiting work for its successor, in seconds."""


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
