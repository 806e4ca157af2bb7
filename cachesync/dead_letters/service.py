"""Carries out requests about dead letters."""

from __future__ import annotations

import base64
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from cachesync.dead_letters.audit import closed, readable, version_of, without_nul
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
    from cachesync.slots.clients import BlockingRedis

_BATCH: Final = 500
_DAY: Final = timedelta(days=1)


@dataclass(frozen=True, slots=True)
class DeadLetterService:
    """Carries out requests about dead letters.

    Attributes:
        dsn: the database, with a login that has the role `cachesync_worker`; None to use the variables
            PGHOST, PGUSER and so on.
        kafka: librdkafka's settings for connecting to the brokers.
        clients: each service's Redis, by the service's name; only `retry` and `replay` need it.
        entities: the declared entities by name; only `retry` and `replay` need them.
        actor: who makes the requests, for the audit table.
        policy: determines when a letter that fails again is due.
    """

    dsn: str | None
    kafka: Mapping[str, Any]
    clients: Mapping[str, BlockingRedis]
    entities: Mapping[str, Entity]
    actor: str
    policy: RetryPolicy = DEFAULT_POLICY

    async def carry_out(self, request: Request, watcher: Watcher | None = None) -> dict[str, Any]:
        """Carry out a request.

        Args:
            request: the action, and the letters it applies to.
            watcher: receives the progress of `retry`, `replay` and `discard`.

        Returns:
            The result, made of values that JSON can represent.

        Raises:
            LetterNotFoundError: the letter to show does not exist.
            CacheUnavailableError: a Redis is unavailable; the letters of the other services were retried.
            DatabaseUnavailableError: the database is unavailable.
            KafkaUnavailableError: Kafka did not respond.
            TopicError: a topic is missing.
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
        counter = _Counter(watcher)
        retrier = Retrier(
            connection,
            settings=self.kafka,
            reader=reader,
            clients=self.clients,
            entities=self.entities,
            actor=self.actor,
            policy=self.policy,
            watcher=counter,
        )
        if request.action is RequestAction.REPLAY:
            await retrier.replay(request.topics, request.matches, rate=request.rate, dry_run=request.dry_run)
        elif request.action is RequestAction.DISCARD:
            reason = request.reason or ""
            await retrier.discard(request.topics, request.matches, reason, dry_run=request.dry_run)
        else:
            await retrier.retry(request.matches)
        skipped = {str(letter_id) for ids in retrier.without_redis.values() for letter_id in ids}
        return {
            "action": request.action.value,
            "dry_run": request.dry_run,
            "letters": dict(sorted(counter.actions.items())),
            "not_open": sorted(set(request.letters) - counter.letters - skipped),
            "without_redis": {service: len(ids) for service, ids in retrier.without_redis.items()},
        }


class _Counter(NullWatcher):
    """Counts the actions, and forwards the progress to another watcher."""

    def __init__(self, watcher: Watcher) -> None:
        self._watcher = watcher
        self.actions: Counter[str] = Counter()
        self.letters: set[str] = set()

    def on_start(self, messages: int) -> None:
        self._watcher.on_start(messages)

    def on_progress(self, messages: int) -> None:
        self._watcher.on_progress(messages)

    def on_action(self, entry: AuditEntry) -> None:
        self.actions[entry.action.value] += 1
        self.letters.add(str(entry.letter.id))
        self._watcher.on_action(entry)


@dataclass(slots=True)
class _Group:
    """Open letters that `stats` reports together."""

    first_failed_at: datetime
    letters: int = 0
    due: int = 0


async def _open(
    connection: asyncpg.Connection, reader: DeadLetterReader, request: Request
) -> AsyncIterator[Letter]:
    """Yield the open letters that match a request."""
    for topic in request.topics:
        for batch in reader.batches(topic, _BATCH):
            done = await closed(connection, batch)
            for letter in batch:
                if letter.id not in done and request.matches(letter):
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
        message = f"letter {name} does not exist or has expired"
        raise LetterNotFoundError(message)
    history = await connection.fetch(
        statement("dead_letters/history"),
        without_nul(letter.service),
        without_nul(letter.original_topic),
        letter.original_partition,
        letter.original_offset,
    )
    done = await closed(connection, [letter])
    return {
        **_summary(letter),
        "open": letter.id not in done,
        "original": {
            name.removeprefix("original-"): text
            for name, text in letter.fields.items()
            if name.startswith("original-")
        },
        "headers": [[name, _json_text(value)] for name, value in letter.headers],
        "value": _json_text(letter.value),
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
        "maximum": letter.max_attempts,
        "first_failed_at": letter.first_failed_at.isoformat(),
        "last_failed_at": letter.last_failed_at.isoformat(),
        "not_before": letter.not_before.isoformat(),
        "error": letter.error,
    }


def _json_text(value: str | bytes | None) -> str | None:
    """Return bytes as text, or, if they are not UTF-8, as `base64:` followed by their Base64 encoding."""
    if not isinstance(value, bytes):
        return value
    try:
        return value.decode()
    except UnicodeDecodeError:
        return "base64:" + base64.b64encode(value).decode()
