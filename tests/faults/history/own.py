"""The clients that use the library: they write with their own SQL, and read through a service's cache."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import asyncpg

from cachesync import AsyncCaches, CacheSyncError, EntityCache
from cachesync.service.following import Settled
from tests.faults.history.record import Kind, Operation, Outcome, Row, digest
from tests.faults.history.workload import TABLES, change, pick

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from random import Random
    from threading import Event

    from cachesync import Change
    from local.service import Service
    from tests.faults.history.record import Clock

CLIENTS = 3
_PAUSE_SECONDS = 0.1
_RECONNECT_SECONDS = 0.3
# About as long as a transaction takes.
_CUT_SECONDS = 0.03
_CONNECTIONS = 4
_KINDS = ("update", "bulk", "delete", "insert", "again", "move")
_WEIGHTS = (9, 1, 2, 4, 2, 2)


class TakenBackError(Exception):
    """Rolls a transaction back."""


class OwnClient:
    """Reads rows through the library, and changes them in transactions of its own, one after the other.

    Args:
        name: the name of the client.
        service: the name of the service whose cache it shares.
        caches: the caches.
        pool: the connections of its transactions.
        clock: the clock of the history.
        random: determines what it does.

    Attributes:
        operations: the operations so far.
    """

    def __init__(
        self,
        name: str,
        service: str,
        caches: AsyncCaches,
        pool: asyncpg.Pool,
        *,
        clock: Clock,
        random: Random,
    ) -> None:
        self._known: dict[str, Any] = {"client": name, "service": service}
        self._caches = caches
        self._pool = pool
        self._clock = clock
        self._random = random
        self.operations: list[Operation] = []

    async def serve(self, stopping: Event) -> None:
        """Read and write until it is told to stop."""
        while not stopping.is_set():
            await asyncio.sleep(self._random.uniform(0, 2 * _PAUSE_SECONDS))
            if self._random.random() < 0.6:
                row = pick(self._random)
                more = self._random.random() < 0.3
                await self.read(row, *(self._random.sample(TABLES[row.entity].rows, 5) if more else ()))
                continue
            try:
                await self.write(*self._planned())
            except asyncpg.TransactionRollbackError:
                # A deadlock: the database has rolled the transaction back.
                continue
            # The last one is what asyncpg raises for a statement on a connection that was just terminated.
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError, CacheSyncError, AttributeError):
                # Whether it was committed is unknown, and it was not acknowledged.
                await asyncio.sleep(_RECONNECT_SECONDS)

    async def read(self, *rows: Row) -> None:
        """Read rows of one entity together."""
        cache = cache_of(self._caches, rows[0].entity)
        keys = [row.key for row in rows]
        start = self._clock()
        try:
            reads = await cache.read_many(keys) if len(keys) > 1 else {keys[0]: await cache.read(keys[0])}
        except CacheSyncError:
            return
        for key, read in reads.items():
            known: dict[str, Any] = {"outcome": Outcome.ABSENT}
            if read.row is not None:
                known = {
                    "outcome": Outcome.DONE,
                    "version": read.row.version,
                    "digest": digest(read.row.payload),
                }
            self._record(Row(rows[0].entity, key), Kind.READ, start, cache=str(read.outcome), **known)

    async def write(self, statements: list[tuple[str, str, list[str]]], end: str = "commit") -> None:
        """Change rows in a transaction.

        Args:
            statements: what to do, with which entity, and with which keys.
            end: `commit`, `rollback`, or `cut`: the connection breaks at some moment.
        """
        written: dict[Row, tuple[int, str | None]] = {}
        start = self._clock()
        async with self._pool.acquire() as connection:
            cutting = None
            if end == "cut":
                cutting = asyncio.get_running_loop().call_later(
                    self._random.uniform(0, _CUT_SECONDS), connection.terminate
                )
            try:
                with suppress(TakenBackError):
                    async with self._caches.following(connection) as followed:
                        for kind, entity, keys in statements:
                            for key, version, payload in await change(
                                connection, kind, entity, keys, self._random
                            ):
                                written[Row(entity, key)] = (version, payload)
                        if end == "rollback":
                            raise TakenBackError
                    for row, (version, payload) in written.items():
                        self._record(
                            row,
                            Kind.DELETE if payload is None else Kind.UPSERT,
                            start,
                            cache="" if followed.cached else "BYPASS",
                            outcome=Outcome.DONE,
                            version=version,
                            digest="" if payload is None else digest(payload.encode()),
                        )
            finally:
                if cutting is not None:
                    cutting.cancel()

    def _planned(self) -> tuple[list[tuple[str, str, list[str]]], str]:
        statements = []
        for kind in self._random.choices(_KINDS, _WEIGHTS, k=self._random.randint(1, 3)):
            row = pick(self._random)
            if kind == "move":
                rows = self._random.sample(TABLES["grade"].rows, 2)
            else:
                of_entity = TABLES[row.entity].rows
                rows = self._random.sample(of_entity, len(of_entity) // 4) if kind == "bulk" else [row]
            statements.append((kind, rows[0].entity, [one.key for one in rows]))
        return statements, self._random.choices(("commit", "rollback", "cut"), (8, 1, 1))[0]

    def _record(self, row: Row, kind: Kind, start: float, **known: Any) -> None:
        self.operations.append(
            Operation(row=row, kind=kind, start=start, end=self._clock(), **self._known, **known)
        )


def cache_of(caches: AsyncCaches, entity: str) -> EntityCache:
    """Return what tells the version of a row, which users do not need."""
    return caches[entity]._cache  # noqa: SLF001


async def settle_nothing(_: object, committed: Iterable[Change], *_rest: object, **_named: object) -> Settled:
    """Bring the changes of a transaction to no slot, instead of what the library does at its end."""
    return Settled(tuple(committed), cached=True)


async def serve(  # noqa: PLR0917
    service: Service, dsn: str, clock: Clock, opened: Event, stopping: Event, randoms: Mapping[str, Random]
) -> list[Operation]:
    """Let clients share the cache of a service until they are told to stop; return their operations.

    Args:
        service: the service.
        dsn: the DSN of the database; its host and port are replaced by those that the service uses.
        clock: the clock of the history.
        opened: is set when they begin.
        stopping: tells them to stop.
        randoms: what determines what each client does, by its name.
    """
    environment = service.environment()
    async with asyncpg.create_pool(
        dsn,
        host=environment["DB_HOST"],
        port=int(environment["DB_PORT"]),
        min_size=1,
        max_size=_CONNECTIONS,
    ) as pool:
        caches = AsyncCaches(
            service.name,
            redis=environment["REDIS_URL"],
            database=pool,
            entities=environment["CACHESYNC_ENTITIES"],
        )
        async with caches:
            opened.set()
            clients = [
                OwnClient(name, service.name, caches, pool, clock=clock, random=random)
                for name, random in randoms.items()
            ]
            async with asyncio.TaskGroup() as group:
                for client in clients:
                    group.create_task(client.serve(stopping))
        pool.terminate()
    return [operation for client in clients for operation in client.operations]
