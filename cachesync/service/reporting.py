"""Reports what a process of a service counts."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Final, NoReturn

from cachesync.errors import CacheUnavailableError
from cachesync.metrics import service as metrics
from cachesync.slots.layout import reads_name

if TYPE_CHECKING:
    from collections.abc import Mapping

    from prometheus_client import Counter

    from cachesync.service.cache import EntityCache
    from cachesync.service.database import Database
    from cachesync.slots.single import Slots

_SHARE_SECONDS: Final = 1.0
# In shares.
_SEND_EVERY: Final = 10


class Reporting:
    """Reports what a process counts: each second to Prometheus, and its reads every 10 s to its Redis.

    The hash `{service}:@:reads` in that Redis has the reads of all processes of the service, with a field for
    each entity and outcome, such as `student|hit`. The live check reads it. While Redis is away, the reads
    wait in this process.

    Args:
        service: the name of the service.
        caches: the caches by entity.
        slots: the slots of the service.
        database: the database.
    """

    def __init__(
        self, service: str, caches: Mapping[str, EntityCache], slots: Slots, database: Database
    ) -> None:
        self._name = reads_name(service)
        self._caches = caches
        self._slots = slots
        self._database = database
        # What has been reported, by entity and by outcome or reason.
        self._shared: dict[tuple[str, str], int] = {}
        self._sent: dict[str, int] = {}
        self._task: asyncio.Task[NoReturn] | None = None

    def start(self) -> None:
        """Report from time to time until `close` is called."""
        metrics.cache_failures.export()
        for entity in self._caches:
            metrics.hits.labels(entity)
            metrics.misses.labels(entity)
        self._task = asyncio.create_task(self._keep_reporting())

    async def close(self) -> None:
        """Report for the last time."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.wait([self._task])
            self.share()
            await self.send()

    def share(self) -> None:
        """Bring the metrics of this process up to date."""
        for entity, cache in self._caches.items():
            counts = cache.counts
            self._add(metrics.hits.labels(entity), entity, "hits", counts.hits)
            self._add(metrics.misses.labels(entity), entity, "misses", counts.misses)
            for reason, reads in tuple(counts.bypasses.items()):
                self._add(metrics.bypasses.labels(entity, reason), entity, reason, reads)
            metrics.suspended.set(cache.problem is not None, entity)
        metrics.open_breakers.set(self._slots.open_breakers)
        metrics.refusing_redis.set(self._slots.refuses_commands)
        pool = self._database.pool()
        if pool is not None:
            metrics.pool_connections.set(pool.idle, "idle")
            metrics.pool_connections.set(pool.used, "used")
            metrics.pool_limit.set(pool.limit)

    def _add(self, counter: Counter, entity: str, kind: str, total: int) -> None:
        new = total - self._shared.get((entity, kind), 0)
        if new:
            self._shared[entity, kind] = total
            counter.inc(new)

    async def send(self) -> None:
        """Add the reads since the last time to the hash in Redis, in one round trip."""
        totals = {}
        for entity, cache in self._caches.items():
            counts = cache.counts
            totals[f"{entity}|hit"] = counts.hits
            totals[f"{entity}|miss"] = counts.misses
            totals[f"{entity}|bypass"] = sum(tuple(counts.bypasses.values()))
        new = {field: total for field, total in totals.items() if total > self._sent.get(field, 0)}
        replies = await asyncio.gather(
            *(
                self._slots.add_to_hash(self._name, field, new[field] - self._sent.get(field, 0))
                for field in new
            ),
            return_exceptions=True,
        )
        for field, reply in zip(new, replies, strict=True):
            if not isinstance(reply, BaseException):
                self._sent[field] = new[field]
            elif not isinstance(reply, CacheUnavailableError):
                raise reply

    async def _keep_reporting(self) -> NoReturn:
        while True:
            for _ in range(_SEND_EVERY):
                await asyncio.sleep(_SHARE_SECONDS)
                self.share()
            await self.send()
