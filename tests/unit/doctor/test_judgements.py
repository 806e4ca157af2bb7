"""What the doctor says of versions, clocks and settings that no server of the tests has."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import pytest

from cachesync.doctor import airflow, cache, database, kafka
from cachesync.doctor.clock import judge_clock
from cachesync.doctor.doctor import System, examine
from cachesync.doctor.finding import Part, Severity
from cachesync.doctor.packages import compare_requirements
from cachesync.kafka.groups import consumer_settings
from cachesync.kafka.topics import COMPACTED, TopicState

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

NOW = datetime(2026, 11, 28, tzinfo=UTC)
CONSUMER = {"bootstrap.servers": "broker:9092", **consumer_settings({}, "cachesync-sb")}


def judged(judge: Callable[[Part], object]) -> list[str]:
    part = Part("part")
    judge(part)
    return [f"{finding.severity}: {finding.found}" for finding in part.findings]


@pytest.mark.parametrize(
    ("version", "major", "severity"),
    [("13.9", 13, "error"), ("14.1", 14, "ok"), ("18.1", 18, "ok"), ("19", 19, "warning")],
)
def test_versions_of_postgresql(version: str, major: int, severity: str) -> None:
    (line,) = judged(lambda part: database.judge_version(part, version, major))
    assert line.startswith(f"{severity}: PostgreSQL {version}")


@pytest.mark.parametrize(
    ("info", "line"),
    [
        ({"redis_version": "5.0.7"}, "error: Redis 5.0.7"),
        ({"redis_version": "6.0.9"}, "error: Redis 6.0.9"),
        ({"redis_version": "6.2.5"}, "ok: Redis 6.2.5"),
        ({"redis_version": "8.4.0"}, "ok: Redis 8.4.0"),
        ({"redis_version": "9.0.0"}, "warning: Redis 9.0.0 is newer than every tested version"),
        ({"redis_version": "7.2.4", "valkey_version": "9.0.0"}, "ok: Valkey 9.0.0"),
        ({}, "not checked: it does not report its version"),
    ],
)
def test_versions_of_redis(info: dict[str, str], line: str) -> None:
    assert judged(lambda part: cache.judge_version(part, info)) == [line]


@pytest.mark.parametrize(("used", "severity"), [(10, "ok"), (60, "warning"), (95, "error")])
def test_redis_that_does_not_evict_needs_room(used: int, severity: str) -> None:
    info = {"used_memory": used, "maxmemory": 100, "maxmemory_policy": "noeviction"}
    (line,) = judged(lambda part: cache.judge_memory(part, info))
    assert line.startswith(f"{severity}: noeviction")


def test_replicas_of_a_cache_are_a_warning() -> None:
    (line,) = judged(lambda part: cache.judge_replication(part, {"role": "master", "connected_slaves": 2}))
    assert line.startswith("warning: 2 replicas follow it; a cache must start empty after a failure")


def test_clocks_that_differ_are_a_warning() -> None:
    assert judged(lambda part: judge_clock(part, 0.2)) == ["ok: it agrees with that of this machine"]
    (line,) = judged(lambda part: judge_clock(part, -90))
    assert line.startswith("warning: its clock is 90.0 seconds behind that of this machine")


def test_entity_with_more_partitions_than_half_of_the_locks_is_a_warning() -> None:
    assert judged(lambda part: database.judge_locks(part, "sale", 50, 100)) == [
        "ok: the largest entity, sale, takes 50 of 100 locks"
    ]
    (line,) = judged(lambda part: database.judge_locks(part, "sale", 51, 100))
    assert line.startswith("warning: entity 'sale' has 51 tables")


def test_replicated_topics_are_right() -> None:
    topic = TopicState(partitions=1, replication=3, config=COMPACTED)
    assert judged(lambda part: kafka.judge_topics(part, {"cachesync.sale": topic}, 3)) == [
        "ok: 1 are compacted, and replicated"
    ]


def test_packages_of_other_versions_than_required_are_errors() -> None:
    required = ["redis<2", "asyncpg>=0.1", "no-such-package", "falcon<1; extra == 'serving'"]
    first, second = judged(lambda part: compare_requirements(part, required))
    assert first.startswith("error: redis ")
    assert first.endswith("is installed, but <2 is required")
    assert second == "error: no-such-package is not installed"


@pytest.mark.parametrize(
    ("changed", "text"),
    [
        ({"enable.auto.commit": True}, "error: kafka_sb: enable.auto.commit must be false"),
        ({"auto.offset.reset": "latest"}, "error: kafka_sb: auto.offset.reset must be earliest"),
        ({"group.id": ""}, "error: the extra of kafka_sb does not set group.id"),
        ({"bootstrap.servers": ""}, "error: the extra of kafka_sb does not set bootstrap.servers"),
        ({"session.timeout.ms": 45000}, "warning: kafka_sb has session.timeout.ms=45000 instead of 6000"),
        (
            {"queued.min.messages": 1000},
            "warning: kafka_sb has queued.min.messages=1000 instead of its default",
        ),
        ({}, "ok: kafka_sb has the documented settings"),
    ],
)
def test_settings_of_a_consumer_in_airflow(changed: dict[str, Any], text: str) -> None:
    found = {"conn_type": "kafka", "extra": json.dumps({**CONSUMER, **changed})}
    lines = judged(lambda part: airflow.judge_connection(part, "kafka_sb", found))
    assert lines[0].startswith(text)


def test_connection_of_another_type_is_an_error_and_one_that_cannot_be_seen_is_not_checked() -> None:
    assert judged(lambda part: airflow.judge_connection(part, "redis_sb", None)) == [
        "not checked: the connection redis_sb is neither in Airflow's database nor in the environment"
    ]
    assert judged(lambda part: airflow.judge_connection(part, "redis_sb", {"conn_type": "generic"})) == [
        "error: the connection redis_sb has the type 'generic'"
    ]


@pytest.mark.parametrize(
    ("text", "kind", "group"),
    [
        ("redis://:secret@host:6379/0", "redis", None),
        ("postgresql://worker:secret@host/db", "postgres", None),
        ('{"conn_type": "kafka", "extra": {"group.id": "one"}}', "kafka", "one"),
        ('{"conn_type": "kafka", "extra": "{\\"group.id\\": \\"one\\"}"}', "kafka", "one"),
        ("kafka://?__extra__=%7B%22group.id%22%3A+%22one%22%7D", "kafka", "one"),
        ("kafka://?group.id=one", "kafka", "one"),
    ],
)
def test_connections_in_environment_variables_are_understood(text: str, kind: str, group: str | None) -> None:
    found = airflow.connection_in(text)
    assert found["conn_type"] == kind
    assert airflow.judge_connection(Part("Airflow"), f"{kind}_sb", found) == group


@pytest.mark.parametrize(
    ("name", "dag", "severity"),
    [
        ("cache_sync", None, "error"),
        ("cache_sync", {"is_paused": True}, "error"),
        ("reconcile", {"is_paused": True}, "warning"),
        ("reconcile", {"has_import_errors": True}, "error"),
        ("reconcile", {"is_paused": False}, "ok"),
    ],
)
def test_dags_that_cannot_run(name: str, dag: dict[str, Any] | None, severity: str) -> None:
    (line,) = judged(lambda part: airflow.judge_dag(part, name, dag))
    assert line.startswith(f"{severity}: ")


def test_process_of_airflow_that_is_not_alive_is_an_error() -> None:
    health = {
        "triggerer": {"status": "unhealthy"},
        "scheduler": {"status": "healthy"},
        "dag_processor": {"status": "healthy"},
    }
    assert judged(lambda part: airflow.judge_processes(part, health)) == [
        "error: the triggerer is not alive (unhealthy)"
    ]


def test_runs_that_are_never_deleted_are_a_warning_with_the_arguments_of_the_command() -> None:
    part = Part("Airflow")
    for days in (2, 60):
        run = {"run_after": (NOW - timedelta(days=days)).isoformat()}
        airflow.judge_runs(part, {"dag_runs": [run], "total_entries": 90_000}, NOW)
    young, old = part.findings
    assert young.severity is Severity.OK
    assert old.found == "the oldest of 90,000 runs of stream_check is 60 days old"
    assert old.remedy is not None
    assert (
        "airflow db clean --clean-before-timestamp 2026-11-21T00:00:00+00:00 --skip-archive --yes"
        in old.remedy
    )


async def test_check_that_fails_does_not_hide_the_findings_of_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> None:
        message = "a bug"
        raise RuntimeError(message)

    monkeypatch.setattr("cachesync.doctor.doctor.examine_database", fails)
    found = await examine(System(tmp_path / "none.toml", "postgresql://h/db"))
    by_part = {finding.part: finding for finding in found}
    assert by_part["PostgreSQL"].found == "the check failed: RuntimeError: a bug"
    assert by_part["PostgreSQL"].severity is Severity.NOT_CHECKED
    assert found[0].part == "entities file"
    assert by_part["Kafka"].remedy == "give --bootstrap-servers (KAFKA_BOOTSTRAP_SERVERS)"
