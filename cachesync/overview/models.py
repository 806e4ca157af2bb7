"""The answers: the overview of all caches, its history, and what is known of one key.

Times are UTC. What could not be found out is None, and `unavailable` says why.
"""

from __future__ import annotations

import math
from datetime import datetime  # noqa: TC003 - pydantic reads it
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

from cachesync.reconcile.drift import Outcome  # noqa: TC001 - pydantic reads it

Severity = Literal["critical", "warning"]
RedisState = Literal["ok", "refuses writes", "unavailable"]
SlotKind = Literal["value", "absent", "lease", "empty", "unreadable", "unknown"]
"""What a slot holds; `unknown` if its Redis does not respond."""
Assessment = Literal["right", "not cached", "on its way", "wrong", "unknown"]
"""Whether a cache answers with the row as it is.

`not cached`: the next read asks the database. `on its way`: a change was made a moment ago, and nothing is
wrong so far. `unknown`: the cache or the database does not respond.
"""

FourCounts = Annotated[tuple[int, ...], Field(min_length=4, max_length=4)]


class _Model(BaseModel):
    model_config = ConfigDict(frozen=True)


class Consistency(_Model):
    """What the live check has seen of the changes in a period.

    Attributes:
        judged: for each of the live check's `HORIZONS` (0.1, 1, 5 and 30 s), the number of changes that were
            followed for that long.
        seen: of those, the number that the cache was at or past in time.
        lag_p50_s, lag_p99_s: quantiles of the time from the commit to the cache, in seconds, as far
            as the counts of the live check tell; None without changes.
        hits, misses, bypasses: how the service's reads were answered.
    """

    judged: FourCounts = (0, 0, 0, 0)
    seen: FourCounts = (0, 0, 0, 0)
    lag_p50_s: float | None = None
    lag_p99_s: float | None = None
    hits: int = 0
    misses: int = 0
    bypasses: int = 0

    @computed_field  # type: ignore[prop-decorator]
    @property
    def shares(self) -> tuple[float | None, ...]:
        """For each of `HORIZONS`, the share of changes that the cache was at or past in time, up to 1."""
        return tuple(
            seen / judged if judged else None for seen, judged in zip(self.seen, self.judged, strict=True)
        )

    @computed_field  # type: ignore[prop-decorator]
    @property
    def nines(self) -> tuple[float | None, ...]:
        """For each of `HORIZONS`, the share as a number of nines: 3.0 for 99.9 %.

        If no change was late, as many as this number of changes can show.
        """
        return tuple(
            math.log10(judged / max(1, judged - seen)) if judged else None
            for seen, judged in zip(self.seen, self.judged, strict=True)
        )

    @computed_field  # type: ignore[prop-decorator]
    @property
    def hit_rate(self) -> float | None:
        """The share of reads that the cache answered, up to 1; None without reads."""
        reads = self.hits + self.misses + self.bypasses
        return self.hits / reads if reads else None


class EntityStatus(_Model):
    """One entity in one cache.

    Attributes:
        entity: its name.
        hour, day: what the live check has seen in the last hour and in the last day; the day is None if it
            was not asked for.
        entries: the number of its slots that the last full reconciliation has examined.
        consumer_lag: the messages of its topic that the cache's consumers have yet to apply.
        open_letters, parked_letters: its dead letters that are still retried, and those that are not.
        capture_problem: why its changes may not be captured, and what to run; None if they are.
    """

    entity: str
    hour: Consistency
    day: Consistency | None = None
    entries: int | None = None
    consumer_lag: int | None = None
    open_letters: int | None = None
    parked_letters: int | None = None
    capture_problem: str | None = None


class Consumer(_Model):
    """A member of the consumer group of a cache.

    Attributes:
        client: its client id.
        host: where it runs.
        partitions: the partitions that it consumes, such as `cachesync.student[0]`.
    """

    client: str
    host: str
    partitions: tuple[str, ...]


class UnseenChange(_Model):
    """A change that a cache has yet to be at or past.

    Attributes:
        entity, key, version: the change.
        age_s: how long ago it was committed, in seconds.
    """

    entity: str
    key: str
    version: int
    age_s: float


class StaleSlots(_Model):
    """Slots with other content than their rows, or with a higher version, as the live check sees them.

    Attributes:
        slots: their number.
        entity, key: one of them.
    """

    slots: int
    entity: str
    key: str


class CacheStatus(_Model):
    """The cache of one service.

    Attributes:
        service: the service.
        redis: whether its Redis responds and accepts writes.
        redis_problem: if not, what it says.
        keys: the number of keys in its Redis.
        memory_bytes: the memory that its Redis uses.
        group: the consumer group that applies changes to it.
        consumers: the members of that group.
        unconsumed: the partitions that no member has.
        consumer_lag: the messages that they have yet to apply.
        oldest_unseen: the oldest change that it has yet to be at or past, as the live check sees it; None if
            there is none.
        stale: the slots with other content than their rows; None if the live check knows of none.
        recent, hour, day: what the live check has seen of all entities, recently being the last two minutes;
            the day is None if it was not asked for.
        entities: each entity.
    """

    service: str
    redis: RedisState | None = None
    redis_problem: str | None = None
    keys: int | None = None
    memory_bytes: int | None = None
    group: str
    consumers: tuple[Consumer, ...] | None = None
    unconsumed: tuple[str, ...] | None = None
    consumer_lag: int | None = None
    oldest_unseen: UnseenChange | None = None
    stale: StaleSlots | None = None
    recent: Consistency
    hour: Consistency
    day: Consistency | None = None
    entities: tuple[EntityStatus, ...]


class BacklogStatus(_Model):
    """The changes that the relay has yet to publish.

    Attributes:
        changes: their number; counted up to 100,000 lines of the change log.
        age_s: the time since the oldest of them is due, in seconds; 0 if there are none.
        entity: its entity.
        relays: the number of relays that are connected to the database.
    """

    changes: int
    age_s: float
    entity: str | None
    relays: int


class LetterGroup(_Model):
    """Open dead letters with the same cause.

    Attributes:
        service, entity: the cache and the entity.
        stage: the step at which they failed: `decode`, `row` or `cache`.
        reason: the error of the most recent one.
        parked: whether they are in the parking lot, and no longer retried.
        letters: their number.
        due: of those, the number that the next retry takes.
        due_s: for how long the first of these has been due, in seconds; 0 if none is.
        first_failed_at: when the first of them failed for the first time.
        example: the name of the most recent one, such as `parking-lot:0:17`.
    """

    service: str
    entity: str
    stage: str
    reason: str
    parked: bool
    letters: int
    due: int
    due_s: float
    first_failed_at: datetime
    example: str


class Letters(_Model):
    """The open dead letters.

    Attributes:
        groups: those with the same cause, together.
        open: the number of those that are still retried.
        due: of those, the number that the next retry takes.
        parked: the number of those in the parking lot.
    """

    groups: tuple[LetterGroup, ...]
    open: int
    due: int
    parked: int


class Reconciliation(_Model):
    """What a run of the reconciliation has found in one cache.

    Attributes:
        service: the cache.
        run: the run's id.
        started_at, finished_at: when it was planned, and when it reported; None if it has not.
        mode: `full` or `delta`.
        deep: whether it compared payloads.
        dry_run: whether it only reported.
        outcome: `clean`, `repaired`, `drift` (a dry run) or `unrepaired`, in this cache; None if it has not
            reported.
        examined: the number of slots.
        found: the number of wrong slots of each kind, without zeros.
        repaired, failed: of those, the number that were repaired, and whose repair Redis rejected.
        link: where Airflow shows the run; None for a run of the command.
    """

    service: str
    run: str
    started_at: datetime
    finished_at: datetime | None
    mode: Literal["full", "delta"]
    deep: bool
    dry_run: bool
    outcome: Outcome | None
    examined: int
    found: dict[str, int]
    repaired: int
    failed: int
    link: str | None


class Problem(_Model):
    """Something that an operator should know.

    Attributes:
        severity: `critical` if a cache is or will be wrong or out of use; `warning` otherwise.
        service, entity: what it concerns; None if it concerns all.
        key: a key that is wrong, of which `show` says why; None if there is none.
        text: what is wrong, since when.
        action: what to do.
    """

    severity: Severity
    service: str | None = None
    entity: str | None = None
    key: str | None = None
    text: str
    action: str


class Status(_Model):
    """The overview of all caches.

    Attributes:
        taken_at: when it was taken.
        live_check_at: when the live check last looked; None if it never did.
        problems: what is wrong, the worst first.
        caches: the cache of each service.
        backlog: the changes that are not published.
        letters: the open dead letters.
        reconciliations: the last runs of each service, the newest first.
        unavailable: why a part is None, by the part's name, such as `kafka` or `redis sb`.
    """

    taken_at: datetime
    live_check_at: datetime | None
    problems: tuple[Problem, ...]
    caches: tuple[CacheStatus, ...]
    backlog: BacklogStatus | None
    letters: Letters | None
    reconciliations: tuple[Reconciliation, ...] | None
    unavailable: dict[str, str]


class Point(_Model):
    """What the live check has seen of one cache in one period.

    Attributes:
        at: the beginning of the period.
        service: the cache.
        entity: the entity; None for all of them.
        changes: the number of changes that were followed for a second.
        lag_p50_s, lag_p99_s: as in `Consistency`.
        seen_1s: the share of changes that the cache was at or past after one second, up to 1.
        hit_rate: the share of reads that the cache answered, up to 1.
    """

    at: datetime
    service: str
    entity: str | None
    changes: int
    lag_p50_s: float | None
    lag_p99_s: float | None
    seen_1s: float | None
    hit_rate: float | None


class RowReport(_Model):
    """A row of the database.

    Attributes:
        version: its row version.
        payload: its JSON, as it is cached and served.
    """

    version: int
    payload: str


class SlotReport(_Model):
    """What one cache holds of a key.

    Attributes:
        service: the cache.
        name: the slot's Redis key.
        kind: what the slot holds.
        version: the version of a value, or the floor of a lease.
        ttl_s: how long it stays, in seconds; None if it is empty or does not expire.
        payload: the JSON of a value; what it is not, as text, if the slot is unreadable.
        partition: the partition that carries the key's changes, such as `cachesync.student[0]`.
        consumer_lag: the messages of that partition that the cache's consumers have yet to apply.
        consumer: the client id of the consumer that has the partition; None if none has.
        assessment: whether the cache answers with the row as it is.
        verdict: the same in words, and why.
    """

    service: str
    name: str
    kind: SlotKind
    version: int | None = None
    ttl_s: float | None = None
    payload: str | None = None
    partition: str | None = None
    consumer_lag: int | None = None
    consumer: str | None = None
    assessment: Assessment
    verdict: str


class ChangeReport(_Model):
    """A change of a row, from the change log.

    Attributes:
        version: its version.
        operation: `upsert`, `delete` or `truncate`.
        source: the service or database user that made it.
        changed_at: when the statement that made it ended.
        due_at: from when the relay publishes it; until then, the service that made it does.
        published_at: when it was published; None if it is not.
        shared: whether it shares its line with other rows of a bulk statement.
    """

    version: int
    operation: Literal["upsert", "delete", "truncate"]
    source: str
    changed_at: datetime
    due_at: datetime
    published_at: datetime | None
    shared: bool


class LetterReport(_Model):
    """An open dead letter of a key.

    Attributes:
        letter: its name, such as `parking-lot:0:17`.
        service: the cache.
        version: the version of its change; None if it cannot be decoded.
        stage: the step at which it failed.
        parked: whether it is no longer retried.
        attempt, maximum: how often it has failed, and after how many failures it is parked.
        last_failed_at: when it failed last.
        not_before: when it is due.
        error: why it failed.
    """

    letter: str
    service: str
    version: int | None
    stage: str
    parked: bool
    attempt: int
    maximum: int
    last_failed_at: datetime
    not_before: datetime
    error: str


class ViolationReport(_Model):
    """What the live check once saw wrong with a key.

    Attributes:
        service: the cache.
        kind: `behind`, `stale`, `false absent` or `unreadable`.
        version: the version that the cache should have been at.
        committed_at: when that was committed; None if it is not known.
        noticed_at: when it was seen to be wrong.
        seen_at: when it was seen to be right again; None if it was not.
        found: what the slot held.
    """

    service: str
    kind: str
    version: int | None
    committed_at: datetime | None
    noticed_at: datetime
    seen_at: datetime | None
    found: dict[str, object]


class KeyReport(_Model):
    """What is known of one key.

    Attributes:
        taken_at: when it was found out.
        entity: the entity.
        key: the text of the key, in canonical form.
        verdict: whether the caches are right, and if not, why, and what to do; in words.
        assessment: that of the worst cache.
        actions: what to do, one step each; empty if there is nothing to do.
        row: the row; None if there is none.
        caches: what each cache holds.
        changes: its last changes, the newest first.
        letters: its open dead letters.
        violations: what the live check saw wrong with it, the newest first.
        unavailable: why a part is missing, by the part's name, such as `kafka` or `redis sb`.
    """

    taken_at: datetime
    entity: str
    key: str
    verdict: str
    assessment: Assessment
    actions: tuple[str, ...]
    row: RowReport | None
    caches: tuple[SlotReport, ...]
    changes: tuple[ChangeReport, ...]
    letters: tuple[LetterReport, ...] | None
    violations: tuple[ViolationReport, ...] | None
    unavailable: dict[str, str]
