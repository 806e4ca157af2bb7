"""Why a cache holds what it holds of a key, and what to do: a decision over facts, in words.

Nothing here looks anything up, so that every branch can be tested with facts alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, NamedTuple

from cachesync.overview.words import START_RELAY, ago, brief, cause, counted, duration, sentence, waiting

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from datetime import datetime

    from cachesync.overview.models import (
        Assessment,
        ChangeReport,
        LetterReport,
        RedisState,
        RowReport,
        SlotKind,
    )

# A change is in every cache within milliseconds; a busy machine takes longer.
_PATIENCE_SECONDS: Final = 2.0
_INSTALL: Final = "Run `cachesync install`."
_BAD_FIRST: Final[tuple[Assessment, ...]] = ("wrong", "on its way", "unknown")


@dataclass(frozen=True, slots=True)
class Slot:
    """What a slot holds.

    Attributes:
        kind: what it is.
        version: the version of a value, or the floor of a lease.
        fingerprint: the schema fingerprint of a value.
        payload: the payload of a value.
        ttl_s: how long it stays, in seconds; None if it is empty or does not expire.
    """

    kind: SlotKind
    version: int | None = None
    fingerprint: str | None = None
    payload: str | None = None
    ttl_s: float | None = None


@dataclass(frozen=True, slots=True)
class Consumption:
    """Who consumes the partition of a key for a cache.

    Attributes:
        group: the consumer group of the cache.
        members: the number of its living members.
        partition: the partition, such as `cachesync.student[0]`; the topic if the partition is not known.
        consumer: the client id of the member that has the partition; None if none has.
        lag: the messages of it that are yet to be applied.
    """

    group: str
    members: int
    partition: str
    consumer: str | None
    lag: int


@dataclass(frozen=True, slots=True)
class CacheFacts:
    """What is known of one cache.

    Attributes:
        service: the service.
        slot: what its slot of the key holds.
        redis, redis_problem: whether its Redis responds and accepts writes, and what it says if not.
        consumption: who consumes for it; None if Kafka does not respond.
        letters: its open dead letters of the key.
    """

    service: str
    slot: Slot
    redis: RedisState
    redis_problem: str | None
    consumption: Consumption | None
    letters: tuple[LetterReport, ...] = ()

    @property
    def reason(self) -> str:
        """What its Redis says, to be quoted in a sentence."""
        return cause(self.redis_problem or "no reason")


@dataclass(frozen=True, slots=True)
class KeyFacts:
    """What is known of a key.

    Attributes:
        now: the time of the database.
        entity: the entity.
        fingerprint: the schema fingerprint of its payloads.
        row: the row; None if there is none.
        changes: its last changes in the change log, the newest first.
        capture_problem: why changes of the entity may not be captured; None if they are.
        is_repartitioned: whether its table has partitions that were attached or detached, which the relay has
            yet to follow.
        relays: the number of relays that are connected to the database.
        relay_works: whether later changes than the oldest unpublished one of the key were published.
        kafka_problem: why Kafka does not respond; None if it does.
    """

    now: datetime
    entity: str
    fingerprint: str
    row: RowReport | None
    changes: tuple[ChangeReport, ...] = ()
    capture_problem: str | None = None
    is_repartitioned: bool = False
    relays: int = 1
    relay_works: bool = True
    kafka_problem: str | None = None


class Verdict(NamedTuple):
    """A verdict.

    Attributes:
        assessment: in one word.
        text: in words.
        actions: what to do, one step each.
    """

    assessment: Assessment
    text: str
    actions: tuple[str, ...] = ()


def missed_changes(changes: Sequence[ChangeReport], slot: Slot) -> list[ChangeReport]:
    """Return the changes, the newest first, that are newer than a slot."""
    return [change for change in changes if change.version > (slot.version or 0)]


def verdict_of_cache(facts: KeyFacts, cache: CacheFacts) -> Verdict:
    """Return whether a cache answers with the row as it is, and if not, why."""
    if cache.slot.kind == "value":
        return _of_value(facts, cache)
    if cache.slot.kind == "absent":
        return _of_absent(facts, cache)
    return _of_miss(cache)


def _of_miss(cache: CacheFacts) -> Verdict:
    """Return the verdict on a slot that no read is answered from."""
    service, slot = cache.service, cache.slot
    if slot.kind == "unknown" and cache.redis != "unavailable":
        text = f"The slot of {service} cannot be read ({sentence(slot.payload or cache.reason)})."
        return Verdict("unknown", text, (f"Allow this login to read the Redis of {service}.",))
    if slot.kind == "unknown":
        text = (
            f"The Redis of {service} does not respond ({cache.reason}): reads of {service} ask the database."
        )
        return Verdict("unknown", text, (f"Check the Redis of {service}.",))
    if slot.kind == "unreadable":
        text = (
            f"The slot of {service} holds something that is no slot, which reads replace: somebody, or "
            "another program, wrote to its Redis."
        )
        return Verdict("not cached", text, (f"Find out what else writes to the Redis of {service}.",))
    if slot.kind == "lease":
        left = "" if slot.ttl_s is None else f" The lease ends in {duration(slot.ttl_s)} at the latest."
        text = f"{service} is loading or writing the row; until then, reads ask the database.{left}"
        return _not_cached(cache, text)
    return _not_cached(cache, f"{service} has not cached the key: the next read asks the database.")


def _of_absent(facts: KeyFacts, cache: CacheFacts) -> Verdict:
    service, row = cache.service, facts.row
    if row is None:
        return Verdict("right", f"{service} knows that the row does not exist.")
    held = f"{service} is wrong: it says that there is no row, but there is one, at version {row.version}."
    return _late(facts, cache, held)


def _of_value(facts: KeyFacts, cache: CacheFacts) -> Verdict:
    service, slot, row = cache.service, cache.slot, facts.row
    version = slot.version or 0
    if slot.fingerprint != facts.fingerprint:
        text = (
            f"{service} holds version {version} with another schema ({slot.fingerprint}, now "
            f"{facts.fingerprint}), which reads replace with the row."
        )
        return _not_cached(cache, text)
    if row is None:
        held = f"{service} is stale: it holds version {version}, but the row does not exist."
        return _late(facts, cache, held)
    if version < row.version:
        held = f"{service} is stale: it holds version {version}, the row is at {row.version}."
        return _late(facts, cache, held)
    if version > row.version:
        text = (
            f"{service} is ahead: it holds version {version}, the row is at {row.version}. The database was "
            "probably restored from a backup."
        )
        return _wrong(cache, text, _reconcile(facts, cache))
    if slot.payload == row.payload:
        return Verdict("right", f"{service} holds the row, at version {version}.")
    return _other_content(facts, cache)


def _other_content(facts: KeyFacts, cache: CacheFacts) -> Verdict:
    """Return the verdict on a value that differs from the row at the same version."""
    text = (
        f"{cache.service} is wrong: it holds another row than the database, both at version "
        f"{cache.slot.version}."
    )
    reconcile = _reconcile(facts, cache, deep=True)
    if facts.capture_problem is None:
        text += " The row was changed while its triggers were off, or somebody wrote to the Redis."
        return _wrong(cache, text, reconcile)
    text += f" Changes are not captured: {brief(facts.capture_problem)}."
    return _wrong(cache, text, _INSTALL, reconcile)


def _not_cached(cache: CacheFacts, text: str) -> Verdict:
    """Return the verdict on a slot that no read is answered from; it stays so if nothing can be written."""
    if cache.redis != "refuses writes":
        return Verdict("not cached", text)
    text += f" Its Redis refuses writes ({cache.reason}), so that it stays so."
    return Verdict("not cached", text, (_refusing(cache),))


def _late(facts: KeyFacts, cache: CacheFacts, held: str) -> Verdict:
    """Return the verdict on a slot that has missed a change."""
    letter = next(iter(cache.letters), None)
    if letter is not None:
        return _with_letter(facts, cache, held, letter)
    missed = missed_changes(facts.changes, cache.slot)
    if not missed:
        return _unlogged(facts, cache, held)
    verdict = _missed(facts, cache, held, missed[0])
    # The newest change of a row that changes all the time is always on its way.
    return verdict if verdict.assessment == "wrong" else _missed(facts, cache, held, missed[-1])


def _missed(facts: KeyFacts, cache: CacheFacts, held: str, change: ChangeReport) -> Verdict:
    """Return the verdict on a slot that has missed this change, of which there is no dead letter."""
    made = f"Change {change.version} ({change.operation} by {change.source}, "
    made += f"{ago(facts.now, change.changed_at)})"
    if change.published_at is None:
        return _unpublished(facts, cache, held, change, made)
    made += f" was published {ago(facts.now, change.published_at)}"
    if cache.redis == "refuses writes":
        text = (
            f"{held} {made}, but the Redis of {cache.service} refuses writes "
            f"({cache.reason}): the stream waits for it."
        )
        return _wrong(cache, text, _refusing(cache))
    if cache.consumption is None:
        reason = cause(facts.kafka_problem or "no response")
        text = f"{held} {made}, but Kafka does not respond ({reason}): the stream waits for it."
        return _wrong(cache, text, "Bring Kafka back; everything then goes on by itself.")
    return _published(facts, cache, cache.consumption, f"{held} {made}", change)


def _with_letter(facts: KeyFacts, cache: CacheFacts, held: str, letter: LetterReport) -> Verdict:
    if letter.stage == "decode":
        text = (
            f"{held} A message with its key is not a change, and is the dead letter {letter.letter}: "
            f"{sentence(letter.error)}."
        )
        discard = (
            f"Find out what sent it, and run `cachesync dead-letters discard {letter.letter} --reason TEXT`."
        )
        return _wrong(cache, text, _reconcile(facts, cache), discard)
    failed = (
        f"{held} Change {letter.version} could not be applied and is the dead letter {letter.letter}, which "
        f"failed {ago(facts.now, letter.last_failed_at)} in stage {letter.stage}: {sentence(letter.error)}."
    )
    replay = f"run `cachesync dead-letters replay {letter.letter}`."
    if letter.parked:
        return _wrong(cache, f"{failed} It is parked, and not retried.", f"Mend the cause, and {replay}")
    attempts = f"attempt {letter.attempt} of {letter.maximum}"
    if letter.not_before > facts.now:
        wait = duration((letter.not_before - facts.now).total_seconds())
        failed += f" It is retried in {wait} ({attempts})."
        return _wrong(cache, failed, f"Mend the cause; to retry it now, {replay}")
    failed += (
        f" It has been due for {duration((facts.now - letter.not_before).total_seconds())} ({attempts})."
    )
    return _wrong(cache, failed, f"See that the DAG dead_letter_retry runs, or {replay}")


def _unlogged(facts: KeyFacts, cache: CacheFacts, held: str) -> Verdict:
    """Return the verdict if no line of the change log says how the row came to be as it is."""
    if facts.capture_problem is not None:
        text = f"{held} The change is not in the change log: {brief(facts.capture_problem)}."
        return _wrong(cache, text, _INSTALL, _reconcile(facts, cache, deep=True))
    if facts.is_repartitioned:
        text = f"{held} Partitions of its table were attached or detached, which"
        if facts.relays == 0:
            text += " the relay follows: it is not running."
            return _wrong(cache, text, START_RELAY)
        return Verdict("on its way", f"{text} the relay is about to follow.")
    text = (
        f"{held} The change is not in the change log: it was made while the triggers were off, or its line "
        "has been removed since, which happens after days."
    )
    return _wrong(cache, text, _reconcile(facts, cache, deep=True))


def _unpublished(facts: KeyFacts, cache: CacheFacts, held: str, change: ChangeReport, made: str) -> Verdict:
    waiting = (facts.now - change.due_at).total_seconds()
    if waiting < 0:
        text = f"{held} {made} is not published yet: {change.source} has two seconds to do so itself."
        return Verdict("on its way", text)
    if facts.relays == 0:
        text = f"{held} {made} is not published: the relay is not running."
        return _wrong(cache, text, START_RELAY)
    if facts.kafka_problem is not None:
        text = f"{held} {made} is not published: Kafka does not respond ({cause(facts.kafka_problem)})."
        return _wrong(cache, text, "Bring Kafka back; everything then goes on by itself.")
    if waiting < _PATIENCE_SECONDS:
        return Verdict("on its way", f"{held} {made} is about to be published by the relay.")
    if facts.relay_works:
        text = (
            f"{held} {made} is not published, although the relay runs and publishes later changes: Kafka "
            "rejects it, or it waits behind a flood of changes."
        )
        return _wrong(cache, text, "Look for `changes rejected by Kafka` in the log of the relay.")
    text = f"{held} {made} is not published, although the relay runs: it publishes nothing."
    return _wrong(
        cache, text, "Look into the log of the relay (DAG outbox_relay): it says what it waits for."
    )


def _published(
    facts: KeyFacts, cache: CacheFacts, consumption: Consumption, made: str, change: ChangeReport
) -> Verdict:
    service, group = cache.service, consumption.group
    start = f"Start the DAG cache_sync, or run `cachesync stream --service {service}`."
    if consumption.members == 0:
        text = f"{made}, but nobody consumes for {service}: the consumer group {group} has no members."
        return _wrong(cache, text, start)
    if consumption.consumer is None:
        text = (
            f"{made}, but none of the {counted(consumption.members, 'member')} of the consumer group {group} "
            f"has the partition {consumption.partition}."
        )
        return _wrong(cache, text, f"If it stays so for more than a minute: {start}")
    recent = (facts.now - (change.published_at or change.changed_at)).total_seconds() < _PATIENCE_SECONDS
    if recent:
        return Verdict("on its way", f"{made}, and is about to be applied.")
    if consumption.lag:
        text = (
            f"{made}, but the consumer of {consumption.partition} for {service} "
            f"({consumption.consumer}) is behind or paused: {waiting(consumption.lag, 'message')}."
        )
        return _wrong(cache, text, f"Look into the log of the stream of {service} (DAG cache_sync).")
    text = (
        f"{made}, and the stream of {service} has gone past it. So something else changed the slot: "
        "an old copy of the Redis, a failover that lost writes, or somebody."
    )
    return _wrong(cache, text, _reconcile(facts, cache))


def _wrong(cache: CacheFacts, text: str, *actions: str) -> Verdict:
    if cache.slot.ttl_s is not None:
        text += f" Left alone, the slot expires in {duration(cache.slot.ttl_s)}."
    return Verdict("wrong", text, actions)


def _refusing(cache: CacheFacts) -> str:
    return f"Make the Redis of {cache.service} accept writes: look at its memory, disk, role and ACL."


def _reconcile(facts: KeyFacts, cache: CacheFacts, *, deep: bool = False) -> str:
    options = f"{'--deep ' if deep else ''}--service {cache.service} --entity {facts.entity}"
    return f"Run `cachesync reconcile {options}`."


def verdict_of_key(facts: KeyFacts, caches: Mapping[str, Verdict]) -> Verdict:
    """Return the verdict on a key from those on all caches, by service."""
    verdicts = list(caches.values())
    worst = next((one for one in _BAD_FIRST if any(each.assessment == one for each in verdicts)), None)
    concerned = [one for one in verdicts if worst is None or one.assessment == worst]
    actions = tuple(dict.fromkeys(action for one in concerned for action in one.actions))
    if worst is not None:
        texts = [one.text for one in concerned]
        if worst == "unknown":
            texts.append(_all_right(facts, caches))
        return Verdict(worst, " ".join([*texts, *actions]), actions)
    text = _all_right(facts, caches)
    if facts.capture_problem is not None:
        text += f" But changes of it may go unnoticed: {brief(facts.capture_problem)}."
    cached = any(one.assessment == "right" for one in verdicts)
    return Verdict("right" if cached else "not cached", " ".join([text, *actions]), actions)


def _all_right(facts: KeyFacts, caches: Mapping[str, Verdict]) -> str:
    """Return what the caches have, none of which is wrong."""
    if facts.row is None:
        return "The row does not exist, and no cache says otherwise."
    holders = [service for service, verdict in caches.items() if verdict.assessment == "right"]
    if not holders:
        return f"No cache has the row, which is at version {facts.row.version}: the next read loads it."
    return f"Every cache that has the row has version {facts.row.version}: {', '.join(holders)}."
