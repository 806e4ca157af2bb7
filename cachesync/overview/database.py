"""What the database says of the system: what waits, what the live check saw, and what was reconciled."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Final, NamedTuple, TypeAlias

import asyncpg

from cachesync.errors import DatabaseUnavailableError
from cachesync.live_check.judge import LAG_BOUNDS
from cachesync.overview.histogram import quantile
from cachesync.overview.models import (
    BacklogStatus,
    ChangeReport,
    Consistency,
    Point,
    Reconciliation,
    StaleSlots,
    UnseenChange,
    ViolationReport,
)
from cachesync.postgres.registry import problem_of, read_registry
from cachesync.postgres.statements import statement
from cachesync.reconcile.drift import Findings, Kind, outcome_of
from cachesync.reconcile.models import Parameters
from cachesync.relay.sessions import SESSION_NAME

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from cachesync.entity import Entity

_MAX_LINES: Final = 100_000
_BEFORE_ALL: Final = datetime(1970, 1, 1, tzinfo=UTC)
_RUNS: Final = 10
_CHANGES: Final = 10
_VIOLATIONS: Final = 5
# Reading these takes about a tenth of a second; older changes are found by the version of the row alone.
_SEARCHED_LINES: Final = 100_000
_LAGS: Final = ", ".join(f"sum(c.lags[{number}])" for number in range(1, len(LAG_BOUNDS) + 1))

Sums: TypeAlias = "Mapping[str, Mapping[str, Sum]]"
"""What the live check has seen in a period, by service and by entity."""


class Sum(NamedTuple):
    """What the live check has seen in a period, in numbers that can be added."""

    judged: Sequence[int]
    seen: Sequence[int]
    lags: Sequence[int]
    hits: int
    misses: int
    bypasses: int


class LastLook(NamedTuple):
    """The last look of the live check at a cache.

    Attributes:
        checked_at: when it was.
        oldest_unseen: the oldest change that the cache had yet to be at or past.
        stale: the slots with other content than their rows; None if it knows of none.
    """

    checked_at: datetime
    oldest_unseen: UnseenChange | None
    stale: StaleSlots | None


async def time_and_relays(connection: asyncpg.Connection) -> tuple[datetime, int]:
    """Return the time of the server, and the number of relays that are connected."""
    (record,) = await connection.fetch(statement("overview/now"), SESSION_NAME)
    return record["now"], record["relays"]


async def backlog(connection: asyncpg.Connection, relays: int) -> BacklogStatus:
    """Return the changes that the relay has yet to publish."""
    (record,) = await connection.fetch(statement("relay/backlog"), _MAX_LINES, _BEFORE_ALL)
    entity = None
    if record["first"] is not None:
        entity = await connection.fetchval(statement("overview/oldest_unpublished"), record["first"])
    return BacklogStatus(changes=record["changes"], age_s=record["age"], entity=entity, relays=relays)


async def last_looks(connection: asyncpg.Connection) -> dict[str, LastLook]:
    """Return the last look of the live check at each cache, by service."""
    looks = {}
    for record in await connection.fetch(statement("overview/cache_states")):
        unseen = None
        if record["oldest_unseen_s"] is not None:
            unseen = UnseenChange(
                entity=record["oldest_unseen_entity"],
                key=record["oldest_unseen_key"] or "",
                version=record["oldest_unseen_version"],
                age_s=max(0.0, record["oldest_unseen_s"]),
            )
        stale = None
        if record["stale_slots"] is not None:
            stale = StaleSlots(
                slots=record["stale_slots"], entity=record["stale_entity"], key=record["stale_key"]
            )
        looks[record["service"]] = LastLook(record["checked_at"], unseen, stale)
    return looks


class Capture(NamedTuple):
    """What the catalog says of the declared entities.

    Attributes:
        problems: why changes may not be captured, or reads go past the cache, by entity.
        repartitioned: the entities with partitions that were attached or detached, which the relay follows.
    """

    problems: Mapping[str, str]
    repartitioned: Collection[str]


NOT_COMPARED: Final = Capture({}, ())
"""What is known of the catalog if it could not be compared."""


async def capture(connection: asyncpg.Connection, entities: Mapping[str, Entity]) -> Capture:
    """Compare the declared entities with the catalog.

    Raises:
        NotInstalledError: the database side is missing, or was installed by an earlier version.
        DatabaseUnavailableError: a table is locked.
    """
    try:
        registry = await read_registry(connection, waits=False)
    except asyncpg.LockNotAvailableError as error:
        message = "a table is locked, as by a long `ALTER TABLE`, so that the triggers could not be compared"
        raise DatabaseUnavailableError(message) from error
    problems = {name: problem_of(entity, registry.get(name)) for name, entity in entities.items()}
    return Capture(
        {name: problem for name, problem in problems.items() if problem is not None},
        {name for name, one in registry.items() if one.partitions_changed},
    )


async def sums(connection: asyncpg.Connection, period: timedelta) -> Sums:
    """Return what the live check has seen in the last period."""
    query = statement("overview/consistency", lags=f"ARRAY[{_LAGS}]::bigint []")
    added: dict[str, dict[str, Sum]] = {}
    for service, entity, *numbers in await connection.fetch(query, period):
        added.setdefault(service, {})[entity] = Sum(*numbers)
    return added


def consistency_of(added: Sums, service: str, entity: str | None = None) -> Consistency:
    """Return what the live check has seen of a cache.

    Args:
        added: what it has seen in a period.
        service: the cache.
        entity: the entity; None for all of them, with that of the live check.
    """
    entities = added.get(service, {})
    mine = [*entities.values()] if entity is None else [entities[entity]] if entity in entities else []
    if not mine:
        return Consistency()
    lags = _added(one.lags for one in mine)
    return Consistency(
        judged=_added(one.judged for one in mine),
        seen=_added(one.seen for one in mine),
        lag_p50_s=quantile(lags, 0.5),
        lag_p99_s=quantile(lags, 0.99),
        hits=sum(one.hits for one in mine),
        misses=sum(one.misses for one in mine),
        bypasses=sum(one.bypasses for one in mine),
    )


def _added(counts: Iterable[Sequence[int]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*counts, strict=True)))


async def history(
    connection: asyncpg.Connection,
    period: timedelta,
    step: timedelta,
    service: str | None,
    entity: str | None,
    *,
    each_entity: bool,
) -> tuple[Point, ...]:
    """Return what the live check has seen in the last period, step by step."""
    query = statement("overview/history", lags=f"ARRAY[{_LAGS}]::bigint []")
    return tuple(
        Point(
            at=record["at"],
            service=record["service"],
            entity=record["entity"],
            changes=record["judged"],
            lag_p50_s=quantile(record["lags"], 0.5),
            lag_p99_s=quantile(record["lags"], 0.99),
            seen_1s=record["seen"] / record["judged"] if record["judged"] else None,
            hit_rate=record["hits"] / record["reads"] if record["reads"] else None,
        )
        for record in await connection.fetch(query, period, step, service, entity, each_entity)
    )


async def reconciliations(
    connection: asyncpg.Connection,
) -> tuple[tuple[Reconciliation, ...], dict[tuple[str, str], int]]:
    """Return the last runs, the newest first, and the slots that the last full ones examined.

    Returns:
        What each run has found in each cache; and the number of slots by service and entity.
    """
    runs = []
    entries: dict[tuple[str, str], int] = {}
    for record in await connection.fetch(statement("overview/reconciliations"), _RUNS):
        parameters = Parameters.model_validate_json(record["parameters"])
        found = json.loads(record["services"]) if record["services"] else {}
        for service in parameters.services:
            by_entity = {name: Findings.model_validate(one) for name, one in found.get(service, {}).items()}
            total = Findings()
            for entity, one in by_entity.items():
                total.merge(one)
                if parameters.mode == "full":
                    entries.setdefault((service, entity), one.examined)
            runs.append(_run(record, parameters, service, total))
    return tuple(runs), entries


def _run(record: asyncpg.Record, parameters: Parameters, service: str, total: Findings) -> Reconciliation:
    finished_at = record["finished_at"]
    return Reconciliation(
        service=service,
        run=record["run"],
        started_at=record["started_at"],
        finished_at=finished_at,
        mode=parameters.mode,
        deep=parameters.deep,
        dry_run=parameters.dry_run,
        outcome=None if finished_at is None else outcome_of(total, dry_run=parameters.dry_run),
        examined=total.examined,
        found={kind.value: getattr(total, kind) for kind in Kind if getattr(total, kind)},
        repaired=total.repaired,
        failed=total.failed,
        link=record["link"],
    )


async def changes(
    connection: asyncpg.Connection, entity: str, key: str, versions: Collection[int]
) -> tuple[ChangeReport, ...]:
    """Return the last changes of a row, the newest first.

    Args:
        connection: a connection with the role `cachesync_worker`.
        entity: the entity.
        key: the text of the key.
        versions: versions of the row; the change that made each is found however old it is.
    """
    records = await connection.fetch(
        statement("overview/changes"), entity, key, list(versions), _CHANGES, _SEARCHED_LINES
    )
    return tuple(
        ChangeReport(
            version=record["version"],
            operation=record["operation"],
            source=record["source"],
            changed_at=record["changed_at"],
            due_at=record["relay_at"],
            published_at=record["published_at"],
            shared=record["shared"],
        )
        for record in records
    )


async def relay_works(connection: asyncpg.Connection, since: datetime) -> bool:
    """Return whether a relay has published a change that was due after a time."""
    works: bool = await connection.fetchval(statement("overview/relay_works"), since)
    return works


async def violations(connection: asyncpg.Connection, entity: str, key: str) -> tuple[ViolationReport, ...]:
    """Return what the live check saw wrong with a key, the newest first."""
    records = await connection.fetch(statement("overview/violations"), entity, key, _VIOLATIONS)
    return tuple(
        ViolationReport.model_validate({**record, "found": json.loads(record["found"])}) for record in records
    )
