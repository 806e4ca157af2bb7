"""The outbox relay: publishes the changes in the change log that no one else has published."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Generic, TypeVar

import asyncpg
import structlog
from confluent_kafka import KafkaError

from cachesync import metrics
from cachesync.backoff import Backoff
from cachesync.errors import DatabaseError, DatabaseUnavailableError, NotInstalledError
from cachesync.kafka.errors import MISSING_TOPIC, TOO_LARGE
from cachesync.kafka.producer import Sender, producer_settings
from cachesync.postgres.change_log import change_of, mark_published
from cachesync.postgres.connect import connect, translate_postgres_errors
from cachesync.postgres.statements import statement
from cachesync.relay.backlog import Backlog
from cachesync.relay.capture import CaptureCheck
from cachesync.relay.pruning import Pruner
from cachesync.relay.sessions import SESSION_NAME

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable, Mapping
    from datetime import datetime, timedelta

    from cachesync.change import Change
    from cachesync.entity import Entity

_log = structlog.get_logger(__name__)

CHANNEL: Final = "cachesync_change"
"""The channel on which PostgreSQL announces the changes that only the relay publishes."""

# Each round also takes some of the newest lines, so that a single change does not wait behind a million
# older ones.
_OLDEST_LINES: Final = 900
_NEWEST_LINES: Final = 100
_MAX_BYTES: Final = 8 << 20
_SWEEP_SECONDS: Final = 1.0
_PRUNE_PAUSE_SECONDS: Final = 0.05
# Also limits how long lines stay locked while Kafka is unavailable.
_ROUND_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.05
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

_Key = TypeVar("_Key", bound="Hashable")


class Relay:
    """Publishes unpublished changes, measures the backlog, prunes the change log, and reports lost capture.

    `run` occupies one thread until `stop` is called. Several relays can run at the same time and share the
    work.

    Args:
        dsn: the database, with a login that has the role `cachesync_worker`; None to use the variables
            PGHOST, PGUSER and so on.
        kafka: librdkafka's settings for connecting to the brokers.
        entities: the declared entities by name.
        retention: how long the change log keeps a line after it was published.

    Raises:
        KafkaUnavailableError: librdkafka rejected the settings.
    """

    def __init__(
        self, dsn: str | None, kafka: Mapping[str, Any], entities: Mapping[str, Entity], retention: timedelta
    ) -> None:
        self._dsn = dsn
        self._sender = Sender(
            {
                **producer_settings(kafka),
                "message.timeout.ms": round(1000 * _ROUND_SECONDS),
                # The size of a round limits the queue.
                "queue.buffering.max.kbytes": 1_048_576,
                # Report a missing topic immediately instead of waiting for it to appear.
                "topic.metadata.propagation.max.ms": 1000,
            }
        )
        self._entities = entities
        self._backlog = Backlog()
        self._pruner = Pruner(retention)
        self._capture = CaptureCheck(entities)
        self._changed = asyncio.Event()
        self._refused_entities = _Refused[str]()
        self._refused_versions = _Refused[int]()
        self._kafka = _Outage("Kafka")
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Make `run` return soon. Can be called from any thread."""
        self._stopping.set()
        if self._loop is not None and self._task is not None:
            with suppress(RuntimeError):  # `run` has already returned and its loop is closed
                self._loop.call_soon_threadsafe(self._task.cancel)

    def run(self) -> None:
        """Publish until `stop` is called, and keep retrying while the database or Kafka is unavailable.

        Raises:
            NotInstalledError: the change log is missing, or was installed by an older version.
            DatabaseError: PostgreSQL rejected one of the relay's statements.
        """
        try:
            with suppress(asyncio.CancelledError):
                asyncio.run(self._run())
        finally:
            self._sender.close()

    async def _run(self) -> None:
        self._task = asyncio.current_task()
        self._loop = asyncio.get_running_loop()
        database = _Outage("PostgreSQL")
        while not self._stopping.is_set():
            try:
                with translate_postgres_errors():
                    async with self._connected() as connection:
                        database.recovered()
                        self._backlog.restart()
                        await self._relay(connection)
            except DatabaseUnavailableError as error:
                database.failed(str(error))
                await asyncio.sleep(database.backoff())
            except DatabaseError as error:
                if isinstance(error.__cause__, (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError)):
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
        while True:
            # This sweep may miss a change that is announced from now on; the next one finds it.
            self._changed.clear()
            if not self._kafka.ongoing or self._sender.is_available(_PROBE_SECONDS):
                await self._sweep(connection)
            await self._maintain(connection)
            if self._kafka.ongoing:
                self._sender.poll(0)
                await asyncio.sleep(self._kafka.backoff())
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(_PRUNE_PAUSE_SECONDS if self._pruner.busy else _SWEEP_SECONDS):
                    await self._changed.wait()

    async def _sweep(self, connection: asyncpg.Connection) -> None:
        """Publish the backlog once, starting with the line that has been due longest."""
        position = self._backlog.start
        while True:
            started = time.monotonic()
            lines = await self._publish_round(connection, position)
            oldest = [line for line in lines if line["oldest"]]
            size = sum(line["size"] for line in oldest)
            if self._kafka.ongoing or (len(oldest) < _OLDEST_LINES and size < _MAX_BYTES):
                return
            position = oldest[-1]["relay_at"]
            await self._maintain(connection)
            # Single changes also wait for the streams to catch up, so rest for as long as the round took.
            await asyncio.sleep(time.monotonic() - started)

    async def _maintain(self, connection: asyncpg.Connection) -> None:
        await self._backlog.step(connection)
        await self._pruner.step(connection)
        await self._capture.step(connection)

    async def _publish_round(
        self, connection: asyncpg.Connection, position: datetime
    ) -> list[asyncpg.Record]:
        """Publish some lines and mark the acknowledged ones, in one transaction; return the lines.

        A superseded line is marked without being published, once the newer change of its key is acknowledged.
        """
        refused = self._refused_entities.waiting()
        names = [name for name in self._entities if name not in refused]
        async with connection.transaction():
            lines = await connection.fetch(
                statement("relay/take"),
                names,
                position,
                list(self._refused_versions.waiting()),
                _OLDEST_LINES,
                _NEWEST_LINES,
                _MAX_BYTES,
                self._sender.max_bytes,
                self._refused_versions.all(),
            )
            changes = {line["version"]: change_of(line) for line in lines if not line["superseded"]}
            outcomes = await self._deliver(list(changes.values()))
            acknowledged = [version for version, error in outcomes.items() if error is None]
            keys = {(changes[version].entity, changes[version].key) for version in acknowledged}
            superseded = [
                line["version"]
                for line in lines
                if line["superseded"] and (line["entity"], line["key"]) in keys
            ]
            if acknowledged:
                await mark_published(connection, [*acknowledged, *superseded])
        metrics.relayed.inc(len(acknowledged))
        metrics.superseded.inc(len(superseded))
        for version in superseded:
            self._refused_versions.forget(version)
        self._evaluate(changes, outcomes, acknowledged)
        return lines

    async def _deliver(self, changes: list[Change]) -> dict[int, KafkaError | None]:
        """Send changes and return each one's error, or None if it was acknowledged, by version.

        Changes for which no response arrived in time are missing from the result.
        """
        outcomes: dict[int, KafkaError | None] = {}
        deadline = time.monotonic() + _ROUND_SECONDS
        sent = 0

        async def settle() -> None:
            while len(outcomes) < sent and time.monotonic() < deadline:
                # Unlike `poll`, this does not wait for more messages to batch. Blocking is fine: this thread
                # has nothing else to do.
                self._sender.flush(_POLL_SECONDS)
                await asyncio.sleep(0)

        # A broker rejects a whole batch because of one message, so rejected changes are retried one by one.
        for change in sorted(changes, key=lambda change: change.version in self._refused_versions):
            alone = change.version in self._refused_versions
            if alone:
                await settle()
            if time.monotonic() >= deadline:
                break
            topic = self._entities[change.entity].topic
            self._sender.send(topic, change, partial(outcomes.__setitem__, change.version), alone=alone)
            sent += 1
        await settle()
        return outcomes

    def _evaluate(
        self,
        changes: Mapping[int, Change],
        outcomes: Mapping[int, KafkaError | None],
        acknowledged: list[int],
    ) -> None:
        """Decide from a round's outcomes what to back off from, and whether Kafka is unavailable."""
        for version in acknowledged:
            self._refused_versions.forget(version)
            self._refused_entities.forget(changes[version].entity)
        refused: dict[tuple[str, KafkaError], list[int]] = {}
        problem: KafkaError | None = None
        for version, error in outcomes.items():
            if error is None:
                continue
            code = error.code()
            if code in _TOPIC_ERRORS or code in _CHANGE_ERRORS or acknowledged:
                refused.setdefault((changes[version].entity, error), []).append(version)
            else:
                problem = error
        for (entity, error), versions in refused.items():
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
        if problem is not None:
            self._kafka.failed(problem.str())
        elif changes and not outcomes:
            self._kafka.failed("no acknowledgement")
        else:
            self._kafka.recovered()


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
