"""A made-up state of the system, with something of everything that the page shows."""

from __future__ import annotations

import math
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from cachesync.errors import InvalidValueError
from cachesync.overview.models import (
    BacklogStatus,
    CacheStatus,
    ChangeReport,
    Consistency,
    Consumer,
    EntityStatus,
    KeyReport,
    LetterGroup,
    LetterReport,
    Letters,
    Point,
    Problem,
    Reconciliation,
    RowReport,
    SlotReport,
    Status,
    UnseenChange,
    ViolationReport,
)

if TYPE_CHECKING:
    from cachesync_airflow.page.reader import Period

SERVICES = ("sa", "sb")
# When all of it happened.
_THEN = datetime.now(UTC)
_NAMES = (
    "student", "course", "grade", "invoice", "invoice_line", "customer", "order", "order_line", "product",
    "price", "stock", "supplier", "address", "payment", "refund", "voucher", "shipment", "parcel", "carrier",
    "warehouse", "employee", "team", "role", "permission", "session", "device", "message", "thread",
    "attachment", "document", "folder", "tag", "review", "rating", "question", "answer", "campaign",
    "segment", "subscription", "plan", "feature", "quota", "usage", "meter", "tariff", "region", "country",
    "currency", "exchange_rate", "holiday",
)  # fmt: skip


class SampleOverview:
    """Answers like an overview of a system with problems.

    Args:
        entities: the number of entities.
        healthy: whether nothing is wrong.

    Attributes:
        asked: how often it was asked for the status.
    """

    def __init__(self, entities: int = 6, *, healthy: bool = False) -> None:
        self._entities = _NAMES[:entities]
        self._healthy = healthy
        self.asked = 0

    async def status(self, *, day: bool = True) -> Status:
        """Return the overview of all caches."""
        self.asked += 1
        now = datetime.now(UTC)
        return Status(
            taken_at=now,
            live_check_at=now - timedelta(seconds=1),
            problems=() if self._healthy else self._problems(),
            caches=tuple(self._cache(service, day=day) for service in SERVICES),
            backlog=BacklogStatus(changes=0, age_s=0, entity=None, relays=1)
            if self._healthy
            else BacklogStatus(changes=128, age_s=42.5, entity="student", relays=0),
            letters=Letters(groups=(), open=0, due=0, parked=0) if self._healthy else self._letters(),
            reconciliations=self._reconciliations(),
            unavailable={},
        )

    async def history(
        self,
        period: Period,
        service: str | None = None,
        entity: str | None = None,
        *,
        each_entity: bool = False,
    ) -> tuple[Point, ...]:
        """Return what the live check has seen."""
        step, count = (60, 60) if period == "hour" else (900, 96)
        begin = datetime.now(UTC).replace(second=0, microsecond=0) - timedelta(seconds=step * count)
        return tuple(
            Point(
                at=begin + timedelta(seconds=step * n),
                service=one,
                entity=name,
                changes=300,
                lag_p50_s=0.008 + 0.004 * math.sin(n / 5),
                lag_p99_s=4.0 if one == "sb" and n in {41, 42, 43} else 0.05 + 0.02 * math.sin(n / 3),
                seen_1s=0.93 if one == "sb" and n in {41, 42, 43} else 1.0,
                hit_rate=0.96 + 0.02 * math.sin(n / 9),
            )
            for one in ((service,) if service else SERVICES)
            for name in (self._entities if each_entity else (entity,))
            for n in range(count)
        )

    async def show(self, entity: str, key: str) -> KeyReport:
        """Return what is known of one key."""
        if not key.isdigit():
            raise InvalidValueError(None, "a number is required")
        now = datetime.now(UTC)
        row = '{"id": ' + key + ', "name": "Ann", "age": 21, "email": "ann@example.com"}'
        stale = '{"id": ' + key + ', "name": "Ann", "age": 20, "email": "ann@example.com"}'
        where = {"partition": f"cachesync.{entity}[3]", "consumer_lag": 0}
        return KeyReport(
            taken_at=now,
            entity=entity,
            key=key,
            verdict="sb is stale: it holds version 1790000000000017, the row is at 1790000000000019. Change "
            "1790000000000019 was committed 42 s ago and is not published: the relay is not running.",
            assessment="wrong",
            actions=("Start the DAG outbox_relay.", "If it runs, look at the log of its task relay."),
            row=RowReport(version=1790000000000019, payload=row),
            caches=(
                SlotReport(
                    service="sa",
                    name=f"sa:{entity}:{key}",
                    kind="value",
                    version=1790000000000019,
                    ttl_s=3388,
                    payload=row,
                    consumer="cachesync-sa-0",
                    assessment="right",
                    verdict="sa holds the row as it is.",
                    **where,
                ),
                SlotReport(
                    service="sb",
                    name=f"sb:{entity}:{key}",
                    kind="value",
                    version=1790000000000017,
                    ttl_s=3211,
                    payload=stale,
                    consumer="cachesync-sb-0",
                    assessment="wrong",
                    verdict="sb holds version 1790000000000017, which is older than the row.",
                    **where,
                ),
            ),
            changes=tuple(
                ChangeReport(
                    version=1790000000000019 - 2 * n,
                    operation="upsert",
                    source="sa" if n else "postgres",
                    changed_at=now - timedelta(seconds=42 + 600 * n),
                    due_at=now - timedelta(seconds=40 + 600 * n),
                    published_at=now - timedelta(seconds=42 + 600 * n - 0.01) if n else None,
                    shared=False,
                )
                for n in range(3)
            ),
            letters=(
                LetterReport(
                    letter="parking-lot:0:17",
                    service="sb",
                    version=1790000000000015,
                    stage="cache",
                    parked=True,
                    attempt=5,
                    maximum=5,
                    last_failed_at=now - timedelta(hours=2),
                    not_before=now - timedelta(hours=2),
                    error="NOPERM User sb has no permissions to access one of the keys used as arguments",
                ),
            ),
            violations=(
                ViolationReport(
                    service="sb",
                    kind="behind",
                    version=1790000000000019,
                    committed_at=now - timedelta(seconds=42),
                    noticed_at=now - timedelta(seconds=37),
                    seen_at=None,
                    found={"kind": "value", "version": 1790000000000017},
                ),
            ),
            unavailable={},
        )

    @staticmethod
    def _problems() -> tuple[Problem, ...]:
        return (
            Problem(
                severity="critical",
                text="No relay is connected: 128 changes are not published, the oldest for 42 s.",
                action="Start the DAG outbox_relay, or unpause it.",
            ),
            Problem(
                severity="critical",
                service="sb",
                entity="student",
                text="A change of student 17 has been missing from the cache for 42 s.",
                action="Look up the key student 17 to see why.",
            ),
            Problem(
                severity="warning",
                service="sb",
                text="14 dead letters are parked, and are no longer retried.",
                action="Correct the cause, then replay or discard them.",
            ),
        )

    def _cache(self, service: str, *, day: bool) -> CacheStatus:
        late = service == "sb" and not self._healthy
        entities = tuple(self._entity(service, name, n, day=day) for n, name in enumerate(self._entities))
        return CacheStatus(
            service=service,
            redis="ok",
            keys=184_223 if service == "sa" else 201_877,
            memory_bytes=93_000_000 if service == "sa" else 117_000_000,
            group=f"cachesync-{service}",
            consumers=tuple(
                Consumer(
                    client=f"cachesync-{service}-{n}",
                    host="10.0.3.17",
                    partitions=(f"cachesync.student[{n}]", f"cachesync.course[{n}]"),
                )
                for n in range(3)
            ),
            unconsumed=(),
            consumer_lag=31 if late else 0,
            oldest_unseen=UnseenChange(entity="student", key="17", version=1790000000000019, age_s=42.4)
            if late
            else None,
            recent=self._consistency(600, 0, service),
            hour=self._consistency(18_000, 14 if late else 0, service),
            day=self._consistency(432_000, 61 if late else 2, service) if day else None,
            entities=entities,
        )

    def _entity(self, service: str, name: str, n: int, *, day: bool) -> EntityStatus:
        late = service == "sb" and not self._healthy and n == 0
        return EntityStatus(
            entity=name,
            hour=self._consistency(3000 if n % 7 else 0, 14 if late else 0, service),
            day=self._consistency(72_000 // (n + 1), 61 if late else 0, service) if day else None,
            entries=31_000 // (n + 1),
            consumer_lag=31 if late else 0,
            open_letters=2 if late else 0,
            parked_letters=14 if late else 0,
            capture_problem=None,
        )

    @staticmethod
    def _consistency(judged: int, late: int, service: str) -> Consistency:
        return Consistency(
            judged=(judged,) * 4,
            seen=(max(0, judged - 2 * late), judged - late, judged - late // 2, judged),
            lag_p50_s=(0.01 if service == "sa" else 0.02) if judged else None,
            lag_p99_s=(5.0 if late else 0.05) if judged else None,
            hits=judged * 9,
            misses=judged // 4,
            bypasses=late,
        )

    @staticmethod
    def _letters() -> Letters:
        first = _THEN - timedelta(hours=2)
        groups = (
            LetterGroup(
                service="sb",
                entity="student",
                stage="cache",
                reason="NOPERM User sb has no permissions to access one of the keys used as arguments",
                parked=True,
                letters=14,
                due=0,
                due_s=0,
                first_failed_at=first,
                example="parking-lot:0:17",
            ),
            LetterGroup(
                service="sb",
                entity="student",
                stage="row",
                reason="the database is unavailable: connection refused",
                parked=False,
                letters=2,
                due=1,
                due_s=0,
                first_failed_at=first,
                example="dead-letters:0:31",
            ),
        )
        return Letters(groups=groups, open=2, due=1, parked=14)

    def _reconciliations(self) -> tuple[Reconciliation, ...]:
        return tuple(
            Reconciliation(
                service=service,
                run=run,
                started_at=_THEN - timedelta(hours=hours),
                finished_at=_THEN - timedelta(hours=hours) + timedelta(seconds=19),
                mode="full",
                deep=hours == 30,
                dry_run=hours == 6,
                outcome="clean" if not found else "drift" if hours == 6 else "repaired",
                examined=184_223,
                found=found,
                repaired=0 if hours == 6 else sum(found.values()),
                failed=0,
                link=f"http://localhost:8080/dags/reconcile/runs/{run}",
            )
            for hours, run in ((6, "manual__2026-11-27"), (30, "scheduled__2026-11-26"))
            for service in SERVICES
            for found in [{"stale": 3, "orphan": 1} if service == "sb" and not self._healthy else {}]
        )
