"""Carries out what is asked about dead letters."""

from __future__ import annotations

import base64
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from cachesync.dead_letters.audit import closed, readable, version_of
from cachesync.dead_letters.letter import DEFAULT_POLICY
from cachesync.dead_letters.reader import DeadLetterReader
from cachesync.dead_letters.request import RequestAction
from cachesync.dead_letters.retry import NullWatcher, Retrier
from cachesync.entity import TOPIC_PREFIX
from cachesync.errors import LetterNotFoundError
from cachesync.kafka.topics import DEAD_LETTERS
from cachesync.postgres.connect import connected
from cachesync.postgres.statements import statement

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    import asyncpg

    from cachesync.dead_letters.audit import AuditEntry
    from cachesync.dead_letters.letter import Letter, RetryPolicy
    from cachesync.dead_letters.request import Request
    from cachesync.dead_letters.retry import Watcher
    from cachesync.entity import Entity
    from cachesync.slots.clients import WorkerRedis

_BATCH: Final = 500
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class DeadLetterService:
    """What is needed to carry requests out.

    Attributes:
        dsn: the database, as a login with the role `cachesync_worker`; None: what PGHOST, PGUSER, ... say.
        kafka: how to reach Kafka, as librdkafka calls it.
        clients: the services' Redis, by name.
        entities: the declared entities.
        actor: who asks, for the record.
        policy: when a letter that fails again is tried the next time.
    """

    dsn: str | None
    kafka: Mapping[str, Any]
    clients: Mapping[str, WorkerRedis]
    entities: Mapping[str, Entity]
    actor: str
    policy: RetryPolicy = DEFAULT_POLICY

    async def carry_out(self, request: Request, watcher: Watcher | None = None) -> dict[str, Any]:
        """Do what is asked for.

        Args:
            request: what.
            watcher: told how the work goes.

        Returns:
            What came of it, as JSON would have it.

        Raises:
            LetterNotFoundError: there is no letter to show.
            CacheUnavailableError: a Redis is away; the letters of other services were tried.
            DatabaseUnavailableError: the database is away.
            TopicError: the topics are missing.
            KafkaUnavailableError: Kafka did not respond.
        """
        async with connected(self.dsn, "cachesync-dead-letters") as connection:
            with DeadLetterReader(self.kafka) as reader:
                if request.action is RequestAction.LIST:
                    return await _list(connection, reader, request)
                if request.action is RequestAction.SHOW:
                    return await _show(connection, reader, request)
                if request.action is RequestAction.STATS:
                    return await _stats(connection, reader, request)
                return await self._work(connection, reader, request, watcher or NullWatcher())

    async def _work(
        self, connection: asyncpg.Connection, reader: DeadLetterReader, request: Request, watcher: Watcher
    ) -> dict[str, Any]:
        counting = _Counting(watcher)
        retrier = Retrier(
            connection,
            settings=self.kafka,
            reader=reader,
            clients=self.clients,
            entities=self.entities,
            actor=self.actor,
            policy=self.policy,
            watcher=counting,
        )
        if request.action is RequestAction.REPLAY:
            await retrier.replay(request.topics, request.wants, rate=request.rate, dry_run=request.dry_run)
        elif request.action is RequestAction.DISCARD:
            reason = request.reason or ""
            await retrier.discard(request.topics, request.wants, reason, dry_run=request.dry_run)
        else:
            await retrier.retry(request.wants)
        left_alone = {str(letter) for letters in retrier.left_alone.values() for letter in letters}
        return {
            "action": request.action.value,
            "dry_run": request.dry_run,
            "letters": dict(sorted(counting.counts.items())),
            "not_open": sorted(set(request.letters) - counting.letters - left_alone),
            "without_redis": {service: len(letters) for service, letters in retrier.left_alone.items()},
        }


class _Counting(NullWatcher):
    """Counts what is done, and passes it on."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self.counts: Counter[str] = Counter()
        self.letters: set[str] = set()

    def expect(self, messages: int) -> None:
        self._watcher.expect(messages)

    def pass_by(self, messages: int) -> None:
        self._watcher.pass_by(messages)

    def end(self, ending: AuditEntry) -> None:
        self.counts[ending.action.value] += 1
        self.letters.add(str(ending.letter.id))
        self._watcher.end(ending)


@dataclass(slots=True)
class _Group:
    """Open letters that `stats` tells as one."""

    first_failed_at: datetime
    letters: int = 0
    due: int = 0


async def _open(
    connection: asyncpg.Connection, reader: DeadLetterReader, request: Request
) -> AsyncIterator[Letter]:
    """The open letters that are meant."""
    for topic in request.topics:
        for batch in reader.batches(topic, _BATCH):
            gone = await closed(connection, batch)
            for letter in batch:
                if letter.id not in gone and request.wants(letter):
                    yield letter


async def _list(connection: asyncpg.Connection, reader: DeadLetterReader, request: Request) -> dict[str, Any]:
    found: list[dict[str, Any]] = []
    count = 0
    async for letter in _open(connection, reader, request):
        count += 1
        if count <= request.limit:
            found.append(_summary(letter))
    return {"open": count, "letters": found}


async def _show(connection: asyncpg.Connection, reader: DeadLetterReader, request: Request) -> dict[str, Any]:
    (name,) = request.letters
    topic, partition, offset = name.split(":")
    letter = reader.letter(TOPIC_PREFIX + topic, int(partition), int(offset))
    if letter is None:
        message = f"there is no letter {name}, or no more"
        raise LetterNotFoundError(message)
    origin = letter.original_topic, letter.original_partition, letter.original_offset
    history = await connection.fetch(statement("dead_letters/history"), letter.service, *origin)
    gone = await closed(connection, [letter])
    return {
        **_summary(letter),
        "open": letter.id not in gone,
        "original": {
            name.removeprefix("original-"): text
            for name, text in letter.fields.items()
            if name.startswith("original-")
        },
        "headers": [[name, _text(value)] for name, value in letter.headers],
        "value": _text(letter.value),
        "history": [
            {
                "at": record["at"].isoformat(),
                "actor": record["actor"],
                "action": record["action"],
                "reason": record["reason"],
                "letter": f"{record['letter_topic'].removeprefix(TOPIC_PREFIX)}:"
                f"{record['letter_partition']}:{record['letter_offset']}",
                "attempt": record["attempt"],
                "error": record["error"],
            }
            for record in history
        ],
    }


async def _stats(
    connection: asyncpg.Connection, reader: DeadLetterReader, request: Request
) -> dict[str, Any]:
    now = datetime.now(UTC)
    groups: dict[tuple[str, str, str, str], _Group] = {}
    async for letter in _open(connection, reader, request):
        name = (
            letter.id.topic.removeprefix(TOPIC_PREFIX),
            letter.service,
            letter.entity,
            letter.stage.value,
        )
        group = groups.setdefault(name, _Group(letter.first_failed_at))
        group.letters += 1
        group.due += letter.id.topic == DEAD_LETTERS and letter.due(now)
        group.first_failed_at = min(group.first_failed_at, letter.first_failed_at)
    actions = await connection.fetch(statement("dead_letters/actions"), now - _DAY)
    return {
        "open": [
            {
                **dict(zip(("topic", "service", "entity", "stage"), name, strict=True)),
                "letters": group.letters,
                "due": group.due,
                "first_failed_at": group.first_failed_at.isoformat(),
            }
            for name, group in sorted(groups.items())
        ],
        "last_day": [dict(record) for record in actions],
    }


def _summary(letter: Letter) -> dict[str, Any]:
    return {
        "letter": str(letter.id),
        "service": letter.service,
        "entity": letter.entity,
        "key": readable(letter.key),
        "version": version_of(letter),
        "stage": letter.stage.value,
        "attempt": letter.attempt,
        "maximum": letter.maximum,
        "first_failed_at": letter.first_failed_at.isoformat(),
        "last_failed_at": letter.last_failed_at.isoformat(),
        "not_before": letter.not_before.isoformat(),
        "error": letter.error,
    }


def _text(value: str | bytes | None) -> str | None:
    """Bytes as JSON can hold them: the text that they are, or `base64:` and their encoding."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(value).decode()
