"""What a relay exports of the work whose processes end too soon to be asked."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY

from cachesync.relay import records
from cachesync.relay.records import Records

if TYPE_CHECKING:
    import asyncpg
    import pytest

ACT = """
INSERT INTO cachesync.dead_letter_action (
    actor, reason, action, letter_topic, letter_partition, letter_offset, letter_sent_at,
    service, original_topic, original_partition, original_offset, entity, attempt, error
)
VALUES (
    'a test', 'a reason', $1, 'cachesync.parking-lot', 0, $2, now(),
    'sa', 'cachesync.student', 0, $3, 'student', 1, ''
)
"""
RUN = """
INSERT INTO cachesync.reconciliation (run, parameters, started_at, finished_at, report)
VALUES ($1, '{}', now() - interval '3 hours', now() - $2::int * interval '1 hour', $3)
"""
OPEN = """
INSERT INTO cachesync.reconciliation (run, parameters, started_at)
VALUES ('open', '{}', now() - interval '90 minutes')
"""


def sample(name: str, **labels: str) -> float | None:
    return REGISTRY.get_sample_value(f"cachesync_{name}", labels)


def report(**found: int) -> str:
    findings = {name: found.get(name, 0) for name in records._FINDINGS}  # noqa: SLF001
    return json.dumps({"services": {"sa": {"student": findings}}})


async def test_results_of_reconciliations_and_parked_letters_are_read_from_the_database(
    admin: asyncpg.Connection, worker: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(records, "_PAUSE_SECONDS", 0)
    found = Records()
    await found.step(worker)
    assert sample("parked_letters", service="sa") is None
    assert sample("reconciliation_timestamp_seconds", service="sa") is None
    assert sample("reconciliation_unfinished_seconds") == 0
    # The first message was parked, replayed in vain, and discarded; the second was parked again.
    acts = [("parked", 1, 1), ("replayed", 2, 1), ("discarded", 3, 1), ("parked", 4, 2), ("resolved", 5, 2)]
    for action, letter, message in [*acts, ("parked", 6, 2)]:
        await admin.execute(ACT, action, letter, message)
    await admin.execute(RUN, "older", 2, report(stale=7, repaired=7))
    await admin.execute(RUN, "last", 1, report(orphan=2, failed=1))
    await admin.execute(OPEN)
    await found.step(worker)
    assert sample("parked_letters", service="sa") == 1
    drift = {
        name: sample("reconciliation_drift", service="sa", entity="student", finding=name)
        for name in ("stale", "orphan", "failed", "repaired")
    }
    assert drift == {"stale": 0, "orphan": 2, "failed": 1, "repaired": 0}
    ended = await admin.fetchval("SELECT extract(epoch FROM now() - interval '1 hour')::float8")
    assert abs((sample("reconciliation_timestamp_seconds", service="sa") or 0) - ended) < 600
    assert (sample("reconciliation_unfinished_seconds") or 0) >= 5400
