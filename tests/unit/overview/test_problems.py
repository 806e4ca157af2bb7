"""What an operator is told: one case for each problem, from an overview alone."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from cachesync.overview.models import (
    BacklogStatus,
    CacheStatus,
    Consistency,
    Consumer,
    EntityStatus,
    LetterGroup,
    Letters,
    Reconciliation,
    StaleSlots,
    Status,
    UnseenChange,
)
from cachesync.overview.problems import problems_of

NOW = datetime(2026, 2, 3, 12, tzinfo=UTC)
LATE = Consistency(judged=(10, 10, 10, 10), seen=(9, 9, 9, 10))


def entity(**fields: Any) -> EntityStatus:
    return EntityStatus(**{"entity": "student", "hour": Consistency(), "day": Consistency()} | fields)


def cache(**fields: Any) -> CacheStatus:
    values = {
        "service": "sb",
        "redis": "ok",
        "group": "cachesync-sb",
        "consumers": (Consumer(client="rdkafka", host="a", partitions=("cachesync.student[0]",)),),
        "unconsumed": (),
        "recent": Consistency(),
        "hour": Consistency(),
        "day": Consistency(),
        "entities": (entity(),),
    }
    return CacheStatus(**values | fields)


def unseen(entity: str, age_s: float) -> UnseenChange:
    return UnseenChange(entity=entity, key="7", version=19, age_s=age_s)


def letters(**fields: Any) -> Letters:
    values = {
        "service": "sb",
        "entity": "student",
        "stage": "cache",
        "reason": "NOPERM",
        "parked": False,
        "letters": 2,
        "due": 2,
        "due_s": 0.0,
        "first_failed_at": NOW,
        "example": "dead-letters:0:17",
    }
    return Letters(groups=(LetterGroup(**values | fields),), open=2, due=2, parked=0)


def run(**fields: Any) -> Reconciliation:
    values = {
        "service": "sb",
        "run": "scheduled-1",
        "started_at": NOW - timedelta(hours=1),
        "finished_at": NOW,
        "mode": "full",
        "deep": False,
        "dry_run": False,
        "outcome": "clean",
        "examined": 10,
        "found": {},
        "repaired": 0,
        "failed": 0,
        "link": None,
    }
    return Reconciliation(**values | fields)


def status(**fields: Any) -> Status:
    values = {
        "taken_at": NOW,
        "live_check_at": NOW,
        "problems": (),
        "caches": (cache(),),
        "backlog": BacklogStatus(changes=0, age_s=0, entity=None, relays=1),
        "letters": Letters(groups=(), open=0, due=0, parked=0),
        "reconciliations": (run(),),
        "unavailable": {},
    }
    return Status(**values | fields)


def backlog(changes: int, age_s: float, relays: int) -> dict[str, BacklogStatus]:
    return {"backlog": BacklogStatus(changes=changes, age_s=age_s, entity="student", relays=relays)}


CASES = {
    "database": (
        {"unavailable": {"database": "no route"}},
        "critical",
        "PostgreSQL does not respond: no route.",
    ),
    "kafka": (
        {"unavailable": {"kafka": "Kafka: no brokers"}},
        "critical",
        "Kafka does not respond: no brokers.",
    ),
    "redis away": (
        {"caches": (cache(redis="unavailable", redis_problem="the Redis of sb is unavailable: refused"),)},
        "critical",
        "The Redis of sb does not respond: refused.",
    ),
    "redis full": (
        {"caches": (cache(redis="refuses writes", redis_problem="OOM"),)},
        "critical",
        "The Redis of sb refuses writes: OOM.",
    ),
    "no consumer": (
        {"caches": (cache(consumers=()),)},
        "critical",
        "Nobody consumes for sb: no member of the group cachesync-sb has a partition.",
    ),
    "a partition without a consumer": (
        {"caches": (cache(unconsumed=("cachesync.student[1]", "cachesync.student[2]")),)},
        "warning",
        "Nobody consumes cachesync.student[1] and 1 more for sb.",
    ),
    "behind": (
        {"caches": (cache(oldest_unseen=unseen("student", 42)),)},
        "critical",
        "sb is behind: it has yet to follow a change of student 7 that was committed 42 s ago.",
    ),
    "behind the live check": (
        {"caches": (cache(oldest_unseen=unseen("cachesync_canary", 6)),)},
        "warning",
        "sb is behind: it has yet to follow a change of the live check that was committed 6 s ago.",
    ),
    "stale": (
        {"caches": (cache(stale=StaleSlots(slots=3, entity="student", key="7")),)},
        "critical",
        (
            "sb holds other content than the database, or a higher version, in 3 slots, such as that of "
            "student 7."
        ),
    ),
    "late": (
        {"caches": (cache(recent=LATE),)},
        "warning",
        "In the last two minutes, 1 of 10 changes reached sb after more than 5 s or never.",
    ),
    "triggers": (
        {"caches": (cache(entities=(entity(capture_problem="a trigger is disabled"),)),)},
        "critical",
        "Changes of student may go unnoticed: a trigger is disabled.",
    ),
    "no relay": (
        backlog(3, 42, 0),
        "critical",
        (
            "The relay is not running: changes that no service publishes wait. "
            "3 changes wait, the oldest for 42 s."
        ),
    ),
    "no relay, nothing to do": (
        backlog(0, 0, 0),
        "warning",
        "The relay is not running: changes that no service publishes wait.",
    ),
    "slow relay": (
        backlog(1, 6, 1),
        "warning",
        "The relay runs, but is behind. 1 change waits, the oldest for 6 s.",
    ),
    "parked": (
        {"letters": letters(parked=True)},
        "warning",
        "2 changes of student could not be applied to sb and are no longer retried: NOPERM.",
    ),
    "no retry": (
        {"letters": letters(due_s=600)},
        "warning",
        "2 changes of student could not be applied to sb, and the retry is overdue for 10 min: NOPERM.",
    ),
    "unrepaired": (
        {"reconciliations": (run(outcome="unrepaired", failed=2),)},
        "critical",
        "The reconciliation scheduled-1 left 2 wrong slots in sb.",
    ),
    "drift": (
        {"reconciliations": (run(outcome="drift", dry_run=True, found={"stale": 1}),)},
        "warning",
        "The dry run scheduled-1 found 1 wrong slot in sb.",
    ),
    "no reconciliation": (
        {"reconciliations": (run(started_at=NOW - timedelta(days=3)),)},
        "warning",
        "The last reconciliation of sb was 3 days ago.",
    ),
    "no live check": (
        {"live_check_at": None},
        "warning",
        "The live check has never looked: lag and nines are not measured.",
    ),
    "silent live check": (
        {"live_check_at": NOW - timedelta(minutes=5)},
        "warning",
        "The live check last looked 5 min ago: lag and nines are not measured.",
    ),
}


@pytest.mark.parametrize(("fields", "severity", "text"), CASES.values(), ids=CASES)
def test_each_problem_is_named(fields: dict[str, Any], severity: str, text: str) -> None:
    (problem,) = problems_of(status(**fields))
    assert (problem.severity, problem.text) == (severity, text)
    assert problem.action


def test_command_can_be_pasted_whatever_the_key() -> None:
    stale = StaleSlots(slots=1, entity="student", key="-a $(b)`")
    (problem,) = problems_of(status(caches=(cache(stale=stale),)))
    assert problem.action == "Look the key up: `cachesync show student -- '-a $(b)`'` says why."


def test_nothing_is_said_while_nothing_is_wrong() -> None:
    assert problems_of(status(caches=(cache(hour=LATE, day=LATE),))) == ()


def test_critical_problems_come_first() -> None:
    found = problems_of(status(**backlog(3, 42, 0), live_check_at=None, letters=letters(parked=True)))
    assert [problem.severity for problem in found] == ["critical", "warning", "warning"]


def test_causes_come_before_what_follows_from_them() -> None:
    late = cache(oldest_unseen=unseen("student", 42))
    found = problems_of(status(caches=(late,), **backlog(3, 42, 0)))
    begins = [problem.text.partition(":")[0] for problem in found]
    assert begins == ["The relay is not running", "sb is behind"]
