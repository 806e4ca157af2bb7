"""The outbox relay: publishes the changes in the change log that no one else has published."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, NamedTuple, TypeVar

import asyncpg
import structlog
from confluent_kafka import KafkaError

from cachesync.backoff import Backoff
from cachesync.change import Operation, Upserts
from cachesync.entity import with_canary
from cachesync.errors import DatabaseError, DatabaseUnavailableError, NotInstalledError
from cachesync.kafka.errors import MISSING_TOPIC, TOO_LARGE
from cachesync.kafka.producer import Sender, producer_settings
from cachesync.lookup import encode_values, values_in
from cachesync.metrics import relay as metrics
from cachesync.metrics.kinds import forget
from cachesync.postgres.change_log import change_of
from cachesync.postgres.connect import NOT_INSTALLED, connect, translate_postgres_errors
from cachesync.postgres.statements import statement
from cachesync.relay.backlog import Backlog
from cachesync.relay.capture import CaptureCheck
from cachesync.relay.pruning import Pruner
from cachesync.relay.records import Records
from cachesync.relay.sessions import SESSION_NAME
from cachesync.value import version_of
from cachesync.work import LoopWork

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable, Iterator, Mapping, Sequence
    from datetime import datetime, timedelta

    from cachesync.change import Change
    from cachesync.entity import Entity

_log = structlog.get_logger(__name__)

CHANNEL: Final = "cachesync_change"
"""The channel on which PostgreSQL announces the changes that only the relay publishes."""

# Each round also takes some of the newest lines, so that a single change does not wait behind a million
# older ones. It waits for up to two rounds, whose size is therefore limited by their duration.
_NEWEST_LINES: Final = 250
# After so many lines, the rows of a statement share lines, which are not taken as the newest.
_BULK_LINES: Final = 100
_OLDEST_LINES: Final = range(16, 4000)
_MAX_BYTES: Final = 2 << 20
_ROUND_SECONDS: Final = 0.04
# After such a round, the relay publishes only the newest lines, for this many times as long as the round has
# taken: the streams would otherwise fall behind, and single changes would wait in Kafka. A round takes much
# longer only if Kafka is slow.
_REST: Final = 1.5
_MAX_REST_SECONDS: Final = 0.25
_REST_POLL_SECONDS: Final = 0.01
# With more changes than this in a while, the relay looks for them at short intervals, and writers do not
# notify it. With fewer, that would cost more than the notifications, which can also be faster.
_BUSY_LINES: Final = 20
_BUSY_SECONDS: Final = 0.1
_POLL_SECONDS: Final = 0.003
# A transaction that did not notify the relay may commit while it sleeps.
_SWEEP_SECONDS: Final = 0.25
_AWAKE_SWEEP_SECONDS: Final = 1.0
_PRUNE_PAUSE_SECONDS: Final = 0.05
# Both also limit how long lines stay locked while Kafka is unavailable. librdkafka notices up to two seconds
# late that a message has timed out.
_MESSAGE_SECONDS: Final = 4.0
_DELIVERY_SECONDS: Final = 7.0
# The reconciliation takes the time of the mark for that of the acknowledgement.
_LATE_SECONDS: Final = 1.0
_FLUSH_SECONDS: Final = 0.05
_PROBE_SECONDS: Final = 1.0
_STATEMENT_SECONDS: Final = 30.0
_CLOSE_SECONDS: Final = 2.0
_OUTAGE_BACKOFF: Final = Backoff(first=0.5, longest=5)
_REFUSAL_BACKOFF: Final = Backoff(first=1, longest=60)
_MAX_REFUSED: Final = 10_000

_SESSION: Final = {
    # If a server crash loses a mark, the change is only published again.
    "synchronous_commit": "off",
    # A frozen relay must not keep its lines locked for the others.
    "idle_in_transaction_session_timeout": "15s",
    # Each of the relay's queries has one good plan, which outdated statistics must not change.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "jit": "off",
}

# Errors that concern the change's topic, and therefore all changes of its entity.
_TOPIC_ERRORS: Final = MISSING_TOPIC | {KafkaError.TOPIC_AUTHORIZATION_FAILED, KafkaError.TOPIC_EXCEPTION}
# Errors that concern the change itself.
_CHANGE_ERRORS: Final = TOO_LARGE | {
    KafkaError.INVALID_RECORD,
    KafkaError.INVALID_MSG,
    KafkaError.POLICY_VIOLATION,
}
_REFUSALS: Final = _TOPIC_ERRORS | _CHANGE_ERRORS

_Key = TypeVar("_Key", bound="Hashable")


class Relay(LoopWork):
    """Publishes unpublished changes, measures the backlog, prunes the change log, and reports lost capture.

    `run` occupies one thread until `stop` is called. Several relays can run at the same time and share the
    work.

    Args:
        dsn: the database, with a login that has the role `cachesync_worker`; None to use the variables
            PGHOST, PGUSER and so on.
        kafka: librdkafka's settings for connecting to the brokers.
        entities: the declared entities by name; that of the live check is added.
        retention: how long the change log keeps a line after it was published.

    Raises:
        KafkaUnavailableError: librdkafka rejected the settings.
    """

    def __init__(
        self, dsn: str | None, kafka: Mapping[str, Any], entities: Mapping[str, Entity], retention: timedelta
    ) -> None:
        super().__init__()
        entities = with_canary(entities)
        self._dsn = dsn
        self._sender = Sender(
            {
                **producer_settings(kafka),
                "message.timeout.ms": round(1000 * _MESSAGE_SECONDS),
                # A report of each delivery would cost more than the delivery.
                "delivery.report.only.error": True,
                # The size of a round limits the queue.
                "queue.buffering.max.kbytes": 1_048_576,
                # Report a missing topic immediately instead of waiting for it to appear.
                "topic.metadata.propagation.max.ms": 1000,
            },
            entities,
        )
        self._entities = entities
        self._backlog = Backlog()
        self._pruner = Pruner(retention)
        self._capture = CaptureCheck(entities)
        self._records = Records()
        self._changed = asyncio.Event()
        self._oldest_lines = _OLDEST_LINES.start
        self._next_sweep = 0.0
        self._is_awake = False
        self._is_announced = False
        self._next_count = 0.0
        self._published = 0
        self._refused_entities = _Refused[str]()
        self._refused_versions = _Refused[int]()
        self._kafka = _Outage("Kafka")

    def run(self) -> None:
        """Publish until `stop` is called, and keep retrying while the database or Kafka is unavailable.

        Raises:
            NotInstalledError: the change log is missing, or was installed by an older version.
            DatabaseError: PostgreSQL rejected one of the relay's statements.
        """
        for counter in (metrics.relayed, metrics.superseded, metrics.gap, metrics.pruned):
            counter.export()
        try:
            super().run()
        finally:
            forget(self._backlog, self._capture, self._records)
            self._sender.close()

    async def work(self) -> None:
        """Publish until it is canceled."""
        database = _Outage("PostgreSQL")
        while not self._stopping.is_set():
            try:
                with translate_postgres_errors():
                    async with self._connected() as connection:
                        database.recovered()
                        self._backlog.restart()
                        await self._relay(connection)
            except DatabaseUnavailableError as error:
                forget(self._backlog)
                database.failed(str(error))
                await asyncio.sleep(database.backoff())
            except DatabaseError as error:
                if isinstance(error.__cause__, NOT_INSTALLED):
                    message = f"{error.__cause__}; run `cachesync install`"
                    raise NotInstalledError(message) from error
                raise

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await connect(
            self._dsn, SESSION_NAME, settings=_SESSION, command_timeout=_STATEMENT_SECONDS
        )
        try:
            await connection.add_listener(CHANNEL, lambda *_: self._changed.set())
            yield connection
        finally:
            with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=_CLOSE_SECONDS)

    async def _relay(self, connection: asyncpg.Connection) -> None:
        self._is_awake = self._is_announced = False
        self._next_count = self._next_sweep = 0.0
        while True:
            # This round may miss a change that is announced from now on; the next one finds it.
            announced = self._changed.is_set()
            self._changed.clear()
            if not self._kafka.ongoing or self._sender.is_available(_PROBE_SECONDS):
                await self._publish(connection, announced=announced)
            await self._maintain(connection)
            if self._kafka.ongoing:
                self._sender.poll(0)
                await asyncio.sleep(self._kafka.backoff())
            elif self._is_awake:
                await asyncio.sleep(_POLL_SECONDS)
            else:
                with suppress(TimeoutError):
                    async with asyncio.timeout(_PRUNE_PAUSE_SECONDS if self._pruner.busy else _SWEEP_SECONDS):
                        await self._changed.wait()

    async def _publish(self, connection: asyncpg.Connection, *, announced: bool) -> None:
        """Publish the newest lines, or the whole backlog if that is due or if there are many."""
        if time.monotonic() < self._next_sweep:
            taken = await self._publish_round(connection, self._backlog.start, 0)
            lines = taken.counts.total()
            # What was announced but is not among the newest was written long before its commit.
            if self._kafka.ongoing or 0 < lines < _BULK_LINES or (lines == 0 and not announced):
                return
        self._next_sweep = time.monotonic() + (_AWAKE_SWEEP_SECONDS if self._is_awake else _SWEEP_SECONDS)
        await self._sweep(connection)

    async def _sweep(self, connection: asyncpg.Connection) -> None:
        """Publish the backlog once, starting with the line that has been due longest."""
        position: datetime | None = self._backlog.start
        while position is not None:
            started = time.monotonic()
            taken = await self._publish_round(connection, position, self._oldest_lines)
            position = None if self._kafka.ongoing else taken.position
            if position is not None:
                seconds = time.monotonic() - started
                self._adjust(seconds)
                await self._maintain(connection)
                await self._rest(connection, min(_REST * seconds, _MAX_REST_SECONDS))

    async def _rest(self, connection: asyncpg.Connection, seconds: float) -> None:
        """Publish only the newest lines for a while."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self._kafka.ongoing:
            await asyncio.sleep(_REST_POLL_SECONDS)
            await self._publish_round(connection, self._backlog.start, 0)

    async def _stay_awake(self, connection: asyncpg.Connection) -> None:
        """Decide whether the relay looks for changes by itself, and announce if it wants to be notified."""
        now = time.monotonic()
        if now < self._next_count:
            return
        self._is_awake = self._published > _BUSY_LINES
        self._published = 0
        self._next_count = now + _BUSY_SECONDS
        if self._is_awake and self._is_announced:
            await connection.fetchval(statement("relay/awake"))
            self._is_announced = False
        elif not self._is_awake and not self._is_announced:
            # Of several relays, one announces it for all.
            self._is_announced = await connection.fetchval(statement("relay/asleep"))
            if self._is_announced:
                # A change may have been made since the last round.
                self._changed.set()

    def _adjust(self, seconds: float) -> None:
        """Adjust the size of the next round to the time that a full one has taken."""
        lines = round(self._oldest_lines * min(2, _ROUND_SECONDS / seconds))
        self._oldest_lines = max(_OLDEST_LINES.start, min(lines, _OLDEST_LINES.stop))

    async def _maintain(self, connection: asyncpg.Connection) -> None:
        await self._stay_awake(connection)
        await self._backlog.step(connection)
        await self._pruner.step(connection)
        await self._capture.step(connection)
        await self._records.step(connection)

    async def _publish_round(
        self, connection: asyncpg.Connection, position: datetime, oldest_lines: int
    ) -> _Round:
        """Publish some lines, which are marked in the same transaction; unmark the changes that failed.

        A line that Kafka may not accept is not published if there is a newer change of its key; it stays
        marked if that one is acknowledged.
        """
        refused = self._refused_entities.waiting()
        names = [name for name in self._entities if name not in refused]
        # An exception ends the session, and thereby the transaction.
        # At a stricter default, writers and the relay would fail each other's transactions.
        transaction = connection.transaction(isolation="read_committed")
        await transaction.start()
        taken = _Round(
            await connection.fetch(
                statement("relay/take"),
                names,
                position,
                list(self._refused_versions.waiting()),
                oldest_lines,
                _NEWEST_LINES,
                _MAX_BYTES,
                self._sender.max_bytes,
                self._refused_versions.all(),
            )
        )
        await self._find_unique_values(connection, taken)
        started = time.monotonic()
        failures = await self._deliver(taken) if taken.counts else {}
        superseded = [version for version, newest in taken.superseded.items() if newest not in failures]
        acknowledged = taken.counts.total() - len(failures)
        # Those that share a line are then separated, even if nothing else was taken.
        rejected = any(error is not None and error.code() in _CHANGE_ERRORS for _, error in failures.values())
        if acknowledged or rejected:
            unmarked = [*failures, *taken.superseded.keys() - superseded]
            if unmarked:
                await connection.execute(statement("relay/unmark"), unmarked)
            if time.monotonic() - started > _LATE_SECONDS:
                published = {version for _, version in taken.versions()}.difference(failures)
                await connection.execute(statement("relay/remark"), [*published, *superseded])
            await transaction.commit()
        else:
            await transaction.rollback()
        self._published += acknowledged
        metrics.relayed.inc(acknowledged)
        metrics.superseded.inc(len(superseded))
        for version in superseded:
            self._refused_versions.forget(version)
        self._evaluate(taken, failures)
        return taken

    async def _find_unique_values(self, connection: asyncpg.Connection, taken: _Round) -> None:
        """Add to upserts that are too large the values that they have in unique lookups."""
        columns: set[str] = set()
        without_values = {}
        for index, change in enumerate(taken.changes):
            lookups = self._entities[change.entity].unique
            if lookups and change.operation is Operation.UPSERT and change.value is None:
                without_values[change.version] = index
                columns.update(*lookups)
        if not without_values:
            return
        for line in await connection.fetch(
            statement("relay/unique_values"), list(without_values), list(columns)
        ):
            change = taken.changes[without_values[line["version"]]]
            values = values_in(self._entities[change.entity].lookups, (line["payload"] or "").encode())
            taken.changes[without_values[line["version"]]] = replace(change, unique=encode_values(values))

    async def _deliver(self, taken: _Round) -> dict[int, _Failure]:
        """Send the lines of a round; return those that were not acknowledged, by version."""
        failures: dict[int, _Failure] = {}
        generation = self._sender.generation
        started = time.monotonic()

        def failed(entity: str, version: int, error: KafkaError | None) -> None:
            failures[version] = _Failure(entity, error)

        async def settle() -> bool:
            while time.monotonic() - started < _DELIVERY_SECONDS:
                # Unlike `poll`, this does not wait for more messages to batch. Blocking is fine: this thread
                # has nothing else to do.
                if not self._sender.flush(_FLUSH_SECONDS):
                    return True
                await asyncio.sleep(0)
            return False

        for upserts in taken.upserts:
            topic = self._entities[upserts.entity].topic
            self._sender.send_upserts(topic, upserts, partial(failed, upserts.entity))
        # A broker rejects a whole batch because of one message, so rejected changes are retried one by one.
        for change in sorted(taken.changes, key=lambda change: change.version in self._refused_versions):
            alone = change.version in self._refused_versions
            if (alone and not await settle()) or time.monotonic() - started > _MESSAGE_SECONDS:
                failed(change.entity, change.version, None)
                continue
            topic = self._entities[change.entity].topic
            self._sender.send(topic, change, partial(failed, change.entity, change.version), alone=alone)
        if not await settle() or self._sender.generation != generation:
            # Which ones were acknowledged is not known.
            for entity, version in taken.versions():
                failures.setdefault(version, _Failure(entity, None))
        return failures

    def _evaluate(self, taken: _Round, failures: Mapping[int, _Failure]) -> None:
        """Decide from a round's failures what to back off from, and whether Kafka is unavailable."""
        acknowledged = taken.counts - Counter(failure.entity for failure in failures.values())
        for entity in acknowledged:
            self._refused_entities.forget(entity)
        for change in taken.changes:
            if change.version not in failures:
                self._refused_versions.forget(change.version)
        refused: dict[tuple[str, KafkaError], list[int]] = {}
        problem = "no acknowledgement" if failures and not acknowledged else None
        for version, (entity, error) in failures.items():
            if error is None:
                continue
            if error.code() in _REFUSALS or acknowledged:
                refused.setdefault((entity, error), []).append(version)
            else:
                problem = error.str()
        for (entity, error), versions in refused.items():
            self._refuse(entity, error, versions)
        if problem is None or refused:
            self._kafka.recovered()
        else:
            self._kafka.failed(problem)

    def _refuse(self, entity: str, error: KafkaError, versions: list[int]) -> None:
        if error.code() in _TOPIC_ERRORS:
            self._refused_entities.add(entity)
        else:
            self._refused_versions.add(*versions)
        metrics.unrelayable.labels(entity, error.name()).inc(len(versions))
        _log.error(
            "changes rejected by Kafka",
            entity=entity,
            error=error.str(),
            count=len(versions),
            version=versions[0],
        )


class _Failure(NamedTuple):
    """Why a change was not acknowledged.

    Attributes:
        entity: the entity of the change.
        error: None if no response arrived in time.
    """

    entity: str
    error: KafkaError | None


class _Round:
    """The lines that were taken in a round.

    Attributes:
        upserts: the upserts that can be published as they are.
        changes: the other changes to publish.
        superseded: lines that are not published because there is a newer change of their key: their versions,
            and the highest version of the key.
        counts: how many changes of each entity are published.
        position: where the sweep continues; None if it is complete.
    """

    def __init__(self, lines: Sequence[asyncpg.Record]) -> None:
        self.upserts: list[Upserts] = []
        self.changes: list[Change] = []
        self.superseded: dict[int, int] = {}
        for line in lines:
            if line["values"] is not None:
                self.upserts.append(Upserts(line["entity"], line["keys"], line["values"], line["times"]))
            elif line["newest"] is not None and line["newest"] > line["version"]:
                self.superseded[line["version"]] = line["newest"]
            else:
                self.changes.append(change_of(line))
        self.counts = Counter(change.entity for change in self.changes)
        for upserts in self.upserts:
            self.counts[upserts.entity] += len(upserts.values)
        self.position: datetime | None = lines[0]["position"] if lines else None

    def versions(self) -> Iterator[tuple[str, int]]:
        """Yield the entity and version of each change that is published."""
        for upserts in self.upserts:
            for value in upserts.values:
                yield upserts.entity, version_of(value)
        for change in self.changes:
            yield change.entity, change.version


class _Refused(Generic[_Key]):
    """Entities or versions that Kafka rejected: not retried for a while, longer after each rejection."""

    def __init__(self) -> None:
        self._refusals: dict[_Key, tuple[float, int]] = {}

    def add(self, *keys: _Key) -> None:
        now = time.monotonic()
        for key in keys:
            _, failures = self._refusals.pop(key, (now, 0))
            failures += 1
            while len(self._refusals) >= _MAX_REFUSED:
                del self._refusals[next(iter(self._refusals))]
            self._refusals[key] = (now + _REFUSAL_BACKOFF.delay(failures), failures)

    def forget(self, key: _Key) -> None:
        self._refusals.pop(key, None)

    def waiting(self) -> set[_Key]:
        now = time.monotonic()
        return {key for key, (until, _) in self._refusals.items() if until > now}

    def all(self) -> list[_Key]:
        return list(self._refusals)

    def __contains__(self, key: _Key) -> bool:
        return key in self._refusals


class _Outage:
    """Tracks whether Kafka or the database is unavailable, and logs the start and end of each outage once."""

    def __init__(self, system: str) -> None:
        self._system = system
        self._failures = 0
        self.ongoing = False

    def failed(self, error: str) -> None:
        """Record that the system did not respond."""
        if not self.ongoing:
            _log.warning(f"relay paused: {self._system} unavailable", error=error)
        self.ongoing = True

    def backoff(self) -> float:
        """Return the delay before the next attempt, in seconds."""
        self._failures += 1
        return _OUTAGE_BACKOFF.delay(self._failures)

    def recovered(self) -> None:
        """Record that the system responded."""
        if self.ongoing:
            _log.info(f"relay resumed: {self._system} available")
        self.ongoing = False
        self._failures = 0
