"""The verdict on a key: one case for each cause, from facts alone."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from cachesync.overview.models import ChangeReport, LetterReport, RowReport
from cachesync.overview.verdict import (
    CacheFacts,
    Consumption,
    KeyFacts,
    Slot,
    verdict_of_cache,
    verdict_of_key,
)

if TYPE_CHECKING:
    from cachesync.overview.models import Assessment

NOW = datetime(2026, 2, 3, 12, tzinfo=UTC)
FINGERPRINT = "0a1b2c3d"
ROW = RowReport(version=19, payload='{"id":7}')
NEW = Slot("value", 19, FINGERPRINT, ROW.payload, 7200.5)
OLD = replace(NEW, version=17, payload='{"id":7,"old":true}')
CONSUMED = Consumption("cachesync-sb", 1, "cachesync.student[0]", "rdkafka", 0)
TRIGGERS_OFF = "entity 'student': trigger cachesync_log_update is disabled; run `cachesync install`"


def seconds_ago(seconds: float) -> datetime:
    return NOW - timedelta(seconds=seconds)


def change(age: float, published: float | None = None, **fields: Any) -> ChangeReport:
    """A change of version 19, made and published so many seconds ago."""
    values = {
        "version": 19,
        "operation": "upsert",
        "source": "ann",
        "changed_at": seconds_ago(age),
        "due_at": seconds_ago(age),
        "published_at": None if published is None else seconds_ago(published),
        "shared": False,
    }
    return ChangeReport.model_validate(values | fields)


def letter(**fields: Any) -> LetterReport:
    values = {
        "letter": "dead-letters:0:3",
        "service": "sb",
        "version": 19,
        "stage": "cache",
        "parked": False,
        "attempt": 2,
        "maximum": 5,
        "last_failed_at": seconds_ago(60),
        "not_before": NOW + timedelta(seconds=30),
        "error": "NOPERM",
    }
    return LetterReport.model_validate(values | fields)


PUBLISHED = (change(42, 41),)
FACTS = KeyFacts(NOW, "student", FINGERPRINT, ROW, PUBLISHED)
UNPUBLISHED = replace(FACTS, changes=(change(42),))
CACHE = CacheFacts("sb", OLD, "ok", None, CONSUMED)
FULL = replace(CACHE, redis="refuses writes", redis_problem="OOM command not allowed")

CASES: dict[str, tuple[KeyFacts, CacheFacts, Assessment, str, str]] = {
    "right": (FACTS, replace(CACHE, slot=NEW), "right", "sb holds the row, at version 19", ""),
    "right about no row": (
        replace(FACTS, row=None),
        replace(CACHE, slot=Slot("absent")),
        "right",
        "knows that the row does not exist",
        "",
    ),
    "empty": (FACTS, replace(CACHE, slot=Slot("empty")), "not cached", "the next read asks the database", ""),
    "empty for good": (
        FACTS,
        replace(FULL, slot=Slot("empty")),
        "not cached",
        "refuses writes (OOM command not allowed)",
        "Make the Redis of sb accept writes",
    ),
    "lease in flight": (
        FACTS,
        replace(CACHE, slot=Slot("lease", 19, ttl_s=2.5)),
        "not cached",
        "loading or writing the row; until then, reads ask the database. The lease ends in 2 s",
        "",
    ),
    "unreadable": (
        FACTS,
        replace(CACHE, slot=Slot("unreadable", payload="junk")),
        "not cached",
        "something that is no slot",
        "what else writes to the Redis of sb",
    ),
    "another schema": (
        FACTS,
        replace(CACHE, slot=replace(OLD, fingerprint="ffffffff")),
        "not cached",
        "with another schema (ffffffff, now 0a1b2c3d)",
        "",
    ),
    "Redis away": (
        FACTS,
        replace(CACHE, slot=Slot("unknown"), redis="unavailable", redis_problem="Connection refused."),
        "unknown",
        "does not respond (Connection refused): reads of sb ask the database",
        "Check the Redis of sb",
    ),
    "slot that may not be read": (
        FACTS,
        replace(CACHE, slot=Slot("unknown", payload="NOPERM no permissions")),
        "unknown",
        "The slot of sb cannot be read (NOPERM no permissions)",
        "Allow this login to read",
    ),
    "ahead": (
        FACTS,
        replace(CACHE, slot=replace(NEW, version=23)),
        "wrong",
        "it holds version 23, the row is at 19. The database was probably restored",
        "`cachesync reconcile --service sb --entity student`",
    ),
    "same version, other content, triggers off": (
        replace(FACTS, capture_problem=TRIGGERS_OFF),
        replace(CACHE, slot=replace(NEW, payload="{}")),
        "wrong",
        "both at version 19. Changes are not captured: entity 'student': trigger cachesync_log_update is",
        "Run `cachesync install`. Run `cachesync reconcile --deep",
    ),
    "same version, other content": (
        FACTS,
        replace(CACHE, slot=replace(NEW, payload="{}")),
        "wrong",
        "changed while its triggers were off, or somebody wrote to the Redis",
        "reconcile --deep",
    ),
    "parked letter": (
        FACTS,
        replace(CACHE, letters=(letter(letter="parking-lot:0:1", parked=True),)),
        "wrong",
        "is the dead letter parking-lot:0:1, which failed 60 s ago in stage cache: NOPERM. It is parked",
        "run `cachesync dead-letters replay parking-lot:0:1`",
    ),
    "open letter": (
        FACTS,
        replace(CACHE, letters=(letter(),)),
        "wrong",
        "It is retried in 30 s (attempt 2 of 5)",
        "run `cachesync dead-letters replay dead-letters:0:3`",
    ),
    "letter that is not a change": (
        FACTS,
        replace(CACHE, letters=(letter(version=None, stage="decode", error="no value"),)),
        "wrong",
        "A message with its key is not a change, and is the dead letter dead-letters:0:3: no value.",
        "Find out what sent it, and run `cachesync dead-letters discard dead-letters:0:3 --reason TEXT`.",
    ),
    "overdue letter": (
        FACTS,
        replace(CACHE, letters=(letter(not_before=seconds_ago(600)),)),
        "wrong",
        "It has been due for 10 min",
        "See that the DAG dead_letter_retry runs",
    ),
    "not in the log, triggers off": (
        replace(FACTS, changes=(), capture_problem=TRIGGERS_OFF),
        CACHE,
        "wrong",
        "The change is not in the change log: entity 'student': trigger cachesync_log_update is disabled",
        "Run `cachesync install`",
    ),
    "not in the log": (
        replace(FACTS, changes=()),
        CACHE,
        "wrong",
        "made while the triggers were off, or its line has been removed",
        "reconcile --deep",
    ),
    "partitions changed, relay not running": (
        replace(FACTS, changes=(), is_repartitioned=True, relays=0),
        CACHE,
        "wrong",
        "Partitions of its table were attached or detached, which the relay follows: it is not running.",
        "Start the DAG outbox_relay",
    ),
    "partitions changed": (
        replace(FACTS, changes=(), is_repartitioned=True),
        CACHE,
        "on its way",
        "Partitions of its table were attached or detached, which the relay is about to follow.",
        "",
    ),
    "the service publishes": (
        replace(FACTS, changes=(change(0.5, source="sa", due_at=NOW + timedelta(seconds=1.5)),)),
        CACHE,
        "on its way",
        "(upsert by sa, less than a second ago) is not published yet: sa has two seconds",
        "",
    ),
    "relay not running": (
        replace(UNPUBLISHED, relays=0),
        CACHE,
        "wrong",
        "ann, 42 s ago) is not published: the relay is not running. Left alone, the slot expires in 2 h.",
        "Start the DAG outbox_relay",
    ),
    "Kafka away, not published": (
        replace(UNPUBLISHED, kafka_problem="Kafka: timed out"),
        replace(CACHE, consumption=None),
        "wrong",
        "is not published: Kafka does not respond (timed out)",
        "Bring Kafka back",
    ),
    "relay is at it": (
        replace(FACTS, changes=(change(1),)),
        CACHE,
        "on its way",
        "about to be published",
        "",
    ),
    "Kafka rejects the change": (
        UNPUBLISHED,
        CACHE,
        "wrong",
        "the relay runs and publishes later changes: Kafka rejects it",
        "`changes rejected by Kafka`",
    ),
    "relay stands still": (
        replace(UNPUBLISHED, relay_works=False),
        CACHE,
        "wrong",
        "although the relay runs: it publishes nothing",
        "log of the relay",
    ),
    "Redis refuses writes": (
        FACTS,
        FULL,
        "wrong",
        "was published 41 s ago, but the Redis of sb refuses writes (OOM command not allowed)",
        "Make the Redis of sb accept writes",
    ),
    "Kafka away, published": (
        replace(FACTS, kafka_problem="Kafka: timed out"),
        replace(CACHE, consumption=None),
        "wrong",
        "but Kafka does not respond (timed out): the stream waits",
        "Bring Kafka back",
    ),
    "nobody consumes": (
        FACTS,
        replace(CACHE, consumption=replace(CONSUMED, members=0, consumer=None, lag=1)),
        "wrong",
        "nobody consumes for sb: the consumer group cachesync-sb has no members",
        "Start the DAG cache_sync, or run `cachesync stream --service sb`",
    ),
    "partition without a consumer": (
        FACTS,
        replace(CACHE, consumption=replace(CONSUMED, members=2, consumer=None, lag=1)),
        "wrong",
        "none of the 2 members of the consumer group cachesync-sb has the partition cachesync.student[0]",
        "If it stays so",
    ),
    "about to be applied": (
        replace(FACTS, changes=(change(1, 0.5),)),
        replace(CACHE, consumption=replace(CONSUMED, lag=1)),
        "on its way",
        "is about to be applied",
        "",
    ),
    "the newest of many changes is about to be applied": (
        replace(FACTS, changes=(change(1, 0.5), change(42, 41, version=18))),
        replace(CACHE, consumption=replace(CONSUMED, lag=1)),
        "wrong",
        "Change 18 (upsert by ann, 42 s ago) was published 41 s ago, but the consumer of",
        "log of the stream of sb",
    ),
    "consumer behind": (
        FACTS,
        replace(CACHE, consumption=replace(CONSUMED, lag=2000)),
        "wrong",
        "is behind or paused: 2,000 messages wait",
        "log of the stream of sb",
    ),
    "nothing explains it": (
        FACTS,
        CACHE,
        "wrong",
        "the stream of sb has gone past it. So something else changed the slot",
        "`cachesync reconcile --service sb --entity student`",
    ),
    "orphan": (
        replace(FACTS, row=None, changes=(change(42, operation="delete"),), relays=0),
        CACHE,
        "wrong",
        "it holds version 17, but the row does not exist. Change 19 (delete by ann, 42 s ago) is not",
        "outbox_relay",
    ),
    "false absent": (
        replace(UNPUBLISHED, relays=0),
        replace(CACHE, slot=Slot("absent", ttl_s=30)),
        "wrong",
        "it says that there is no row, but there is one, at version 19. Change 19",
        "outbox_relay",
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_each_cause_has_its_words_and_its_remedy(case: str) -> None:
    facts, cache, assessment, words, action = CASES[case]
    verdict = verdict_of_cache(facts, cache)
    assert verdict.assessment == assessment
    assert words in verdict.text
    assert action in " ".join(verdict.actions)
    # What is wrong can be mended; nothing is to be done about what is not.
    assert bool(verdict.actions) == bool(action)


def test_the_worst_cache_decides_and_says_what_to_do() -> None:
    facts = replace(UNPUBLISHED, relays=0)
    caches = {
        "sa": verdict_of_cache(facts, replace(CACHE, service="sa", slot=NEW)),
        "sb": verdict_of_cache(facts, CACHE),
    }
    verdict = verdict_of_key(facts, caches)
    assert verdict.assessment == "wrong"
    assert verdict.text.startswith("sb is stale: it holds version 17, the row is at 19.")
    assert verdict.text.endswith("Start the DAG outbox_relay, or run `cachesync relay`.")


@pytest.mark.parametrize(
    ("row", "slots", "assessment", "text"),
    [
        (ROW, (NEW, NEW), "right", "Every cache that has the row has version 19: sa, sb."),
        (ROW, (Slot("empty"), NEW), "right", "Every cache that has the row has version 19: sb."),
        (
            ROW,
            (Slot("empty"), Slot("empty")),
            "not cached",
            "No cache has the row, which is at version 19: the next read loads it.",
        ),
        (
            None,
            (Slot("absent"), Slot("empty")),
            "right",
            "The row does not exist, and no cache says otherwise.",
        ),
    ],
)
def test_if_nothing_is_wrong_one_sentence_says_so(
    row: RowReport | None, slots: tuple[Slot, Slot], assessment: str, text: str
) -> None:
    facts = replace(FACTS, row=row)
    caches = {
        service: verdict_of_cache(facts, replace(CACHE, service=service, slot=slot))
        for service, slot in zip(("sa", "sb"), slots, strict=True)
    }
    assert verdict_of_key(facts, caches)[:2] == (assessment, text)


def test_a_right_key_of_an_entity_without_triggers_is_not_called_safe() -> None:
    facts = replace(FACTS, capture_problem=TRIGGERS_OFF)
    verdict = verdict_of_key(facts, {"sb": verdict_of_cache(facts, replace(CACHE, slot=NEW))})
    assert "But changes of it may go unnoticed: entity 'student': trigger" in verdict.text


def test_a_redis_that_does_not_respond_does_not_hide_what_the_others_have() -> None:
    away = replace(CACHE, service="sa", slot=Slot("unknown"), redis="unavailable", redis_problem="refused")
    caches = {
        "sa": verdict_of_cache(FACTS, away),
        "sb": verdict_of_cache(FACTS, replace(CACHE, slot=NEW)),
    }
    verdict = verdict_of_key(FACTS, caches)
    assert verdict.assessment == "unknown"
    assert "The Redis of sa does not respond" in verdict.text
    assert "Every cache that has the row has version 19: sb." in verdict.text
