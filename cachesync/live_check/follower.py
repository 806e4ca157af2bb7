"""Follows changes in the cache of one service, independently of the other caches."""

from __future__ import annotations

import asyncio
import math
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import structlog

from cachesync.entity import CANARY
from cachesync.errors import CacheUnavailableError, DatabaseError
from cachesync.live_check.cache import COMPARED_BYTES
from cachesync.live_check.judge import (
    HORIZONS,
    VIOLATION_KINDS,
    VIOLATION_SECONDS,
    Change,
    Judge,
    violation_of,
)
from cachesync.metrics import live_check as metrics
from cachesync.metrics.kinds import forget
from cachesync.slots.layout import ABSENT, EMPTY, filled_content, is_readable
from cachesync.value import FINGERPRINT, UP_TO_PAYLOAD, VERSION, is_value, version_of

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cachesync.change import Row
    from cachesync.live_check.cache import Cache, Size
    from cachesync.live_check.judge import Counts, Followed
    from cachesync.live_check.store import Store, Unseen

_log = structlog.get_logger(__name__)

CARE_SECONDS: Final = 2.0
"""How often each cache is looked after, and some of its slots are read, in seconds."""

_SIZE_SECONDS: Final = 10.0
_READS_SECONDS: Final = 60.0
_ODD_SECONDS: Final = 2.0
_TOGETHER_SECONDS: Final = 0.003
# So many open violations say enough.
_MAX_OPEN: Final = 200


@dataclass
class _Odd:
    """A slot whose version is that of its row, or higher, but whose content is another.

    Attributes:
        content: the content of the slot.
        since: when that was noticed.
        next_at: when to look at it again.
        violation: the number of its violation; None if there is none.
    """

    content: bytes
    since: float
    next_at: float
    violation: int | None = None


class Follower:
    """Follows changes in one cache.

    Args:
        cache: the cache.

    Attributes:
        service: the service that owns the cache.
        cache: as given.
        judge: what is followed, and the figures.
        store: the database; None while it is unavailable, or while another process does the live check.
        size: what the cache occupies; None if that is not known.
        sample_next: the entity of which some slots are read next.
        fingerprints: the schema fingerprint of each entity's values that the services serve; a value with
            another is a miss.
    """

    def __init__(self, cache: Cache) -> None:
        self.service = cache.service
        self.cache = cache
        self.judge = Judge()
        self.store: Store | None = None
        self.size: Size | None = None
        self.sample_next: str | None = None
        self.fingerprints: Mapping[str, bytes] = {}
        self._sampled: tuple[str, list[tuple[str, bytes]]] = "", []
        self._changed = asyncio.Event()
        self._closed: list[int] = []
        self._odd: dict[tuple[str, str], _Odd] = {}
        # The newest change of each row of the hidden entity.
        self._newest: dict[str, Change] = {}
        self._next_care = self._next_size = self._next_reads = 0.0
        self._looked_at: float | None = None
        self._reads: dict[tuple[str, str], int] | None = None

    def begin(self, store: Store, entities: Iterable[str]) -> None:
        """Look at what a service does to the cache from now on, and export figures.

        Args:
            store: the database.
            entities: the entities, whose violations are counted from 0.
        """
        for entity in entities:
            for kind in VIOLATION_KINDS:
                metrics.violations.labels(self.service, entity, kind)
        self.store = store

    def pause(self) -> None:
        """Only look at what is followed already, and export nothing about the cache."""
        self.store = None
        forget(self)

    def close(self) -> None:
        """Disconnect."""
        self.cache.close()
        forget(self)

    def follow(self, change: Change, now: float, *, is_exact: bool = False) -> None:
        """Begin to follow a change; see `Judge.follow`."""
        self.judge.follow(change, now, is_exact=is_exact)
        if is_exact:
            self._newest[change.key] = change
        self._changed.set()

    def restore(self, unseen: Sequence[Unseen], now: float) -> None:
        """Follow what an earlier live check has not seen, instead of what is followed now."""
        self.judge = Judge()
        self._odd = {}
        for one in unseen:
            if one.kind == "stale":
                self._odd[one.entity, one.key] = _Odd(b"", now - one.age, now, one.id)
                continue
            change = Change(one.entity, one.key, one.version)
            followed = self.judge.follow(change, now - one.age, is_counted=False)
            followed.next_at = now
            if one.id is not None:
                # The oldest change can be a violation, and is then among both.
                followed.violation = one.id
        self._changed.set()

    async def run(self) -> None:
        """Look at the cache whenever that is due, until canceled."""
        while True:
            now = time.monotonic()
            try:
                if self.store is not None and now >= self._next_care:
                    self._next_care = now + CARE_SECONDS
                    await self._care(self.store, now)
                await self._look()
            except CacheUnavailableError:
                self.judge.unanswered(time.monotonic())
            self._export()
            self._changed.clear()
            now = time.monotonic()
            wake_at = now + CARE_SECONDS if self.store is None else self._next_care
            wake_at = min(wake_at, self.judge.next_at() or wake_at)
            try:
                async with asyncio.timeout(max(0.0, wake_at - now)):
                    await self._changed.wait()
            except TimeoutError:
                pass

    async def _look(self) -> None:
        due = self.judge.due(time.monotonic() + _TOGETHER_SECONDS)
        if not due:
            return
        slots = list(dict.fromkeys(one.change.slot for one in due))
        sent_at = time.monotonic()
        heads = dict(zip(slots, await self.cache.heads(slots), strict=True))
        received_at = time.monotonic()
        self._looked_at = time.time()
        for one in due:
            head = self._as_read(one.change.entity, heads[one.change.slot])
            newest = self._newest.get(one.change.key) if one.is_exact else None
            if newest is not None and is_value(head) and version_of(head) > newest.version:
                # As after the database was restored: it is then past every change, whoever applies any.
                self._doubt(one.change.slot, head, received_at)
            if not self.judge.looked(one, head, sent_at, received_at):
                continue
            if one.violation is not None:
                self._closed.append(one.violation)
            if one.lag is not None:
                metrics.lag.labels(self.service).observe_milliseconds([math.ceil(1000 * one.lag)])

    def _as_read(self, entity: str, slot: bytes) -> bytes:
        """Return what a slot holds for a read, to which a value of another schema is a miss."""
        if is_value(slot) and slot[FINGERPRINT] != self.fingerprints.get(entity, slot[FINGERPRINT]):
            return EMPTY
        return slot

    async def _care(self, store: Store, now: float) -> None:
        """Find out whether the cache is usable, fill the slots of the hidden entity, and read others."""
        entity = self.sample_next
        keys = [str(row) for row in store.canary]
        heads, sampled = await self.cache.care([(CANARY.name, key) for key in keys], entity)
        self._looked_at = time.time()
        self._sampled = entity or "", sampled
        read = [self._as_read(CANARY.name, head) for head in heads]
        empty = [key for key, head in zip(keys, read, strict=True) if not head or head == ABSENT]
        if empty and self.cache.state == "ok":
            await self._fill(store, empty)
        if now >= self._next_size:
            self._next_size = now + _SIZE_SECONDS
            self.size = await self.cache.size()
        if now >= self._next_reads:
            self._next_reads = now + _READS_SECONDS
            self._count_reads(await self.cache.reads())

    async def _fill(self, store: Store, keys: Sequence[str]) -> None:
        """Fill empty slots of the hidden entity as reads of the service would."""
        tokens = await self.cache.lease(keys)
        try:
            rows = await store.rows(CANARY.name, tokens)
        except DatabaseError:
            return
        await self.cache.fill(
            (key, tokens[key], *filled_content(CANARY, row)) for key, row in (rows or {}).items()
        )

    def _count_reads(self, reads: dict[tuple[str, str], int]) -> None:
        """Add what was counted since the last time."""
        before, self._reads = self._reads, reads
        for (entity, outcome), more in more_reads(before, reads).items():
            counts = self.judge.counts_of(entity)
            match outcome:
                case "hit":
                    counts.hits += more
                case "miss":
                    counts.misses += more
                case "bypass":
                    counts.bypasses += more

    def take_sample(self, entity: str) -> list[tuple[str, bytes]]:
        """Return the keys and contents of the slots that were last read, if they are those of an entity."""
        (of_entity, slots), self._sampled = self._sampled, ("", [])
        return slots if of_entity == entity else []

    def compare(self, entity: str, slots: Sequence[tuple[str, bytes]], rows: Mapping[str, Row]) -> None:
        """Compare slots with their rows, which were read afterwards.

        A slot that is older is followed, because the change can be on its way. So is a slot of a row that no
        longer exists. Other content is looked at again.
        """
        now = time.monotonic()
        for key, content in slots:
            slot = self._as_read(entity, content)
            row = rows.get(key)
            if slot == ABSENT or is_value(slot):
                held = version_of(slot) if is_value(slot) else 0
                if row is None and held:
                    self.judge.follow(Change(entity, key, held + 1, is_delete=True), now, is_counted=False)
                elif row is not None and row.version > held:
                    self.judge.follow(Change(entity, key, row.version), now, is_counted=False)
                elif row is not None and _is_odd(slot, row):
                    self._doubt((entity, key), slot, now)
            elif slot and not is_readable(slot) and row is not None:
                self.judge.follow(Change(entity, key, row.version), now, is_counted=False)

    def _doubt(self, slot: tuple[str, str], content: bytes, now: float) -> None:
        """Look at a slot again, which may have other content than its row."""
        if len(self._odd) < _MAX_OPEN:
            self._odd.setdefault(slot, _Odd(content, now, now + VIOLATION_SECONDS))

    async def record(self, store: Store) -> None:
        """Record what is not right for too long, and what is right again."""
        closed, self._closed = self._closed, []
        await store.close_violations(closed)
        now = time.monotonic()
        if self.cache.state == "unavailable":
            return
        most = max(0, _MAX_OPEN - self.judge.violations())
        overdue = await self._confirmed(store, self.judge.overdue(now)[:most])
        # Of a row that was deleted in the meantime, nobody has told.
        absent = [one for one in self.judge.absent(now) if one.violation is not None]
        await self._confirmed(store, absent)
        for one in overdue:
            kind = violation_of(one.head)
            one.violation = await self._violate(store, one.change, now - one.since, kind, one.head)
        await self._record_odd(store, now)

    async def _confirmed(self, store: Store, suspects: Sequence[Followed]) -> list[Followed]:
        """Return the changes whose slots are not right, as the rows show; no longer follow the others."""
        confirmed: list[Followed] = []
        right: list[Followed] = []
        rows = await store.rows_of([one.change.slot for one in suspects])
        for one in suspects:
            if one.change.slot in rows:
                agrees = _agrees(one.head, rows[one.change.slot])
                (right if agrees else confirmed).append(one)
        self.judge.forget(right)
        await store.close_violations([one.violation for one in right if one.violation is not None])
        return confirmed

    async def _record_odd(self, store: Store, now: float) -> None:
        """Look again at slots with other content than their rows."""
        due = {slot: odd for slot, odd in self._odd.items() if odd.next_at <= now}
        if not due:
            return
        try:
            contents = dict(zip(due, await self.cache.contents(list(due)), strict=True))
        except CacheUnavailableError:
            return
        for slot, row in (await store.rows_of(due)).items():
            await self._record_one_odd(store, slot, contents[slot], row, now)

    async def _record_one_odd(
        self, store: Store, slot: tuple[str, str], found: bytes, row: Row | None, now: float
    ) -> None:
        odd, content = self._odd[slot], self._as_read(slot[0], found)
        odd.next_at = now + _ODD_SECONDS
        if row is None or not is_value(content) or not _is_odd(content, row):
            del self._odd[slot]
            if odd.violation is not None:
                await store.close_violations([odd.violation])
        elif odd.violation is None and content == odd.content:
            change = Change(*slot, row.version)
            odd.violation = await self._violate(store, change, now - odd.since, "stale", content)
        elif odd.violation is None:
            self._odd[slot] = _Odd(content, now, now + VIOLATION_SECONDS)

    async def _violate(self, store: Store, change: Change, age: float, kind: str, slot: bytes) -> int:
        metrics.violations.labels(self.service, change.entity, kind).inc()
        found: dict[str, Any] = {"kind": "absent" if slot == ABSENT else "unreadable"}
        if is_value(slot):
            found = {"kind": "value", "version": int(slot[VERSION])}
        _log.warning(
            "cache is not right",
            service=self.service,
            entity=change.entity,
            key=change.key,
            version=change.version,
            kind=kind,
            found=found,
        )
        return await store.violate(self.service, change, age, kind, found)

    def take_counts(self) -> dict[str, Counts]:
        """Return the figures since the last call, which are then exported."""
        taken = self.judge.take_counts()
        for entity, counts in taken.items():
            for index, horizon in enumerate(HORIZONS):
                if counts.judged[index]:
                    labels = (self.service, entity, f"{horizon:g}")
                    metrics.judged.labels(*labels).inc(counts.judged[index])
                    metrics.seen.labels(*labels).inc(counts.seen[index])
        return taken

    def _export(self) -> None:
        if self.store is None:
            return
        oldest = self.judge.oldest()
        age = 0.0 if oldest is None else time.monotonic() - oldest.since
        metrics.oldest_unseen.set(self, age, self.service)
        metrics.redis_usable.set(self, self.cache.state == "ok", self.service)
        if self._looked_at is not None:
            metrics.last_look.set(self, self._looked_at, self.service)


def more_reads(
    before: Mapping[tuple[str, str], int] | None, reads: Mapping[tuple[str, str], int]
) -> dict[tuple[str, str], int]:
    """Return how many reads were counted between two looks; a smaller number shows that the Redis began anew.

    Args:
        before: what was counted at the former look; None if there was none.
        reads: what is counted now.
    """
    if before is None:
        return {}
    more = {name: number - before.get(name, 0) for name, number in reads.items()}
    return {name: reads[name] if number < 0 else number for name, number in more.items() if number}


def _agrees(head: bytes, row: Row | None) -> bool:
    """Return whether a slot, which is neither empty nor a lease, is not older than its row."""
    if head == ABSENT:
        return row is None
    return is_value(head) and row is not None and version_of(head) >= row.version


def _is_odd(value: bytes, row: Row) -> bool:
    """Return whether a value is newer than its row, or has its version and another payload.

    A value with another fingerprint is a miss, and what is longer than `COMPARED_BYTES` was not read whole.
    """
    if version_of(value) != row.version:
        return version_of(value) > row.version
    if value[FINGERPRINT] != row.fingerprint or len(row.payload) + UP_TO_PAYLOAD > COMPARED_BYTES:
        return False
    return value[UP_TO_PAYLOAD:] != row.payload
