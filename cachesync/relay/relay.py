"""The outbox relay: publishes the changes in the change log that nobody else has published."""

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
from cachesync.change import Change, Operation
from cachesync.errors import DatabaseError, DatabaseUnavailableError, NotInstalledError
from cachesync.kafka.errors import UNKNOWN_PARTITION, UNKNOWN_TOPIC
from cachesync.kafka.producer import Sender, producer_settings
from cachesync.postgres.change_log import mark_published
from cachesync.postgres.connect import connect, translate_postgres_errors
from cachesync.postgres.statements import statement
from cachesync.relay.backlog import Backlog
from cachesync.relay.pruning import Pruner

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Hashable, Mapping
    from datetime import datetime, timedelta

    from cachesync.entity import Entity

_log = structlog.get_logger(__name__)

CHANNEL: Final = "cachesync_change"
"""Where PostgreSQL tells of changes that nobody publishes but the relay."""

# A change among a million older ones still goes out with the next round.
_OLDEST: Final = 900
_NEWEST: Final = 100
_MOST_BYTES: Final = 8 << 20
_SWEEP_SECONDS: Final = 1.0
_PRUNE_PAUSE_SECONDS: Final = 0.05
# For so long at most are lines locked when Kafka is away.
_ROUND_SECONDS: Final = 5.0
_POLL_SECONDS: Final = 0.05
_PROBE_SECONDS: Final = 1.0
_STATEMENT_SECONDS: Final = 30.0
_CLOSE_SECONDS: Final = 2.0
_OUTAGE_BACKOFF: Final = Backoff(first=0.5, longest=5)
_REFUSAL_BACKOFF: Final = Backoff(first=1, longest=60)
_MAX_REFUSED: Final = 10_000

_SESSION: Final = {
    # A mark that a crash of the server takes is a change published again.
    "synchronous_commit": "off",
    # A relay that is frozen must not keep its lines from the others.
    "idle_in_transaction_session_timeout": "15s",
    # There is one good way to each thing that the relay asks, whatever the statistics say just now.
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "jit": "off",
}

# What is wrong with the topic of a change, and so with all changes of its entity.
_TOPIC_REFUSES: Final = frozenset(
    {
        UNKNOWN_TOPIC,
        UNKNOWN_PARTITION,
        KafkaError.UNKNOWN_TOPIC_OR_PART,
        KafkaError.TOPIC_AUTHORIZATION_FAILED,
        KafkaError.TOPIC_EXCEPTION,
    }
)
# What is wrong with the change itself.
_CHANGE_REFUSED: Final = frozenset(
    {
        KafkaError.MSG_SIZE_TOO_LARGE,
        KafkaError.RECORD_LIST_TOO_LARGE,
        KafkaError.INVALID_MSG_SIZE,
        KafkaError.INVALID_RECORD,
        KafkaError.INVALID_MSG,
        KafkaError.POLICY_VIOLATION,
    }
)

_Key = TypeVar("_Key", bound="Hashable")


class Relay:
    """Runs in one thread, between `run` and `stop`; several may run at once.

    Args:
        dsn: the database, as a user with the role `cachesync_worker`.
        kafka: the settings of a Kafka client that lead to the brokers.
        entities: the declared entities.
        retention: how long the change log keeps what is published.
    """

    def __init__(
        self, dsn: str | None, kafka: Mapping[str, Any], entities: Mapping[str, Entity], retention: timedelta
    ) -> None:
        self._dsn = dsn
        self._sender = Sender(
            {
                **producer_settings(kafka),
                "message.timeout.ms": round(1000 * _ROUND_SECONDS),
                # A topic that is not there is told at once, not waited for.
                "topic.metadata.propagation.max.ms": 1000,
            }
        )
        self._entities = entities
        self._backlog = Backlog()
        self._pruner = Pruner(retention)
        self._changed = asyncio.Event()
        self._refused_entities = _Refused[str]()
        self._refused_versions = _Refused[int]()
        self._kafka = _Outage("Kafka")
        self._stopping = threading.Event()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._task: asyncio.Task[None] | None = None

    def stop(self) -> None:
        """Make `run` return soon; from any thread."""
        self._stopping.set()
        if self._loop is not None and self._task is not None:
            with suppress(RuntimeError):  # it has returned already
                self._loop.call_soon_threadsafe(self._task.cancel)

    def run(self) -> None:
        """Publish until `stop`, however long the database or Kafka are away.

        Raises:
            NotInstalledError: the database has no change log, or that of an older version.
            DatabaseError: PostgreSQL refused a statement of the relay.
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
                        database.over()
                        self._backlog.restart()
                        await self._relay(connection)
            except DatabaseUnavailableError as error:
                database.met(str(error))
                await asyncio.sleep(database.backoff())
            except DatabaseError as error:
                if isinstance(error.__cause__, (asyncpg.UndefinedTableError, asyncpg.UndefinedColumnError)):
                    message = f"{error.__cause__}; run `cachesync install`"
                    raise NotInstalledError(message) from error
                raise

    @asynccontextmanager
    async def _connected(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await connect(
            self._dsn, "cachesync-relay", settings=_SESSION, command_timeout=_STATEMENT_SECONDS
        )
        try:
            await connection.add_listener(CHANNEL, lambda *_: self._changed.set())
            yield connection
        finally:
            with suppress(OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                await connection.close(timeout=_CLOSE_SECONDS)

    async def _relay(self, connection: asyncpg.Connection) -> None:
        while True:
            # What is announced from now on may be missed by this sweep, and is found by the next.
            self._changed.clear()
            if not self._kafka.lasts or self._sender.answers(_PROBE_SECONDS):
                await self._sweep(connection)
            await self._tend(connection)
            if self._kafka.lasts:
                await asyncio.sleep(self._kafka.backoff())
                continue
            with suppress(TimeoutError):
                async with asyncio.timeout(_PRUNE_PAUSE_SECONDS if self._pruner.busy else _SWEEP_SECONDS):
                    await self._changed.wait()

    async def _sweep(self, connection: asyncpg.Connection) -> None:
        """Go through the log once, from the line that has been due for longest."""
        position = self._backlog.start
        while True:
            began = time.monotonic()
            lines = await self._round(connection, position)
            oldest = [line for line in lines if line["oldest"]]
            size = sum(len((line["payload"] or "").encode()) for line in oldest)
            if self._kafka.lasts or (len(oldest) < _OLDEST and size < _MOST_BYTES):
                return
            position = oldest[-1]["relay_at"]
            await self._tend(connection)
            # A single change waits for what the streams are behind: a flood leaves them the same time.
            await asyncio.sleep(time.monotonic() - began)

    async def _tend(self, connection: asyncpg.Connection) -> None:
        await self._backlog.step(connection)
        await self._pruner.step(connection)

    async def _round(self, connection: asyncpg.Connection, position: datetime) -> list[asyncpg.Record]:
        """Publish some lines and mark what was acknowledged, in one transaction; the lines."""
        refused = self._refused_entities.waiting()
        names = [name for name in self._entities if name not in refused]
        async with connection.transaction():
            lines = await connection.fetch(
                statement("relay/take"),
                names,
                position,
                list(self._refused_versions.waiting()),
                _OLDEST,
                _NEWEST,
                _MOST_BYTES,
            )
            changes = {line["version"]: _change(line) for line in lines}
            outcomes = await self._deliver(list(changes.values()))
            acknowledged = [version for version, error in outcomes.items() if error is None]
            if acknowledged:
                await mark_published(connection, acknowledged)
        metrics.relayed.inc(len(acknowledged))
        self._note(changes, outcomes, acknowledged)
        return lines

    async def _deliver(self, changes: list[Change]) -> dict[int, KafkaError | None]:
        """Send changes; by version what became of them, without those of which nothing was heard in time."""
        outcomes: dict[int, KafkaError | None] = {}
        deadline = time.monotonic() + _ROUND_SECONDS
        sent = 0

        async def settle() -> None:
            while len(outcomes) < sent and time.monotonic() < deadline:
                # Unlike a poll it does not wait for more to send; nothing else is to be done in this thread.
                self._sender.producer.flush(_POLL_SECONDS)
                await asyncio.sleep(0)

        # A broker refuses a batch of messages for one of them, so what was refused is tried again alone.
        for change in sorted(changes, key=lambda change: change.version in self._refused_versions):
            if change.version in self._refused_versions:
                await settle()
            if time.monotonic() >= deadline:
                break
            self._sender.send(
                self._entities[change.entity].topic, change, partial(outcomes.__setitem__, change.version)
            )
            sent += 1
        await settle()
        return outcomes

    def _note(
        self,
        changes: Mapping[int, Change],
        outcomes: Mapping[int, KafkaError | None],
        acknowledged: list[int],
    ) -> None:
        """Draw the conclusions of a round: what to leave alone for a while, and whether Kafka is away."""
        for version in acknowledged:
            self._refused_versions.forget(version)
            self._refused_entities.forget(changes[version].entity)
        refused: dict[tuple[str, KafkaError], list[int]] = {}
        problem: KafkaError | None = None
        for version, error in outcomes.items():
            if error is None:
                continue
            code = error.code()
            if code in _TOPIC_REFUSES or code in _CHANGE_REFUSED or acknowledged:
                refused.setdefault((changes[version].entity, error), []).append(version)
            else:
                problem = error
        for (entity, error), versions in refused.items():
            if error.code() in _TOPIC_REFUSES:
                self._refused_entities.add(entity)
            else:
                self._refused_versions.add(*versions)
            metrics.unrelayable.labels(entity, error.name()).inc(len(versions))
            _log.error(
                "Kafka refused changes",
                entity=entity,
                error=error.str(),
                count=len(versions),
                version=versions[0],
            )
        if problem is not None:
            self._kafka.met(problem.str())
        elif changes and not outcomes:
            self._kafka.met("no acknowledgement")
        else:
            self._kafka.over()


class _Refused(Generic[_Key]):
    """What Kafka refused: left alone for a while, longer after each refusal."""

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

    def __contains__(self, key: _Key) -> bool:
        return key in self._refusals


class _Outage:
    """Whether Kafka or the database is unavailable; logged once when that begins and once when it ends."""

    def __init__(self, system: str) -> None:
        self._system = system
        self._failures = 0
        self.lasts = False

    def met(self, error: str) -> None:
        """Note that it did not respond."""
        if not self.lasts:
            _log.warning(f"relay paused: {self._system} unavailable", error=error)
        self.lasts = True

    def backoff(self) -> float:
        """Return how long to leave it alone now, in seconds."""
        self._failures += 1
        return _OUTAGE_BACKOFF.delay(self._failures)

    def over(self) -> None:
        """Note that it responded."""
        if self.lasts:
            _log.info(f"relay resumed: {self._system} available")
        self.lasts = False
        self._failures = 0


def _change(line: asyncpg.Record) -> Change:
    return Change(
        entity=line["entity"],
        key=line["key"],
        version=line["version"],
        operation=Operation(line["operation"]),
        fingerprint=None if line["fingerprint"] is None else line["fingerprint"].encode(),
        payload=None if line["payload"] is None else line["payload"].encode(),
        source=line["source"],
        changed_at=line["changed_at"],
    )
