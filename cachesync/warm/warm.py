"""Fills the slots of one entity in one cache, as the reads of its service would."""

from __future__ import annotations

import asyncio
import time
from collections import deque
from typing import TYPE_CHECKING, Any, Final

from pydantic import BaseModel
from redis import Redis

from cachesync.errors import CacheUnavailableError, DatabaseError, NotInstalledError
from cachesync.postgres.registry import problem_of, read_registry
from cachesync.postgres.rows import Rows
from cachesync.postgres.statements import statement
from cachesync.slots.bulk import Bulk
from cachesync.slots.clients import pipelined, primaries, translate_redis_errors
from cachesync.slots.layout import HEAD_BYTES, filled_content, is_readable, new_token, slot_name
from cachesync.slots.scripts import is_emptied, refusal_of, run_script
from cachesync.value import FINGERPRINT, is_value

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    import asyncpg

    from cachesync.change import Row
    from cachesync.entity import Entity
    from cachesync.slots.clients import BlockingRedis
    from cachesync.slots.scripts import Command

_IS_REPLICA: Final = "SELECT pg_is_in_recovery()"

MAX_RATE: Final = 1_000_000
"""The highest rate that can be given, in rows per second."""

# Long enough to load and fill a page; a service's reads of these rows wait for it, or go past the cache.
_LEASE_MS: Final = 5000
_FIRST_PAGE: Final = 50
_LARGEST_PAGE: Final = 500
_PAGE_BYTES: Final = 1 << 20
# What Redis needs for a slot besides its content: the name, the hash table and the lifetime.
_SLOT_BYTES: Final = 200
# The rest is for the slots of the rows that are read meanwhile.
_USED_SHARE: Final = 0.9
# Short, so that a rate limit does not lead to bursts.
_LIMITED_SECONDS: Final = 0.2
# Position of the only key in the command of a script.
_KEY_POSITION: Final = 3


class Warmed(BaseModel):
    """What was done.

    Attributes:
        service: the service whose cache was filled.
        entity: the entity.
        rows: the number of rows that were looked at.
        filled: how many of their slots were filled.
        cached: how many were cached already, or being loaded by others.
        not_filled: how many were not filled, because the row was deleted or changed meanwhile.
        stopped: why the rest was not looked at; None if there was no reason.
        seconds: how long it took, in seconds.
    """

    service: str
    entity: str
    rows: int = 0
    filled: int = 0
    cached: int = 0
    not_filled: int = 0
    stopped: str | None = None
    seconds: float = 0.0


class Warming:
    """Fills the slots of one entity in one cache.

    Each slot is filled under its lease, with a row that was read after the lease was taken, so that a change
    that arrives meanwhile is not overwritten. What is cached already stays as it is.

    Args:
        connection: a connection to the primary, with the role `cachesync_worker`.
        client: the client of the service's Redis or Redis Cluster.
        service: the service.
        entity: the entity.
    """

    def __init__(
        self, connection: asyncpg.Connection, client: BlockingRedis, service: str, entity: Entity
    ) -> None:
        self._connection = connection
        self._client = client
        self._service = service
        self._entity = entity
        self.done = Warmed(service=service, entity=entity.name)

    async def run(
        self,
        *,
        limit: int | None = None,
        recent: bool = False,
        rate: float | None = None,
        on_progress: Callable[[Warmed], None],
    ) -> Warmed:
        """Fill the slots of rows; those of an interrupted run are cached, so that the next one skips them.

        Args:
            limit: the maximum number of rows; None for no limit.
            recent: whether to take the rows that changed last, as far back as the change log reaches, instead
                of all rows in the order of their keys.
            rate: the maximum number of rows per second; None for no limit.
            on_progress: called with what has been done so far.

        Returns:
            What was done.

        Raises:
            NotInstalledError: the entity is not installed, or suspended.
            DatabaseError: the database did not respond, or is a replica, whose rows can be older than what
                the lease allows.
            CacheUnavailableError: Redis did not respond, or refuses the leases.
        """
        started = time.monotonic()
        rows = await self._open()
        try:
            keys = _Keys(self._connection, self._entity, rows, limit=limit, recent=recent)
            size = _FIRST_PAGE
            while page := await keys.next(self._limited(size, rate)):
                began = time.monotonic()
                loaded = await self._warm(rows, page)
                self.done.seconds = time.monotonic() - started
                on_progress(self.done)
                if self.done.stopped is not None:
                    break
                size = max(1, min(_LARGEST_PAGE, 2 * size, len(page) * _PAGE_BYTES // max(loaded, 1)))
                if rate is not None:
                    await asyncio.sleep(len(page) / rate - (time.monotonic() - began))
        finally:
            self.done.seconds = time.monotonic() - started
        return self.done

    async def _open(self) -> Rows:
        if await self._connection.fetchval(_IS_REPLICA):
            message = (
                "PostgreSQL is a replica, whose rows can be older than the cache allows; use the primary"
            )
            raise DatabaseError(message)
        registration = (await read_registry(self._connection)).get(self._entity.name)
        problem = problem_of(self._entity, registration)
        if problem is not None or registration is None:
            raise NotInstalledError(problem or "")
        self._fingerprint = registration.fingerprint.encode()
        return await Rows.open(self._connection, self._entity)

    @staticmethod
    def _limited(size: int, rate: float | None) -> int:
        return size if rate is None else max(1, min(size, int(rate * _LIMITED_SECONDS)))

    async def _warm(self, rows: Rows, keys: Sequence[str]) -> int:
        """Fill the slots of these keys, and return the size of the rows that were loaded, in bytes."""
        self.done.rows += len(keys)
        missing = self._missing(keys)
        self.done.cached += len(keys) - len(missing)
        if not missing:
            return 0
        leased = self._lease(missing)
        self.done.cached += len(missing) - len(leased)
        try:
            # Read after the leases were taken: whatever is committed later raises their floors.
            loaded = await rows.read(leased)
            size = sum(len(row.payload) for row in loaded.values())
            if (full := self._full(size + _SLOT_BYTES * len(loaded))) is None:
                self._fill(loaded, leased)
            else:
                self.done.stopped = full
        finally:
            self._release(leased)
        return size

    def _missing(self, keys: Iterable[str]) -> list[str]:
        """Return the keys whose slots a read would not serve; the others need no lease, nor their payload."""
        keys = list(keys)
        heads = self._send([("GETRANGE", self._name(key), "0", str(HEAD_BYTES - 1)) for key in keys], 1)
        return [key for key, head in zip(keys, heads, strict=True) if not self._is_served(head)]

    def _is_served(self, head: Any) -> bool:
        if not isinstance(head, bytes) or not is_readable(head):
            return False
        return not is_value(head) or head[FINGERPRINT] == self._fingerprint

    def _lease(self, keys: Iterable[str]) -> dict[str, str]:
        """Take leases, and return their tokens by key."""
        tokens = {key: new_token() for key in keys}
        replies = self._run(
            "lease",
            [
                (self._name(key), token, _LEASE_MS, self._fingerprint, "read", "")
                for key, token in tokens.items()
            ],
        )
        refused = next((reply for reply in replies if isinstance(reply, Exception)), None)
        taken = {
            key: token for (key, token), reply in zip(tokens.items(), replies, strict=True) if reply is None
        }
        if refused is not None:
            self._release(taken)
            message = f"the Redis of {self._service} refuses a lease: {refusal_of(refused)}"
            raise CacheUnavailableError(message)
        return taken

    def _fill(self, loaded: dict[str, Row], leased: dict[str, str]) -> None:
        """Fill the slots of rows; the leases that are left are those of rows that were not found."""
        calls: list[Command] = []
        for key, row in loaded.items():
            calls.append((self._name(key), leased.pop(key), *filled_content(self._entity, row)))
        self.done.not_filled += len(leased)
        for reply in self._run("fill", calls):
            if isinstance(reply, Exception):
                if not is_emptied(reply):
                    raise CacheUnavailableError(refusal_of(reply)) from reply
                self.done.stopped = f"the Redis of {self._service} refuses to store more: {refusal_of(reply)}"
            if reply == 1:
                self.done.filled += 1
            else:
                self.done.not_filled += 1

    def _release(self, leased: dict[str, str]) -> None:
        """Give up leases, so that no read waits for them."""
        self._run("release", [(self._name(key), token) for key, token in leased.items()])

    def _full(self, more: int) -> str | None:
        """Return why so many more bytes would evict other slots, or be refused; None if there is room."""
        for node, redis in primaries(self._client).items():
            with translate_redis_errors(f"the Redis of {self._service}"):
                memory: Any = redis.info("memory")
            used, limit = int(memory["used_memory"]), int(memory.get("maxmemory", 0))
            # All of it could belong to one primary.
            if limit and used + more > _USED_SHARE * limit:
                return (
                    f"the Redis of {self._service}{f' at {node}' if node else ''} is nearly full ({used:,} "
                    f"of {limit:,} bytes): more rows would evict others, or be refused"
                )
        return None

    def _name(self, key: str) -> str:
        return slot_name(self._service, self._entity.name, key)

    def _run(self, script: str, calls: list[Command]) -> list[Any]:
        return run_script(script, calls, self._send)

    def _send(self, commands: list[Command], key_position: int = _KEY_POSITION) -> list[Any]:
        """Return the reply to each command; an exception for one that was rejected."""
        if isinstance(self._client, Redis):
            with Bulk(self._client, f"the Redis of {self._service}", seconds=None) as redis:
                return redis.call(commands)
        return pipelined(self._client, [(str(command[key_position]), command) for command in commands])


class _Keys:
    """The keys of the rows to look at."""

    def __init__(
        self, connection: asyncpg.Connection, entity: Entity, rows: Rows, *, limit: int | None, recent: bool
    ) -> None:
        self._connection = connection
        self._entity = entity
        self._rows = rows
        self._left = limit
        self._after: str | None = None
        self._recent: deque[str] | None = None
        self._is_recent = recent

    async def next(self, size: int) -> list[str]:
        """Return the next keys; an empty list at the end."""
        if self._left is not None:
            size = min(size, self._left)
        keys = await (self._next_recent(size) if self._is_recent else self._next_in_order(size))
        if self._left is not None:
            self._left -= len(keys)
        return keys

    async def _next_recent(self, size: int) -> list[str]:
        if self._recent is None:
            found = await self._connection.fetch(statement("warm/recent"), self._entity.name, self._left)
            self._recent = deque(record["key"] for record in found)
        return [self._recent.popleft() for _ in range(min(size, len(self._recent)))]

    async def _next_in_order(self, size: int) -> list[str]:
        if size == 0:
            return []
        keys = await self._rows.keys_after(self._after, size)
        if keys:
            self._after = keys[-1]
        return keys
