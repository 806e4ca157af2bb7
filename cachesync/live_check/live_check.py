"""The live check: changes a row each second, and looks when each cache has it."""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from typing import TYPE_CHECKING, Final

import structlog

from cachesync.backoff import Backoff
from cachesync.entity import CANARY, with_canary
from cachesync.errors import DatabaseError, DatabaseUnavailableError, NotInstalledError
from cachesync.live_check.cache import Cache
from cachesync.live_check.follower import CARE_SECONDS, Follower
from cachesync.live_check.judge import Change
from cachesync.live_check.store import Store
from cachesync.metrics import live_check as metrics
from cachesync.metrics.kinds import forget
from cachesync.postgres.connect import NOT_INSTALLED
from cachesync.work import LoopWork

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cachesync.entity import Entity
    from cachesync.slots.clients import BlockingRedis

_log = structlog.get_logger(__name__)

_TICK_SECONDS: Final = 1.0
_SAMPLED_CHANGES: Final = 10
# In this time, each follower reads a sample once.
_SAMPLE_TICKS: Final = math.ceil(CARE_SECONDS / _TICK_SECONDS)
# Changes that were committed later than this after they were made are not sampled.
_SAMPLED_TICKS: Final = 60
_CAPTURE_TICKS: Final = 3
_COUNT_TICKS: Final = 5
_PRUNE_TICKS: Final = 600
_BACKOFF: Final = Backoff(first=0.5, longest=5)


class LiveCheck(LoopWork):
    """Follows changes in every cache, and writes what it sees to tables of the schema `cachesync`.

    `run` occupies one thread until `stop` is called. Of several live checks, one works, and the others wait
    to take over.

    Args:
        dsn: the database, with a login that has the role `cachesync_worker`; None to use the variables
            PGHOST, PGUSER and so on.
        caches: opens a client of the Redis of each service, with the timeout `REDIS_SECONDS`, by the
            service's name.
        entities: the declared entities by name.
    """

    def __init__(
        self,
        dsn: str | None,
        caches: Mapping[str, Callable[[], BlockingRedis]],
        entities: Mapping[str, Entity],
    ) -> None:
        super().__init__()
        self._dsn = dsn
        self._entities = entities
        self._openers = caches
        self._followers: list[Follower] = []
        self._problems: dict[str, str | None] = {}
        self._ticks = 0
        # The versions that the hidden entity has drawn, in the last ticks and of each row.
        self._drawn: deque[int] = deque(maxlen=_SAMPLED_TICKS)
        self._versions: dict[int, int] = {}
        self._sampled: dict[tuple[str, str], int] = {}
        self._restored = False

    async def work(self) -> None:
        """Look until it is canceled, and wait while the database is unavailable.

        Raises:
            NotInstalledError: the tables of the live check are missing.
            DatabaseError: PostgreSQL rejected a statement.
        """
        self._followers = [Follower(Cache(name, opener)) for name, opener in self._openers.items()]
        try:
            async with asyncio.TaskGroup() as group:
                for follower in self._followers:
                    group.create_task(follower.run())
                group.create_task(self._check())
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        finally:
            for follower in self._followers:
                follower.close()

    async def _check(self) -> None:
        failures = 0
        while True:
            try:
                store = await Store.open(self._dsn, self._entities)
                try:
                    await self._wait_for_turn(store)
                    if failures:
                        _log.info("live check resumed: PostgreSQL available")
                    failures = 0
                    await self._watch(store)
                finally:
                    for follower in self._followers:
                        follower.pause()
                    forget(self)
                    await store.close()
            except DatabaseUnavailableError as error:
                if not failures:
                    _log.warning("live check paused: PostgreSQL unavailable", error=str(error))
                failures += 1
                await asyncio.sleep(_BACKOFF.delay(failures))
            except DatabaseError as error:
                if isinstance(error.__cause__, NOT_INSTALLED):
                    message = f"{error.__cause__}; run `cachesync install`"
                    raise NotInstalledError(message) from error
                raise

    async def _wait_for_turn(self, store: Store) -> None:
        if await store.take_over():
            return
        _log.info("another live check works, waiting to take over")
        # What the other one follows in the meantime is in the tables.
        self._restored = False
        while not await store.take_over():  # noqa: ASYNC110 - another process holds the lock
            await asyncio.sleep(_TICK_SECONDS)

    async def _watch(self, store: Store) -> None:
        await store.forget_others([follower.service for follower in self._followers])
        if not self._restored:
            await self._restore(store)
        self._drawn.append(await store.newest())
        for follower in self._followers:
            follower.begin(store, with_canary(self._entities))
        while True:
            started = time.monotonic()
            await self._tick(store)
            await asyncio.sleep(max(0.0, started + _TICK_SECONDS - time.monotonic()))

    async def _restore(self, store: Store) -> None:
        """Follow again what an earlier live check has not seen."""
        now = time.monotonic()
        unseen = await store.unseen()
        for follower in self._followers:
            follower.restore([one for one in unseen if one.service == follower.service], now)
        self._restored = True

    async def _tick(self, store: Store) -> None:
        now = time.monotonic()
        await store.save(
            [follower.cache for follower in self._followers],
            [follower.judge.oldest() for follower in self._followers],
            [follower.size for follower in self._followers],
            now,
        )
        await self._change(store)
        await self._compare(store)
        for follower in self._followers:
            await follower.record(store)
        if self._ticks % _CAPTURE_TICKS == 0:
            await self._look_at_triggers(store)
        if self._ticks % _COUNT_TICKS == 0:
            await store.count(
                (follower.service, entity, counts)
                for follower in self._followers
                for entity, counts in follower.take_counts().items()
            )
        if self._ticks % _PRUNE_TICKS == 0:
            await store.prune()
        self._ticks += 1

    async def _change(self, store: Store) -> None:
        """Change a row, and let every cache be looked at until it has the new version."""
        row = store.canary[self._ticks % len(store.canary)]
        version, sampled = await store.tick(row, self._drawn[0], _SAMPLED_CHANGES)
        committed_at = time.monotonic()
        if version is None:
            await store.find_canary()
        elif version < self._versions.get(row, 0):
            _log.warning("versions were set back", drawn=self._versions[row], now=version)
            self._drawn.clear()
            self._versions, self._sampled = {}, {}
        # Without its triggers, the row draws no version, which the look at the triggers reports.
        if version is not None and version != self._versions.get(row):
            self._versions[row] = version
            self._drawn.append(version)
            for follower in self._followers:
                follower.follow(Change(CANARY.name, str(row), version), committed_at, is_exact=True)
        for change in sampled:
            if self._sampled.get(change.slot, 0) < change.version:
                for follower in self._followers:
                    follower.follow(change, committed_at)
        self._sampled = {change.slot: change.version for change in sampled}

    async def _compare(self, store: Store) -> None:
        """Compare some slots of one entity with their rows."""
        entity = self._sampled_in(self._ticks)
        # Each follower goes on reading other slots in the meantime.
        slots = [(follower, follower.take_sample(entity)) for follower in self._followers]
        rows = await store.rows(entity, {key for _, sample in slots for key, _ in sample})
        following = self._sampled_in(self._ticks + 1)
        for follower, sample in slots:
            follower.sample_next = following
            if rows is not None:
                follower.compare(entity, sample, rows)

    def _sampled_in(self, tick: int) -> str:
        """Return the entity of which slots are compared in a tick."""
        return list(self._entities)[tick // _SAMPLE_TICKS % len(self._entities)]

    async def _look_at_triggers(self, store: Store) -> None:
        """Log each change of what is wrong with the triggers once."""
        captures = await store.capture()
        problems = {name: capture.problem for name, capture in captures.items()}
        fingerprints = {
            name: capture.fingerprint for name, capture in captures.items() if capture.fingerprint is not None
        }
        for follower in self._followers:
            follower.fingerprints = fingerprints
        for name, problem in problems.items():
            metrics.capture_lost.set(self, problem is not None, name)
            if problem != self._problems.get(name):
                if problem is None:
                    _log.info("triggers restored", entity=name)
                else:
                    _log.error("triggers do not fire", entity=name, problem=problem)
        self._problems = problems
