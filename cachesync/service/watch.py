"""Follows the schema of the registered tables while the service runs."""

from __future__ import annotations

import asyncio
import random
import time
from typing import TYPE_CHECKING, Final

import structlog

from cachesync.errors import DatabaseError, NotInstalledError, PrivilegeError
from cachesync.postgres.registry import read_registry
from cachesync.service.table import installed

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachesync.service.cache import EntityCache
    from cachesync.service.database import Database

_log = structlog.get_logger(__name__)

# By this share, the pauses of a service's processes differ.
_JITTER: Final = 0.2


class Watch:
    """Compares the catalog with the registry from time to time, and changes the caches accordingly.

    While changes of an entity may not be captured, or the login lacks a privilege, its cache is suspended.
    After an installation, or after a change of the table that needs none, the cache gets the new description
    of the table.

    Args:
        database: the database.
        caches: the caches by entity.
        pause: the time between two comparisons, in seconds.
    """

    def __init__(self, database: Database, caches: Mapping[str, EntityCache], pause: float) -> None:
        self._database = database
        self._caches = caches
        self._pause = pause
        self._lock = asyncio.Lock()
        self._compared_at = float("-inf")
        self._due_at = float("inf")
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False

    async def start(self) -> None:
        """Compare once, then from time to time until `close` is called, or in `look_if_due`."""
        for cache in self._caches.values():
            cache.look = self.look
        await self.look()
        if self._database.needs_caller:
            self._due_at = self._next()
        else:
            self._task = asyncio.create_task(self._keep_looking())

    async def close(self) -> None:
        """Stop comparing."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])

    async def look(self, max_age: float = 0.0) -> None:
        """Compare now, unless a comparison has begun since the call.

        If the database does not respond, everything stays as it is.

        Args:
            max_age: also return if a comparison began less than this long before the call, in seconds.
        """
        loop = asyncio.get_running_loop()
        needed = loop.time() - max_age
        async with self._lock:
            if self._compared_at >= needed:
                return
            started = loop.time()
            try:
                await self._compare()
            except DatabaseError as error:
                _log.warning("schema not checked", error=str(error))
                return
            self._compared_at = started

    @property
    def is_due(self) -> bool:
        """Whether `look_if_due` would compare. Any thread may ask."""
        return time.monotonic() >= self._due_at

    async def look_if_due(self) -> None:
        """Compare if it is time, and only a call can: this one does, and others do not wait for it."""
        if self.is_due:
            self._due_at = self._next()
            await self.look()

    def _next(self) -> float:
        return time.monotonic() + self._varied_pause()

    def _varied_pause(self) -> float:
        return self._pause * random.uniform(1 - _JITTER, 1 + _JITTER)  # noqa: S311

    async def _keep_looking(self) -> None:
        # If the database does not respond, a pool can raise its own error instead of the cancellation.
        while not self._is_closed:
            await asyncio.sleep(self._varied_pause())
            await self.look()

    async def _compare(self) -> None:
        reloaded = False
        try:
            async with self._database.connection() as connection:
                # Its cost grows with the number of registered entities, so that it is read once for all.
                # Somebody's long `ALTER TABLE` must hold neither a connection nor the call that looks.
                registry = await read_registry(connection, of_service=True, waits=False)
                for cache in self._caches.values():
                    try:
                        registration = installed(registry, cache.entity)
                        problem = registration.problem
                        if problem is None and not cache.describes(registration):
                            await cache.reload(connection, registration)
                            reloaded = True
                            _log.info("table reloaded", entity=cache.entity.name)
                    except (NotInstalledError, PrivilegeError) as error:
                        problem = str(error)
                    _set_problem(cache, problem)
        except (NotInstalledError, PrivilegeError) as error:
            for cache in self._caches.values():
                _set_problem(cache, str(error))
        finally:
            if reloaded:
                # Sessions can have cached plans for the tables as they were.
                await self._database.renew()


def _set_problem(cache: EntityCache, problem: str | None) -> None:
    """Suspend or resume a cache, and log each change once."""
    if problem is not None and problem != cache.problem:
        _log.error("entity suspended", entity=cache.entity.name, problem=problem)
    elif problem is None and cache.problem is not None:
        _log.info("entity resumed", entity=cache.entity.name)
    cache.problem = problem
