"""Tries dead letters again, and closes them."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final, Protocol

from confluent_kafka import Producer

from cachesync.change import Operation, Row
from cachesync.dead_letters.audit import Action, AuditEntry, closed, record
from cachesync.dead_letters.letter import DEFAULT_POLICY, Stage
from cachesync.dead_letters.sender import deliver
from cachesync.errors import CacheUnavailableError, UndecodableError
from cachesync.kafka.errors import translate_kafka_errors
from cachesync.kafka.topics import DEAD_LETTERS, PARKING_LOT
from cachesync.postgres.connect import translate_postgres_errors
from cachesync.postgres.rows import Rows
from cachesync.slots.batch import Applier
from cachesync.slots.layout import is_past

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    import asyncpg

    from cachesync.change import Change
    from cachesync.dead_letters.letter import Letter, LetterId, Outgoing, RetryPolicy
    from cachesync.dead_letters.reader import DeadLetterReader
    from cachesync.entity import Entity
    from cachesync.slots.clients import WorkerRedis

    Wanted = Callable[[Letter], bool]

_BATCH: Final = 500
# Any number, the same for all: what one does with an open letter, no other may do at the same time.
_ADVISORY_LOCK: Final = 0x64_6C_74_72


class Watcher(Protocol):
    """Told how the work goes."""

    def expect(self, messages: int) -> None:
        """So many messages will be looked at."""

    def pass_by(self, messages: int) -> None:
        """So many more were looked at."""

    def end(self, ending: AuditEntry) -> None:
        """Something was done with a letter, or would be."""


class NullWatcher:
    """No one is told."""

    def expect(self, messages: int) -> None:
        """Nothing to do."""

    def pass_by(self, messages: int) -> None:
        """Nothing to do."""

    def end(self, ending: AuditEntry) -> None:
        """Nothing to do."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why a letter's change could not be brought to its cache."""

    stage: Stage
    error: str


_Outcome = Action | _Failure


def _all(_: Letter) -> bool:
    return True


class Retrier:
    """Works on dead letters; any number may at the same time.

    What a letter says is a hint only: the row is read again. Effects come first and are safe to repeat,
    then the action is committed, so that a crash in between leaves a letter that is tried again.

    Args:
        connection: a connection to the database with the rights of `cachesync_worker`.
        settings: how to reach Kafka, as librdkafka calls it.
        reader: reads the letters.
        clients: the services' Redis, by name. Letters of other services are left alone.
        entities: the declared entities.
        actor: who does it, for the record.
        policy: when a letter that fails again is tried the next time.
        watcher: told of each letter.

    Attributes:
        left_alone: the places of the letters that were met and whose service has no Redis here, by service.
    """

    def __init__(
        self,
        connection: asyncpg.Connection,
        *,
        settings: Mapping[str, Any],
        reader: DeadLetterReader,
        clients: Mapping[str, WorkerRedis],
        entities: Mapping[str, Entity],
        actor: str,
        policy: RetryPolicy = DEFAULT_POLICY,
        watcher: Watcher | None = None,
    ) -> None:
        self._connection = connection
        with translate_kafka_errors():
            self._producer = Producer(
                {**settings, "enable.idempotence": True, "log_level": 2},
                logger=logging.getLogger("cachesync.kafka"),
            )
        self._reader = reader
        self._appliers = {name: Applier(client, name, entities) for name, client in clients.items()}
        self._entities = entities
        self._rows: dict[str, Rows] = {}
        self._actor = actor
        self._policy = policy
        self._watcher = watcher or NullWatcher()
        self._away: dict[str, str] = {}
        self.left_alone: defaultdict[str, set[LetterId]] = defaultdict(set)

    async def retry(self, wanted: Wanted = _all) -> None:
        """Try the open letters whose time has come; those that fail again come back later, or are parked.

        Raises:
            CacheUnavailableError: a Redis is away; the letters of other services were tried.
            DatabaseUnavailableError: the database is away.
            KafkaUnavailableError: Kafka did not respond.
        """

        async def treat(letters: list[Letter]) -> list[AuditEntry]:
            now = datetime.now(UTC)
            due = [letter for letter in letters if letter.due(now)]
            outcomes = await self._try([letter for letter in due if letter.stage is not Stage.DECODE])
            endings: list[AuditEntry] = []
            following: list[Outgoing] = []
            for letter in due:
                if letter.stage is Stage.DECODE:
                    following.append(letter.moved(PARKING_LOT))
                    endings.append(AuditEntry(letter, Action.PARKED, letter.attempt, letter.error))
                    continue
                outcome = outcomes.get(letter.id)
                if isinstance(outcome, _Failure):
                    follower = letter.failed_again(outcome.stage, outcome.error, now, self._policy)
                    following.append(follower)
                    action = Action.RETRIED if follower[0] == DEAD_LETTERS else Action.PARKED
                    endings.append(AuditEntry(letter, action, letter.attempt + 1, outcome.error))
                elif outcome is not None:
                    endings.append(AuditEntry(letter, outcome, letter.attempt, letter.error))
            deliver(self._producer, following)
            return endings

        await self._go_through([DEAD_LETTERS], wanted, treat)

    async def replay(
        self, topics: Sequence[str], wanted: Wanted, *, rate: float | None = None, dry_run: bool = False
    ) -> None:
        """Try letters at once, parked ones too; those that fail stay as they are.

        Args:
            topics: `DEAD_LETTERS`, `PARKING_LOT`, or both.
            wanted: which letters of them.
            rate: the most letters per second.
            dry_run: look, and change nothing; nothing is recorded.

        Raises:
            CacheUnavailableError: a Redis is away; the letters of other services were tried.
            DatabaseUnavailableError: the database is away.
            KafkaUnavailableError: Kafka did not respond.
        """

        async def treat(letters: list[Letter]) -> list[AuditEntry]:
            outcomes = await self._try(letters, dry_run=dry_run)
            return [
                AuditEntry(letter, Action.REPLAYED, letter.attempt, outcome.error)
                if isinstance(outcome, _Failure)
                else AuditEntry(letter, outcome, letter.attempt, letter.error)
                for letter in letters
                if (outcome := outcomes.get(letter.id)) is not None
            ]

        await self._go_through(topics, wanted, treat, rate=rate, dry_run=dry_run)

    async def discard(
        self, topics: Sequence[str], wanted: Wanted, reason: str, *, dry_run: bool = False
    ) -> None:
        """Close letters without trying them.

        Args:
            topics: `DEAD_LETTERS`, `PARKING_LOT`, or both.
            wanted: which letters of them.
            reason: why, for the record.
            dry_run: look, and change nothing.

        Raises:
            DatabaseUnavailableError: the database is away.
            KafkaUnavailableError: Kafka did not respond.
        """

        async def treat(letters: list[Letter]) -> list[AuditEntry]:
            return [AuditEntry(letter, Action.DISCARDED, letter.attempt, letter.error) for letter in letters]

        await self._go_through(topics, wanted, treat, reason=reason, dry_run=dry_run)

    async def _go_through(
        self,
        topics: Sequence[str],
        wanted: Wanted,
        treat: Callable[[list[Letter]], Awaitable[list[AuditEntry]]],
        *,
        rate: float | None = None,
        reason: str | None = None,
        dry_run: bool = False,
    ) -> None:
        size = _BATCH if rate is None else max(1, min(_BATCH, int(rate)))
        self._watcher.expect(sum(self._reader.ahead(topic) for topic in topics))
        for topic in topics:
            for batch in self._reader.batches(topic, size):
                started = time.monotonic()
                endings = await self._treat(batch, wanted, treat, reason=reason, dry_run=dry_run)
                for ending in endings:
                    self._watcher.end(ending)
                self._watcher.pass_by(len(batch))
                if rate is not None and endings:
                    await asyncio.sleep(len(endings) / rate - (time.monotonic() - started))
        if not dry_run:
            self._reader.commit()
        if self._away:
            message = "; ".join(
                f"{service}: {error}; its letters stay as they are" for service, error in self._away.items()
            )
            raise CacheUnavailableError(message)

    async def _treat(
        self,
        batch: list[Letter],
        wanted: Wanted,
        treat: Callable[[list[Letter]], Awaitable[list[AuditEntry]]],
        *,
        reason: str | None,
        dry_run: bool,
    ) -> list[AuditEntry]:
        """Do something with the open letters of a batch, and commit what was done."""
        with translate_postgres_errors():
            # Each statement sees what was committed before it, whatever the database's default is.
            async with self._connection.transaction(isolation="read_committed"):
                await self._connection.execute("SELECT pg_advisory_xact_lock($1)", _ADVISORY_LOCK)
                gone = await closed(self._connection, batch)
                endings = await treat(
                    [letter for letter in batch if letter.id not in gone and wanted(letter)]
                )
                if not dry_run:
                    await record(self._connection, self._actor, reason, endings)
        gone |= {ending.letter.id for ending in endings if ending.action.closes}
        self._reader.keep([letter.id for letter in batch if letter.id not in gone])
        return endings

    async def _try(self, letters: Sequence[Letter], *, dry_run: bool = False) -> dict[LetterId, _Outcome]:
        """What becomes of letters that are tried now; a service that does not answer gets none."""
        outcomes: dict[LetterId, _Outcome] = {}
        by_service: dict[str, list[tuple[Letter, Change]]] = {}
        for letter in letters:
            if letter.service not in self._appliers:
                self.left_alone[letter.service].add(letter.id)
                continue
            try:
                change = letter.change()
            except UndecodableError as error:
                outcomes[letter.id] = _Failure(Stage.DECODE, str(error))
                continue
            if change.entity in self._entities:
                by_service.setdefault(letter.service, []).append((letter, change))
            else:
                outcomes[letter.id] = _Failure(Stage.ROW, f"no entity {change.entity!r} is declared")
        for service, pairs in by_service.items():
            if service in self._away:
                continue
            try:
                outcomes |= await self._bring(self._appliers[service], pairs, dry_run=dry_run)
            except CacheUnavailableError as error:
                self._away[service] = str(error)
        return outcomes

    async def _bring(
        self, applier: Applier, pairs: list[tuple[Letter, Change]], *, dry_run: bool
    ) -> dict[LetterId, _Outcome]:
        """Bring the rows as they are now to the slots of one service that are behind."""
        of_rows = [(letter, change) for letter, change in pairs if change.operation is not Operation.TRUNCATE]
        heads = applier.heads([change for _, change in of_rows])
        behind: list[tuple[Letter, Change]] = []
        outcomes: dict[LetterId, _Outcome] = {}
        for (letter, change), head in zip(of_rows, heads, strict=True):
            if isinstance(head, str) and dry_run:
                outcomes[letter.id] = _Failure(Stage.CACHE, head)
            elif isinstance(head, bytes) and is_past(head, change.version):
                outcomes[letter.id] = Action.SUPERSEDED
            else:
                behind.append((letter, change))
        current = await self._current([change for _, change in behind])
        to_apply: list[tuple[Letter, Change]] = [
            (letter, change) for letter, change in pairs if change.operation is Operation.TRUNCATE
        ]
        for (letter, _), now in zip(behind, current, strict=True):
            if isinstance(now, str):
                outcomes[letter.id] = _Failure(Stage.ROW, now)
            else:
                to_apply.append((letter, now))
        refused = [] if dry_run else applier.apply([change for _, change in to_apply])
        reasons = {id(change): reason for change, reason in refused}
        for letter, change in to_apply:
            reason = reasons.get(id(change))
            outcomes[letter.id] = Action.RESOLVED if reason is None else _Failure(Stage.CACHE, reason)
        return outcomes

    async def _current(self, changes: Sequence[Change]) -> list[Change | str]:
        """For each change the one that brings the row as it is now; or why there is none."""
        keys: dict[str, set[str]] = {}
        for change in changes:
            keys.setdefault(change.entity, set()).add(change.key or "")
        found: dict[str, dict[str, Row]] = {}
        for entity, wanted in keys.items():
            if entity not in self._rows:
                self._rows[entity] = await Rows.open(self._connection, self._entities[entity])
            found[entity] = await self._rows[entity].read(wanted)
        current: list[Change | str] = []
        for change in changes:
            key = change.key or ""
            reason = self._rows[change.entity].impossible(key)
            current.append(_as_it_is(change, found[change.entity].get(key)) if reason is None else reason)
        return current


def _as_it_is(change: Change, row: Row | None) -> Change:
    if row is None:
        # Whatever deleted it has a higher version still; this one is above what the slot holds.
        return replace(change, operation=Operation.DELETE, fingerprint=None, payload=None)
    return replace(
        change,
        operation=Operation.UPSERT,
        version=row.version,
        fingerprint=row.fingerprint,
        payload=row.payload,
    )
