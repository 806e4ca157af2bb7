"""What `cachesync doctor` finds on real servers, each of which is broken in turn."""

from __future__ import annotations

import asyncio
import json
from contextlib import contextmanager
from typing import TYPE_CHECKING

import asyncpg
import pytest
import redis
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]
from typer.testing import CliRunner

from cachesync.cli.main import app
from cachesync.doctor import database
from cachesync.doctor.cache import examine_cache
from cachesync.doctor.database import examine_database
from cachesync.doctor.doctor import System, examine
from cachesync.doctor.finding import Part, Severity
from cachesync.doctor.kafka import examine_groups, examine_topics
from cachesync.kafka.clients import open_client
from cachesync.postgres.statements import statement
from local.postgres import address, create_role
from tests.integration.conftest import ENTITIES_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterator

    from cachesync.doctor.finding import Finding
    from cachesync.entity import Entity
    from local.redis import Redis
    from tests.integration.redis_cluster import RedisCluster


async def found_by(examination: Callable[[Part], Coroutine[None, None, None]]) -> list[str]:
    """Return the findings of an examination, as lines."""
    part = Part("part")
    await examination(part)
    return [f"{finding.severity} {finding.check}: {finding.found}" for finding in part.findings]


def about(lines: list[str], check: str) -> list[str]:
    return [line for line in lines if f" {check}: " in line]


def of_others(findings: list[Finding]) -> list[Finding]:
    """Return what is wrong apart from how the tests' servers are: without streams, passwords and replicas."""
    expected = {
        ("streams", "consumers"),
        ("PostgreSQL", "relay"),
        ("PostgreSQL", "live check"),
        ("PostgreSQL", "prepared transactions"),
        ("Kafka", "replication"),
        ("Redis of sa", "login"),
    }
    return [
        finding
        for finding in findings
        if finding.severity in {Severity.ERROR, Severity.WARNING}
        and (finding.part, finding.check) not in expected
    ]


async def test_right_installation_has_nothing_that_is_wrong(
    worker_dsn: str, redis_sa: Redis, topics: str
) -> None:
    system = System(
        ENTITIES_FILE, worker_dsn, redis={"sa": redis_sa.url}, kafka={"bootstrap.servers": topics}
    )
    # At first, Kafka has no coordinator for a new group.
    found = await examine(system)
    while any(one.check == "consumers" and one.severity is Severity.NOT_CHECKED for one in found):
        found = await examine(system)
    assert of_others(found) == []
    texts = {(finding.part, finding.check): finding.found for finding in found}
    assert texts["PostgreSQL", "relay"].startswith("the relay is not running")
    assert (
        texts["PostgreSQL", "rights"] == "background-worker has the role cachesync_worker, and lacks nothing"
    )
    assert "fire ALWAYS" in texts["PostgreSQL", "entities"]
    assert texts["streams", "consumers"].startswith("cache sa is not followed: group cachesync-sa has no")
    assert texts["Redis of sa", "write access"] == "it reads, writes and deletes"
    assert texts["Airflow", "connection"] == "no address is given"
    with redis.Redis.from_url(redis_sa.url) as client:
        assert client.dbsize() == 0


async def test_each_fault_of_the_database_is_found_with_what_to_do(
    admin: asyncpg.Connection,
    sample: str,
    worker_dsn: str,
    entities: dict[str, Entity],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await admin.execute(
        """
        ALTER TABLE student DISABLE TRIGGER cachesync_log_update;
        ALTER TABLE course ENABLE TRIGGER cachesync_log_delete;
        ALTER SEQUENCE cachesync.row_version CACHE 20;
        ALTER TABLE grade ENABLE ROW LEVEL SECURITY;
        INSERT INTO student (id, name, age) VALUES (1, 'Ada', 36);
        SELECT setval('cachesync.row_version', 1);
        ALTER TABLE cachesync.change_log SET (autovacuum_enabled = off);
        REVOKE SELECT ON cachesync.change_log FROM cachesync_worker;
        REVOKE SELECT ON cachesync.course FROM cachesync_worker;
        """
    )
    declared = {name: entity for name, entity in entities.items() if name != "grade"}
    monkeypatch.setattr(database, "LONG_SECONDS", 0.0)
    # A standby would take longer to make than all other tests together.
    monkeypatch.setattr(
        database,
        "statement",
        lambda name: statement(name).replace("pg_is_in_recovery()", "true"),
    )
    session = await asyncpg.connect(sample)
    async with session.transaction():
        await session.execute("SELECT pg_current_xact_id()")
        as_owner = await found_by(lambda part: examine_database(part, sample, declared))
    await session.close()
    as_worker = await found_by(lambda part: examine_database(part, worker_dsn, declared))

    student, course = about(as_owner, "entities")[:2]
    assert "trigger cachesync_log_update is disabled" in student
    assert "sequence row_version was changed" in student + course
    assert student.startswith("error ")
    assert "trigger cachesync_log_delete does not fire if session_replication_role is replica" in course
    assert (
        "warning entities: grade is installed but not declared; `cachesync uninstall grade` removes it"
        in as_owner
    )
    assert about(as_owner, "primary")[0].startswith("error primary: the server is a replica")
    assert about(as_owner, "sequence")[0].startswith(
        "error sequence: the sequence cachesync.row_version was set back"
    )
    assert about(as_owner, "autovacuum")[0].startswith("error autovacuum: the autovacuum of the table")
    assert any("a session of postgres (pid " in line for line in about(as_owner, "long transactions"))
    assert about(as_owner, "rights")[0].startswith("ok rights: postgres is a superuser")
    assert about(as_worker, "long transactions")[0].startswith("not checked ")
    assert about(as_worker, "rights") == [
        "error rights: background-worker lacks SELECT on cachesync.change_log, SELECT on cachesync.course"
    ]


async def test_row_security_that_hides_rows_and_missing_entities_are_found(
    admin: asyncpg.Connection, sample: str, entities: dict[str, Entity]
) -> None:
    await admin.execute("ALTER TABLE student ENABLE ROW LEVEL SECURITY")
    other = entities["student"].model_copy(update={"name": "pupil", "table": "pupil"})
    found = await found_by(lambda part: examine_database(part, sample, {**entities, "pupil": other}))
    assert any("row security was enabled on its table" in line for line in about(found, "entities"))
    assert "error entities: entity 'pupil' is not installed; run `cachesync install`" in found
    assert any("table pupil: no such table in this database" in line for line in about(found, "tables"))


async def test_login_is_told_which_role_it_lacks(
    admin: asyncpg.Connection, sample: str, sa_dsn: str, entities: dict[str, Entity]
) -> None:
    create_role(sample, "heir", "password")
    await admin.execute("ALTER ROLE heir NOINHERIT; GRANT cachesync_worker TO heir")
    await admin.execute("REVOKE UPDATE (age) ON student FROM cachesync_service")
    heir = address(sample, database=sample.rpartition("/")[2], user="heir", password="password")
    part = Part("part")
    try:
        await examine_database(part, heir, entities)
        (finding,) = [finding for finding in part.findings if finding.check == "rights"]
        for statement in (finding.remedy or "").removeprefix("run ").replace(" and ", " ").split(","):
            await admin.execute(statement)
        mended = await found_by(lambda part: examine_database(part, heir, entities))
        as_service = await found_by(lambda part: examine_database(part, sa_dsn, entities))
    finally:
        await admin.execute("DROP OWNED BY heir; DROP ROLE heir")
    assert finding.found == "heir is a member of cachesync_worker, but does not inherit its privileges"
    assert about(mended, "rights") == ["ok rights: heir has the role cachesync_worker, and lacks nothing"]
    assert about(as_service, "sequence") == ["not checked sequence: this login may not see it"]
    (lacking,) = about(as_service, "rights")
    assert "the login sa lacks UPDATE on table public.student" in lacking


async def test_database_without_an_installation_or_an_answer_is_an_error(
    database: str, entities: dict[str, Entity]
) -> None:
    found = await found_by(lambda part: examine_database(part, database, entities))
    assert about(found, "installation") == [
        "error installation: the database has no schema 'cachesync'; run `cachesync install`"
    ]
    nowhere = "postgresql://nobody@127.0.0.1:1/none"
    (line,) = await found_by(lambda part: examine_database(part, nowhere, entities))
    assert line.startswith("error connection: PostgreSQL is unavailable")


@contextmanager
def configured(server: Redis, **settings: str) -> Iterator[redis.Redis]:
    """Yield a client of a Redis that has other settings meanwhile."""
    with redis.Redis.from_url(server.url, decode_responses=True) as client:
        names = [name.replace("_", "-") for name in settings]
        before = {name: client.config_get(name)[name] for name in names}
        try:
            for name, value in zip(names, settings.values(), strict=True):
                client.config_set(name, value)
            yield client
        finally:
            for name, value in before.items():
                client.config_set(name, value)


async def examined(server: Redis, entities: dict[str, Entity], url: str = "") -> list[str]:
    return await found_by(lambda part: examine_cache(part, "sa", url or server.url, entities))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"maxmemory": "0"}, "warning memory: it has no maxmemory"),
        (
            {"maxmemory_policy": "volatile-lru"},
            "warning memory: volatile-lru evicts only keys with",
        ),
        ({"maxmemory_policy": "allkeys-random"}, "warning memory: allkeys-random evicts slots whether"),
        ({"maxmemory_policy": "noeviction"}, "ok memory: noeviction, with room"),
        ({"maxmemory": "1", "maxmemory_policy": "noeviction"}, "error memory: noeviction, and "),
        (
            {"maxmemory": "1", "maxmemory_policy": "noeviction"},
            "error write access: it refuses what a",
        ),
        ({"save": "3600 1"}, "error persistence: it makes snapshots (save 3600 1)"),
        ({"appendonly": "yes"}, "error persistence: it has an append-only file"),
        ({"min_replicas_to_write": "1"}, "error write access: it refuses what a service does: NOREPLICAS"),
    ],
)
async def test_settings_of_a_redis_that_no_cache_can_have_are_found(
    redis_sa: Redis, entities: dict[str, Entity], settings: dict[str, str], text: str
) -> None:
    with configured(redis_sa, **settings):
        found = await examined(redis_sa, entities)
    assert any(line.startswith(text) for line in found), found


async def test_replica_and_login_without_access_are_found(
    redis_sa: Redis, redis_sb: Redis, entities: dict[str, Entity]
) -> None:
    host, _, port = redis_sb.url.removeprefix("redis://").partition("/")[0].rpartition(":")
    with redis.Redis.from_url(redis_sa.url) as client:
        client.replicaof(host, port)
        try:
            found = await examined(redis_sa, entities)
        finally:
            client.execute_command("REPLICAOF NO ONE")
        assert "error replication: it is a replica, which refuses writes" in found
        client.execute_command(
            "ACL SETUSER some on >secret +@all -@admin -@dangerous +info +config|get ~sa:student:*"
        )
        try:
            url = redis_sa.url.replace("redis://", "redis://some:secret@")
            found = await examined(redis_sa, entities, url)
        finally:
            client.execute_command("ACL DELUSER some")
    denied = about(found, "access")
    assert "the login may not change the slots of 'course'" in denied[0]
    assert not any("'student'" in line for line in denied)
    assert about(found, "login") == ["ok login: its login is no administrator"]


async def test_redis_that_does_not_respond_is_one_error(entities: dict[str, Entity]) -> None:
    (line,) = await found_by(lambda part: examine_cache(part, "sa", "redis://127.0.0.1:1/0", entities))
    assert line.startswith("error connection: Redis is unavailable")


async def test_cluster_is_examined_on_every_primary_and_needs_its_url(
    redis_cluster: RedisCluster, entities: dict[str, Entity]
) -> None:
    found = await found_by(lambda part: examine_cache(part, "sa", redis_cluster.url, entities))
    assert len([line for line in found if line.endswith("all hash slots are served")]) == 3
    assert "ok access: the login may change the slots of every entity" in found
    single = redis_cluster.url.replace("redis+cluster://", "redis://")
    found = await found_by(lambda part: examine_cache(part, "sa", single, entities))
    assert about(found, "cluster")[0].startswith("error cluster: it is a node of a Redis Cluster")


async def test_topics_that_lose_changes_and_groups_that_are_shared_are_found(
    topics: str, entities: dict[str, Entity]
) -> None:
    kafka = {"bootstrap.servers": topics}
    admin = open_client(AdminClient, kafka)
    config = {
        "cleanup.policy": "delete",
        "max.message.bytes": "1000",
        "message.timestamp.type": "LogAppendTime",
    }
    made = {
        "lost": NewTopic("cachesync.lost", 1, 1, config=config),
        "short": NewTopic("cachesync.short", 1, 1, config={"cleanup.policy": "compact"}),
    }
    for outcome in admin.create_topics(list(made.values())).values():
        outcome.result(10)
    declared = {
        name: entities["student"].model_copy(update={"name": name}) for name in (*made, "student", "nowhere")
    }
    try:
        found = await found_by(lambda part: examine_topics(part, kafka, declared))
    finally:
        for outcome in admin.delete_topics([topic.topic for topic in made.values()]).values():
            outcome.result(10)
    lines = about(found, "topics")
    assert any("no topic cachesync.nowhere" in line for line in lines)
    assert any("cachesync.lost has cleanup.policy=delete" in line for line in lines)
    assert any("cachesync.lost has max.message.bytes=1000" in line for line in lines)
    assert any("cachesync.lost has message.timestamp.type=LogAppendTime" in line for line in lines)
    assert any("cachesync.short has min.compaction.lag.ms=0" in line for line in lines)
    assert any("one broker stores each message" in line for line in about(found, "replication"))

    groups: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
    groups.set_result({"sa": "one", "sb": "one"})
    found = await found_by(lambda part: examine_groups(part, kafka, groups, entities))
    assert about(found, "groups") == [
        "error groups: caches sa and sb share the group one, so each gets only some of the changes"
    ]
    assert len(about(found, "consumers")) == 2


async def test_kafka_that_does_not_respond_is_an_error(
    entities: dict[str, Entity], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachesync.kafka.topics._DESCRIBE_SECONDS", 0.2)
    (line,) = await found_by(
        lambda part: examine_topics(part, {"bootstrap.servers": "127.0.0.1:1"}, entities)
    )
    assert line.startswith("error connection: Kafka: ")


def test_command_exits_with_3_if_there_are_errors_and_prints_json_alone_on_standard_output(
    redis_sa: Redis,
) -> None:
    arguments = ["doctor", "--redis", f"sa={redis_sa.url}", "--entities", "/nowhere.toml"]
    ended = CliRunner().invoke(app, [*arguments, "--json"], env={"CACHESYNC_DSN": None, "PGHOST": None})
    assert ended.exit_code == 3, ended.output
    (error,) = (one for one in json.loads(ended.stdout)["findings"] if one["severity"] == "error")
    assert (error["part"], error["check"]) == ("entities file", "declaration")
    assert error["found"] == "cannot read the entities file /nowhere.toml: No such file or directory"
    ended = CliRunner().invoke(app, arguments)
    assert ended.stdout.splitlines()[0].startswith(
        "error  entities file, declaration: cannot read the entities file"
    )
    assert ended.stdout.splitlines()[1].startswith("  -> ")
    assert "\x1b" not in ended.output
