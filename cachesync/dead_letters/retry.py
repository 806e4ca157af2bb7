"""Retries dead letters and closes them."""

from __future__ import annotations

import asyncio
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
from cachesync.entity import with_canary
from cachesync.errors import CacheUnavailableError, UndecodableError
from cachesync.kafka.clients import open_client
from cachesync.kafka.topics import DEAD_LETTERS, PARKING_LOT
from cachesync.postgres.connect import translate_postgres_errors
from cachesync.postgres.rows import Rows
from cachesync.slots.batch import Applier
from cachesync.slots.layout import is_past, value_of

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    import asyncpg

    from cachesync.change import Change
    from cachesync.dead_letters.letter import Letter, LetterId, Outgoing, RetryPolicy
    from cachesync.dead_letters.reader import DeadLetterReader
    from cachesync.entity import Entity
    from cachesync.slots.clients import BlockingRedis

    Filter = Callable[[Letter], bool]
    Handler = Callable[[list[Letter]], Awaitable[list[AuditEntry]]]

_BATCH: Final = 500
# An arbitrary number, the same in every process: no two processes may act on the same open letter at once.
_ADVISORY_LOCK: Final = 0x64_6C_74_72


class Watcher(Protocol):
    """Receives the progress of the work."""

    def on_start(self, messages: int) -> None:
        """Called once, with the number of messages that will be read."""

    def on_progress(self, messages: int) -> None:
        """Called after each batch, with the number of messages in it."""

    def on_action(self, entry: AuditEntry) -> None:
        """Called for each action on a letter; in a dry run, for each action that would be taken."""


class NullWatcher:
    """A watcher that ignores the progress."""

    def on_start(self, messages: int) -> None:
        """Do nothing."""

    def on_progress(self, messages: int) -> None:
        """Do nothing."""

    def on_action(self, entry: AuditEntry) -> None:
        """Do nothing."""


@dataclass(frozen=True, slots=True)
class _Failure:
    """Why the current row of a letter could not be applied to its cache."""

    stage: Stage
    error: str


_Outcome = Action | _Failure


class Retrier:
    """Retries, replays and discards dead letters. Several can work at the same time.

    A letter is only a hint: its row is read again. The effect of an action comes first and is safe to repeat;
    then the action is recorded and committed. After a crash in between, the letter is retried.

    Args:
        connection: a connection with the role `cachesync_worker`.
        settings: librdkafka's settings for connecting to the brokers.
        reader: reads the letters.
        clients: each service's Redis, by the service's name. Letters of other services are skipped.
        entities: the declared entities by name.
        actor: who requested the work, for the audit table.
        policy: determines when a letter that fails again is due.
        watcher: receives the progress.

    Attributes:
        without_redis: the ids of the letters that were skipped because `clients` has no Redis for their
            service, by service.

    Raises:
        KafkaUnavailableError: librdkafka rejected the settings.
    """

    def __init__(
        self,
        connection: asyncpg.Connection,
        *,
        settings: Mapping[str, Any],
        reader: DeadLetterReader,
        clients: Mapping[str, BlockingRedis],
        entities: Mapping[str, Entity],
        actor: str,
        policy: RetryPolicy = DEFAULT_POLICY,
        watcher: Watcher | None = None,
    ) -> None:
        self._connection = connection
        self._producer = open_client(Producer, {**settings, "enable.idempotence": True})
        self._reader = reader
        self._entities = with_canary(entities)
        self._appliers = {name: Applier(client, name, self._entities) for name, client in clients.items()}
        self._rows: dict[str, Rows] = {}
        self._actor = actor
        self._policy = policy
        self._watcher = watcher or NullWatcher()
        self._unavailable: dict[str, str] = {}
        self.without_redis: defaultdict[str, set[LetterId]] = defaultdict(set)

    async def retry(self, matches: Filter) -> None:
        """Retry the open letters that are due; those that fail again are sent again or parked.

        Args:
            matches: selects the letters to retry.

        Raises:
            CacheUnavailableError: a Redis is unavailable; the letters of the other services were retried.
            DatabaseUnavailableError: the database is unavailable.
            KafkaUnavailableError: Kafka did not respond.
            TopicError: a topic is missing.
        """

        async def handle(letters: list[Letter]) -> list[AuditEntry]:
            now = datetime.now(UTC)
            due = [letter for letter in letters if letter.due(now)]
            outcomes = await self._attempt([letter for letter in due if letter.stage is not Stage.DECODE])
            entries: list[AuditEntry] = []
            outgoing: list[Outgoing] = []
            for letter in due:
                if letter.stage is Stage.DECODE:
                    outgoing.append(letter.moved(PARKING_LOT))
                    entries.append(AuditEntry(letter, Action.PARKED, letter.attempt, letter.error))
                    continue
                outcome = outcomes.get(letter.id)
                if isinstance(outcome, _Failure):
                    replacement = letter.failed_again(outcome.stage, outcome.error, now, self._policy)
                    outgoing.append(replacement)
                    action = Action.RETRIED if replacement[0] == DEAD_LETTERS else Action.PARKED
                    entries.append(AuditEntry(letter, action, letter.attempt + 1, outcome.error))
                elif outcome is not None:
                    entries.append(AuditEntry(letter, outcome, letter.attempt, letter.error))
            deliver(self._producer, outgoing)
            return entries

        await self._process([DEAD_LETTERS], matches, handle)

    async def replay(
        self, topics: Sequence[str], matches: Filter, *, rate: float | None = None, dry_run: bool = False
    ) -> None:
        """Retry letters now, including parked ones; those that fail stay as they are.

        Args:
            topics: `DEAD_LETTERS`, `PARKING_LOT`, or both.
            matches: selects the letters to replay.
            rate: the maximum number of letters per second; None for no limit.
            dry_run: only determine what would be done; change and record nothing.

        Raises:
            CacheUnavailableError: a Redis is unavailable; the letters of the other services were retried.
            DatabaseUnavailableError: the database is unavailable.
            KafkaUnavailableError: Kafka did not respond.
            TopicError: a topic is missing.
        """

        async def handle(letters: list[Letter]) -> list[AuditEntry]:
            outcomes = await self._attempt(letters, dry_run=dry_run)
            return [
                AuditEntry(letter, Action.REPLAYED, letter.attempt, outcome.error)
                if isinstance(outcome, _Failure)
                else AuditEntry(letter, outcome, letter.attempt, letter.error)
                for letter in letters
                if (outcome := outcomes.get(letter.id)) is not None
            ]

        await self._process(topics, matches, handle, rate=rate, dry_run=dry_run)

    async def discard(
        self, topics: Sequence[str], matches: Filter, reason: str, *, dry_run: bool = False
    ) -> None:
        """Close letters without retrying them.

        Args:
            topics: `DEAD_LETTERS`, `PARKING_LOT`, or both.
            matches: selects the letters to discard.
            reason: why, for the audit table.
            dry_run: only determine what would be done; change and record nothing.

        Raises:
            DatabaseUnavailableError: the database is unavailable.
            KafkaUnavailableError: Kafka did not respond.
            TopicError: a topic is missing.
        """

        async def handle(letters: list[Letter]) -> list[AuditEntry]:
            return [AuditEntry(letter, Action.DISCARDED, letter.attempt, letter.error) for letter in letters]

        await self._process(topics, matches, handle, reason=reason, dry_run=dry_run)

    async def _process(
        self,
        topics: Sequence[str],
        matches: Filter,
        handle: Handler,
        *,
        rate: float | None = None,
        reason: str | None = None,
        dry_run: bool = False,
    ) -> None:
        size = _BATCH if rate is None else max(1, min(_BATCH, int(rate)))
        self._watcher.on_start(sum(self._reader.count(topic) for topic in topics))
        for topic in topics:
            for batch in self._reader.batches(topic, size):
                started = time.monotonic()
                entries = await self._process_batch(batch, matches, handle, reason=reason, dry_run=dry_run)
                for entry in entries:
                    self._watcher.on_action(entry)
                self._watcher.on_progress(len(batch))
                if rate is not None and entries:
                    await asyncio.sleep(len(entries) / rate - (time.monotonic() - started))
        if not dry_run:
            self._reader.commit()
        if self._unavailable:
            message = "; ".join(
                f"{service}: {error}; its remaining letters stay open"
                for service, error in self._unavailable.items()
            )
            raise CacheUnavailableError(message)

    async def _process_batch(
        self,
        batch: list[Letter],
        matches: Filter,
        handle: Handler,
        *,
        reason: str | None,
        dry_run: bool,
    ) -> list[AuditEntry]:
        """Handle the open letters of a batch, and record and commit the actions."""
        with translate_postgres_errors():
            # Each statement must see what was committed before it; a stricter default would prevent that.
            async with self._connection.transaction(isolation="read_committed"):
                await self._connection.execute("SELECT pg_advisory_xact_lock($1)", _ADVISORY_LOCK)
                done = await closed(self._connection, batch)
                entries = await handle(
                    [letter for letter in batch if letter.id not in done and matches(letter)]
                )
                if not dry_run:
                    await record(self._connection, self._actor, reason, entries)
        done |= {entry.letter.id for entry in entries if entry.action.closes}
        self._reader.mark_open([letter.id for letter in batch if letter.id not in done])
        return entries

    async def _attempt(self, letters: Sequence[Letter], *, dry_run: bool = False) -> dict[LetterId, _Outcome]:
        """Retry letters now and return the outcomes; letters of an unavailable Redis have none."""
        outcomes: dict[LetterId, _Outcome] = {}
        by_service: dict[str, list[tuple[Letter, Change]]] = {}
        for letter in letters:
            if letter.service not in self._appliers:
                self.without_redis[letter.service].add(letter.id)
                continue
            try:
                change = letter.change()
            except UndecodableError as error:
                outcomes[letter.id] = _Failure(Stage.DECODE, str(error))
                continue
            if change.entity in self._entities:
                by_service.setdefault(letter.service, []).append((letter, change))
            else:
                outcomes[letter.id] = _Failure(Stage.ROW, f"entity {change.entity!r} is not declared")
        for service, pairs in by_service.items():
            if service in self._unavailable:
                continue
            try:
                outcomes |= await self._apply_current_rows(self._appliers[service], pairs, dry_run=dry_run)
            except CacheUnavailableError as error:
                self._unavailable[service] = str(error)
        return outcomes

    async def _apply_current_rows(
        self, applier: Applier, pairs: list[tuple[Letter, Change]], *, dry_run: bool
    ) -> dict[LetterId, _Outcome]:
        """Apply the current rows to those slots of one service that are older than the letters' changes."""
        of_rows = [(letter, change) for letter, change in pairs if change.operation is not Operation.TRUNCATE]
        heads = applier.heads([change for _, change in of_rows])
        behind: list[tuple[Letter, Change]] = []
        outcomes: dict[LetterId, _Outcome] = {}
        for (letter, change), head in zip(of_rows, heads, strict=True):
            if isinstance(head, str) and dry_run:
                outcomes[letter.id] = _Failure(Stage.CACHE, head)
            # The slots of unique lookups are not looked at, so that the current row is applied in any case.
            elif isinstance(head, bytes) and is_past(head, change.version) and not self._has_lookups(change):
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

    def _has_lookups(self, change: Change) -> bool:
        return change.operation is not Operation.DELETE and bool(self._entities[change.entity].unique)

    async def _current(self, changes: Sequence[Change]) -> list[Change | str]:
        """Return each change with its current row, or the reason why there can be no such row."""
        keys: dict[str, set[str]] = {}
        for change in changes:
            keys.setdefault(change.entity, set()).add(change.key or "")
        found: dict[str, dict[str, Row]] = {}
        for entity, its_keys in keys.items():
            if entity not in self._rows:
                self._rows[entity] = await Rows.open(self._connection, self._entities[entity])
            found[entity] = await self._rows[entity].read(its_keys)
        current: list[Change | str] = []
        for change in changes:
            key = change.key or ""
            reason = self._rows[change.entity].impossible(key)
            row = found[change.entity].get(key)
            current.append(_with_row(change, row) if reason is None else reason)
        return current


def _with_row(change: Change, row: Row | None) -> Change:
    """Return the change with the content of the current row, or as a delete if there is no row."""
    if row is None:
        # The delete drew an even higher version, but the letter's is above the slot's, which is enough.
        return replace(change, operation=Operation.DELETE, value=None)
    return replace(
        change,
        operation=Operation.UPSERT,
        version=row.version,
        value=value_of(row),
    )
