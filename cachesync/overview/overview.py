"""Reads the state of the whole system."""

from __future__ import annotations

import asyncio
import json
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final, Generic, Literal, NamedTuple, TypeVar
from zlib import crc32

from cachesync.dead_letters.open_letters import MAX_LETTERS, OpenLetters
from cachesync.entity import with_canary
from cachesync.errors import CacheSyncError, CacheUnavailableError, DeclarationError, InvalidValueError
from cachesync.kafka.groups import Groups, group_of
from cachesync.mistakes import did_you_mean
from cachesync.overview import database
from cachesync.overview.assemble import (
    consumers_of,
    lag_by_entity,
    letter_report,
    letters_of,
    slot_report,
    unconsumed_in,
)
from cachesync.overview.caches import CacheState, look_at_cache, look_at_slot
from cachesync.overview.models import CacheStatus, EntityStatus, KeyReport, RowReport, Status
from cachesync.overview.problems import problems_of
from cachesync.overview.verdict import (
    CacheFacts,
    Consumption,
    KeyFacts,
    Slot,
    Verdict,
    missed_changes,
    verdict_of_cache,
    verdict_of_key,
)
from cachesync.postgres.connect import connect, translate_postgres_errors
from cachesync.postgres.rows import Rows
from cachesync.slots.clients import without_retries
from cachesync.slots.layout import slot_name

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Mapping, Sequence

    import asyncpg

    from cachesync.dead_letters.open_letters import OpenLetter
    from cachesync.entity import Entity
    from cachesync.kafka.groups import Group
    from cachesync.overview.models import (
        BacklogStatus,
        ChangeReport,
        LetterReport,
        Point,
        Reconciliation,
    )
    from cachesync.slots.clients import BlockingRedis

_T = TypeVar("_T")

_SECONDS: Final = 3.0
# Less, so that the answer says what was waited for.
_SESSION: Final = {"lock_timeout": "1s"}
_RECENT: Final = timedelta(minutes=2)
_HOUR: Final = timedelta(hours=1)
_DAY: Final = timedelta(days=1)
_STEPS: Final = {"hour": (_HOUR, timedelta(minutes=1)), "day": (_DAY, timedelta(minutes=15))}
# Adding up a day takes longer than everything else; its minutes change once per minute.
_DAY_SECONDS: Final = 60.0
# So does comparing the catalog with the registry.
_CAPTURE_SECONDS: Final = 10.0
# To connect, and to plan each query anew, takes longer than to ask. Who has left the page may be back soon.
_IDLE_SECONDS: Final = 60.0
# How long a change takes to reach a cache at most, unless something is wrong.
_SETTLE_SECONDS: Final = 0.3
# librdkafka's own, with which the services and the relay publish unless the user has set another.
_PARTITIONERS: Final = {None, "consistent_random", "consistent"}


class Overview:
    """Reads the state of the whole system, for people. It changes nothing.

    It keeps its Kafka clients, what it has read of the dead letters, and for a minute its connections to
    the database: a program that asks more than once, such as the page, keeps one for as long as it runs. Its
    methods can be called at the same time, in one event loop.

    Args:
        dsn: the database, with a login that has the role `cachesync_worker`; None to use the variables
            PGHOST, PGUSER and so on.
        kafka: librdkafka's settings for connecting to the brokers.
        clients: each service's Redis, by the service's name. A Redis that does not respond delays the answer
            by their timeout, which should be about a second.
        entities: the declared entities by name.
        groups: the consumer group of each service's cache; those that are missing have the usual name.

    Raises:
        SettingsError: a setting of Kafka has no value.
        KafkaUnavailableError: librdkafka rejected the settings.
    """

    def __init__(
        self,
        dsn: str | None,
        kafka: Mapping[str, Any],
        clients: Mapping[str, BlockingRedis],
        entities: Mapping[str, Entity],
        groups: Mapping[str, str] | None = None,
    ) -> None:
        self._dsn = dsn
        self._clients = {service: without_retries(client) for service, client in clients.items()}
        self._entities = dict(entities)
        # Of the live check's own entity, only its keys can be looked up.
        self._all_entities = with_canary(entities)
        self._groups = {service: (groups or {}).get(service) or group_of(service) for service in clients}
        self._topics = {entity.topic: name for name, entity in self._all_entities.items()}
        self._knows_partitioner = kafka.get("partitioner") in _PARTITIONERS
        self._consumer_groups = Groups(kafka, set(self._groups.values()))
        self._consumption_lock = asyncio.Lock()
        self._letters = OpenLetters(kafka)
        self._idle: dict[asyncpg.Connection, asyncio.TimerHandle] = {}
        self._day: _Kept[database.Sums] = _Kept(_DAY_SECONDS)
        self._captures: _Kept[database.Capture] = _Kept(_CAPTURE_SECONDS)

    def close(self) -> None:
        """Close the connections."""
        for connection, end in self._idle.items():
            end.cancel()
            connection.terminate()
        self._idle.clear()
        self._letters.close()
        self._consumer_groups.close()

    async def status(self, *, day: bool = True) -> Status:
        """Return the overview of all caches. Servers that do not respond are in its `unavailable`.

        Args:
            day: whether to add up the last day, which takes longer than all else.
        """
        unavailable: dict[str, str] = {}
        consumption = asyncio.ensure_future(_or_none(self._consumption(), "kafka", unavailable))

        async def from_database() -> tuple[_Seen | None, list[OpenLetter] | None]:
            letters = None
            async with self._connection() as connection:
                seen = await _part(unavailable, "database", self._seen(connection, unavailable, day=day))
                # A Kafka that does not respond is waited for once.
                if await consumption is not None:
                    letters = await _part(unavailable, "letters", self._letters.refresh(connection))
            return seen, letters

        states, groups, capture, read = await asyncio.gather(
            self._states(unavailable),
            consumption,
            _or_none(self._captures.get(self._capture), "capture", unavailable),
            _or_none(from_database(), "database", unavailable),
        )
        if read is None:
            unavailable.pop("capture", None)
        seen, letters = read or (None, None)
        seen = replace(seen or _Seen(), capture=capture or database.NOT_COMPARED)
        if letters is not None and not self._letters.complete:
            unavailable["more letters"] = f"only the first {MAX_LETTERS:,} open letters are counted"
        now = seen.now or datetime.now(UTC)
        status = Status(
            taken_at=now,
            live_check_at=max((look.checked_at for look in seen.looks.values()), default=None),
            problems=(),
            caches=tuple(
                self._cache(service, states[service], groups, seen, letters) for service in self._clients
            ),
            backlog=seen.backlog,
            letters=None if letters is None else letters_of(letters, now),
            reconciliations=seen.runs,
            unavailable=unavailable,
        )
        return status.model_copy(update={"problems": problems_of(status)})

    async def history(
        self,
        period: Literal["hour", "day"],
        service: str | None = None,
        entity: str | None = None,
        *,
        each_entity: bool = False,
    ) -> tuple[Point, ...]:
        """Return what the live check has seen of each cache, by minute; for a day, by quarter of an hour.

        Args:
            period: how far to look back.
            service: only this cache.
            entity: only this entity; None for all of them.
            each_entity: whether each entity has points of its own.

        Raises:
            DatabaseUnavailableError: the database is unavailable.
            DatabaseError: the database side was installed by an earlier version.
        """
        async with self._connection() as connection:
            return await database.history(
                connection, *_STEPS[period], service, entity, each_entity=each_entity
            )

    async def show(self, entity: str, key: str | Sequence[str]) -> KeyReport:
        """Return what is known of one key, and a verdict.

        Args:
            entity: the name of the entity.
            key: the text of the key in any spelling, or the text of each column.

        Raises:
            DeclarationError: the entity is not declared; the text has a name that may be meant.
            InvalidValueError: this cannot be the key of a row.
            NotInstalledError: the entity is not installed.
            DatabaseUnavailableError: the database is unavailable.
        """
        if entity not in self._all_entities:
            known = f"; the entities are {', '.join(self._entities)}"
            message = f"entity {entity!r} is not declared{did_you_mean(entity, self._entities) or known}"
            raise DeclarationError(message)
        async with self._connection() as connection:
            rows = await Rows.open(connection, self._all_entities[entity])
            text = rows.canonical(self._given(entity, key))
            look = await self._look(connection, rows, entity, text)
            if any(verdict.assessment in {"wrong", "on its way"} for verdict in look.verdicts.values()):
                # The change may be on its way, or may have arrived between the looks at slot and row.
                await asyncio.sleep(_SETTLE_SECONDS)
                look = await self._look(connection, rows, entity, text)
            violations = await _part(
                look.unavailable, "live check", database.violations(connection, entity, text)
            )
        facts = look.facts
        verdict = verdict_of_key(facts, look.verdicts)
        return KeyReport(
            taken_at=facts.now,
            entity=entity,
            key=text,
            verdict=verdict.text,
            assessment=verdict.assessment,
            actions=verdict.actions,
            row=facts.row,
            caches=tuple(
                slot_report(cache, slot_name(cache.service, entity, text), look.verdicts[cache.service])
                for cache in look.caches
            ),
            changes=facts.changes,
            letters=look.letters,
            violations=violations,
            unavailable=look.unavailable,
        )

    def _given(self, entity: str, key: str | Sequence[str]) -> str | Sequence[str]:
        """Return a key as it was given, or the parts of one that is a list in JSON."""
        if isinstance(key, str) and key.startswith("[") and len(self._all_entities[entity].key) > 1:
            with suppress(ValueError):
                # Numbers as they are spelt.
                parts = json.loads(key, parse_float=str, parse_int=str)
                if None in parts:
                    message = "no part of a key is null"
                    raise InvalidValueError(None, message)
                return [part if isinstance(part, str) else json.dumps(part) for part in parts]
        return key

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[asyncpg.Connection]:
        """Provide a connection, which then stays open for a while for the next one who needs it."""
        with translate_postgres_errors():
            connection = await self._take()
            try:
                yield connection
            except BaseException:
                connection.terminate()
                raise
            if not connection.is_closed():
                end = asyncio.get_running_loop().call_later(_IDLE_SECONDS, self._drop, connection)
                self._idle[connection] = end

    async def _take(self) -> asyncpg.Connection:
        while self._idle:
            connection, end = self._idle.popitem()
            end.cancel()
            if not connection.is_closed():
                return connection
        async with asyncio.timeout(_SECONDS):
            return await connect(self._dsn, "cachesync-overview", settings=_SESSION, command_timeout=_SECONDS)

    def _drop(self, connection: asyncpg.Connection) -> None:
        del self._idle[connection]
        connection.terminate()

    async def _states(self, unavailable: dict[str, str]) -> dict[str, CacheState]:
        states = await asyncio.gather(
            *(asyncio.to_thread(look_at_cache, client, service) for service, client in self._clients.items())
        )
        by_service = dict(zip(self._clients, states, strict=True))
        unavailable |= {
            f"redis {service}": state.problem or "no response"
            for service, state in by_service.items()
            if state.redis == "unavailable"
        }
        return by_service

    async def _consumption(self) -> dict[str, Group]:
        async with self._consumption_lock:
            return await asyncio.to_thread(self._consumer_groups.describe, list(self._topics), _SECONDS)

    async def _capture(self) -> database.Capture:
        # With a connection of its own, so that nothing else waits for it.
        async with self._connection() as connection:
            return await database.capture(connection, self._entities)

    async def _seen(self, connection: asyncpg.Connection, unavailable: dict[str, str], *, day: bool) -> _Seen:
        """Read what the database says.

        Missing are the parts that an earlier version has not installed, and those whose tables somebody has
        locked. All of them together take not much longer than one.
        """
        ends = asyncio.get_running_loop().time() + _SECONDS

        async def part(name: str, work: Awaitable[_T]) -> _T | None:
            async def in_time() -> _T:
                # When others have waited for locks until the end, there may still be an answer to this one.
                async with asyncio.timeout_at(max(ends, asyncio.get_running_loop().time() + _SECONDS / 6)):
                    return await work

            return await _part(unavailable, name, in_time())

        now, relays = await database.time_and_relays(connection)
        looks = await part("live check", database.last_looks(connection))
        recent = await part("live check", database.sums(connection, _RECENT))
        hour = await part("live check", database.sums(connection, _HOUR))
        whole_day = None
        if day:
            whole_day = await part("live check", self._day.get(lambda: database.sums(connection, _DAY))) or {}
        runs = await part("reconciliations", database.reconciliations(connection))
        return _Seen(
            now=now,
            backlog=await part("backlog", database.backlog(connection, relays)),
            looks=looks or {},
            recent=recent or {},
            hour=hour or {},
            day=whole_day,
            runs=None if runs is None else runs[0],
            entries={} if runs is None else runs[1],
        )

    def _cache(
        self,
        service: str,
        state: CacheState,
        groups: Mapping[str, Group] | None,
        seen: _Seen,
        letters: Collection[OpenLetter] | None,
    ) -> CacheStatus:
        group = None if groups is None else groups[self._groups[service]]
        lag = None if group is None else lag_by_entity(group, self._topics)
        counted = None
        if letters is not None:
            counted = Counter((one.entity, one.parked) for one in letters if one.service == service)
        look = seen.looks.get(service)
        return CacheStatus(
            service=service,
            redis=state.redis,
            redis_problem=state.problem,
            keys=state.keys,
            memory_bytes=state.memory_bytes,
            group=self._groups[service],
            consumers=None if group is None else consumers_of(group),
            unconsumed=None if group is None else unconsumed_in(group),
            consumer_lag=None if lag is None else sum(lag.values()),
            oldest_unseen=None if look is None else look.oldest_unseen,
            stale=None if look is None else look.stale,
            recent=database.consistency_of(seen.recent, service),
            hour=database.consistency_of(seen.hour, service),
            day=None if seen.day is None else database.consistency_of(seen.day, service),
            entities=tuple(
                EntityStatus(
                    entity=name,
                    hour=database.consistency_of(seen.hour, service, name),
                    day=None if seen.day is None else database.consistency_of(seen.day, service, name),
                    entries=seen.entries.get((service, name)),
                    consumer_lag=None if lag is None else lag[name],
                    open_letters=None if counted is None else counted[name, False],
                    parked_letters=None if counted is None else counted[name, True],
                    capture_problem=seen.capture.problems.get(name),
                )
                for name in self._entities
            ),
        )

    async def _look(self, connection: asyncpg.Connection, rows: Rows, entity: str, key: str) -> _Look:
        """Look at a key everywhere: first at the slots, so that a slot above its row is ahead for certain."""
        unavailable: dict[str, str] = {}
        slots = await self._slots(entity, key)
        states, groups = await asyncio.gather(
            self._states(unavailable), _or_none(self._consumption(), "kafka", unavailable)
        )
        row = (await rows.read([key])).get(key)
        fingerprint = await connection.fetchval(
            "SELECT fingerprint FROM cachesync.entity WHERE name = $1", entity
        )
        versions = {slot.version for slot in slots.values() if slot.version}
        if row is not None:
            versions.add(row.version)
        changes = await database.changes(connection, entity, key, versions)
        letters = None
        if groups is not None:
            letters = await _part(unavailable, "letters", self._letters.refresh(connection))
        mine = [one for one in letters or () if one.entity == entity and one.key == key]
        capture = await _part(unavailable, "capture", database.capture(connection, self._entities))
        capture = capture or database.NOT_COMPARED
        now, relays = await database.time_and_relays(connection)
        unpublished = [change.due_at for change in changes if change.published_at is None]
        facts = KeyFacts(
            now=now,
            entity=entity,
            fingerprint=fingerprint,
            row=None if row is None else RowReport(version=row.version, payload=row.payload.decode()),
            changes=changes,
            capture_problem=capture.problems.get(entity),
            is_repartitioned=entity in capture.repartitioned,
            relays=relays,
            relay_works=bool(unpublished) and await database.relay_works(connection, min(unpublished)),
            kafka_problem=unavailable.get("kafka"),
        )
        caches = [
            CacheFacts(
                service,
                slots[service],
                states[service].redis,
                states[service].problem,
                None if groups is None else self._consumption_of(groups, service, entity, key),
                tuple(
                    letter_report(one)
                    for one in mine
                    if one.service == service and _explains(one, changes, slots[service])
                ),
            )
            for service in self._clients
        ]
        return _Look(
            facts,
            caches,
            {cache.service: verdict_of_cache(facts, cache) for cache in caches},
            None if letters is None else tuple(map(letter_report, mine)),
            unavailable,
        )

    async def _slots(self, entity: str, key: str) -> dict[str, Slot]:
        def look(service: str, client: BlockingRedis) -> Slot:
            try:
                return look_at_slot(client, slot_name(service, entity, key))
            except CacheUnavailableError:
                return Slot("unknown")

        slots = await asyncio.gather(
            *(asyncio.to_thread(look, service, client) for service, client in self._clients.items())
        )
        return dict(zip(self._clients, slots, strict=True))

    def _consumption_of(
        self, groups: Mapping[str, Group], service: str, entity: str, key: str
    ) -> Consumption:
        group = groups[self._groups[service]]
        topic = self._all_entities[entity].topic
        places = [place for place in group.lag if place[0] == topic]
        number = self._partition(key, len(places))
        mine = [place for place in places if number is None or place[1] == number]
        consumer = next(
            (member.client for member in group.members if not set(mine).isdisjoint(member.partitions)), None
        )
        return Consumption(
            self._groups[service],
            len(group.members),
            topic if number is None else f"{topic}[{number}]",
            consumer,
            sum(group.lag[place] for place in mine),
        )

    def _partition(self, key: str, partitions: int) -> int | None:
        """Return the partition of a key; None if it is not known."""
        if partitions == 1:
            return 0
        if not key or not self._knows_partitioner or not partitions:
            return None
        return crc32(key.encode()) % partitions


@dataclass(frozen=True, slots=True)
class _Seen:
    """What the database says.

    Attributes:
        now: its time; None if it does not respond.
        backlog: the changes that are not published.
        looks: the last look of the live check at each cache.
        recent, hour, day: what it has seen; the day is None if it was not asked for.
        runs: the last runs of the reconciliation.
        entries: the slots that it has examined, by service and entity.
        capture: what the catalog says of the entities.
    """

    now: datetime | None = None
    backlog: BacklogStatus | None = None
    looks: Mapping[str, database.LastLook] = field(default_factory=dict)
    recent: database.Sums = field(default_factory=dict)
    hour: database.Sums = field(default_factory=dict)
    day: database.Sums | None = None
    runs: tuple[Reconciliation, ...] | None = None
    entries: Mapping[tuple[str, str], int] = field(default_factory=dict)
    capture: database.Capture = database.NOT_COMPARED


class _Look(NamedTuple):
    """What was found out about a key."""

    facts: KeyFacts
    caches: list[CacheFacts]
    verdicts: dict[str, Verdict]
    letters: tuple[LetterReport, ...] | None
    unavailable: dict[str, str]


class _Kept(Generic[_T]):
    """An answer that is kept for a while, because it costs more than it changes.

    Args:
        seconds: for how long.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._kept: tuple[float, _T] | None = None

    async def get(self, ask: Callable[[], Awaitable[_T]]) -> _T:
        """Return the answer, which is asked for if there is none, or if it is too old."""
        if self._kept is None or time.monotonic() - self._kept[0] >= self._seconds:
            answer = await ask()
            self._kept = (time.monotonic(), answer)
        return self._kept[1]


def _explains(letter: OpenLetter, changes: Sequence[ChangeReport], slot: Slot) -> bool:
    """Return whether a dead letter may be why a slot is not newer."""
    if letter.version is not None:
        return letter.version > (slot.version or 0)
    missed = missed_changes(changes, slot)
    return bool(missed) and letter.first_failed_at >= missed[-1].changed_at


async def _or_none(work: Awaitable[_T], part: str, unavailable: dict[str, str]) -> _T | None:
    """Return the result of work; None, and the reason in `unavailable`, if a server does not respond."""
    try:
        return await work
    except CacheSyncError as error:
        unavailable[part] = str(error)
        return None


async def _part(unavailable: dict[str, str], part: str, work: Awaitable[_T]) -> _T | None:
    """Return what the database says of a part, as `_or_none` does."""

    async def translated() -> _T:
        with translate_postgres_errors():
            return await work

    return await _or_none(translated(), part, unavailable)
