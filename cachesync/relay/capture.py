"""Reports the entities whose changes may not be captured."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import asyncpg
import structlog

from cachesync.metrics import relay as metrics
from cachesync.postgres.registry import problem_of, read_registry
from cachesync.postgres.statements import statement

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cachesync.entity import Entity

_log = structlog.get_logger(__name__)

# Changes that are made while the triggers are off, for less time than this, can go unnoticed.
_PAUSE_SECONDS: Final = 10.0
_SET_BACK: Final = "entity {!r}: sequence cachesync.row_version was set back; run `cachesync install`"


class CaptureCheck:
    """Compares the registry with the catalog from time to time.

    The registry remembers what this finds, so that the caches start over at the next installation even if
    somebody repairs the triggers by hand first.

    Args:
        entities: the declared entities by name.
    """

    def __init__(self, entities: Mapping[str, Entity]) -> None:
        self._entities = entities
        self._next_check = 0.0
        self._problems: dict[str, str] = {}

    async def step(self, connection: asyncpg.Connection) -> None:
        """Compare, report and note what changed since the last time, if it is due.

        Args:
            connection: a connection with the role `cachesync_worker`.

        Raises:
            NotInstalledError: the database side is missing, or was installed by an earlier version.
        """
        now = time.monotonic()
        if now < self._next_check:
            return
        self._next_check = now + _PAUSE_SECONDS
        try:
            # The relay must not wait for somebody's long `ALTER TABLE`, nor all entities for one.
            registry = await read_registry(connection, waits=False)
        except (asyncpg.InternalServerError, asyncpg.LockNotAvailableError):
            # An object was dropped while the catalog was read, or is locked.
            return
        set_back = await connection.fetchval(statement("postgres/sequence_set_back"))
        problems = {}
        for name, entity in self._entities.items():
            registration = registry.get(name)
            if registration is not None and (set_back or registration.problem is not None):
                problems[name] = registration.problem or _SET_BACK.format(name)
                await connection.execute(statement("relay/mark_lost"), name, registration.installation)
            elif (
                registration is not None
                and registration.partitions_changed
                and (problem := await _follow_partitions(connection, name))
            ) or (problem := problem_of(entity, registration)):
                problems[name] = problem
        metrics.capture_lost.replace(self, {(name,): name in problems for name in self._entities})
        metrics.catalog_checked.set(self, time.time())
        self._report(problems)

    def _report(self, problems: dict[str, str]) -> None:
        """Log each change of state once."""
        for name, problem in problems.items():
            if self._problems.get(name) != problem:
                _log.error("capture lost", entity=name, problem=problem)
        for name in self._problems.keys() - problems.keys():
            _log.info("capture restored", entity=name)
        self._problems = problems


async def _follow_partitions(connection: asyncpg.Connection, entity: str) -> str | None:
    """Make the caches right after partitions changed, and return what still fails.

    Nothing is marked as lost: what the next check finds is made right in the same way.
    """
    try:
        followed = await connection.fetchrow(statement("relay/follow_partitions"), entity)
    except asyncpg.LockNotAvailableError:
        # Another relay, or an installation, is at it.
        return None
    if followed is None:  # The function always returns a row.
        raise AssertionError
    _log.warning("partitions changed", entity=entity, emptied=followed["emptied"])
    if followed["failures"] is None:
        return None
    return (
        f"entity {entity!r}: a TRUNCATE of a new partition would be missed; {followed['failures']}; run "
        "`cachesync install` as the owner of the tables"
    )
