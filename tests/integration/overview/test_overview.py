"""The overview of a real system: faults are staged, and `show` and `status` say what they are."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import secrets
import socket
import sys
import threading
from contextlib import asynccontextmanager, closing, contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import redis
from confluent_kafka import Consumer, Producer
from typer.testing import CliRunner

from cachesync.cli.main import app
from cachesync.dead_letters.letter import RetryPolicy
from cachesync.errors import DatabaseUnavailableError
from cachesync.kafka.groups import consumer_settings, group_of
from cachesync.overview.models import KeyReport, Status
from cachesync.overview.overview import Overview
from cachesync.postgres.connect import connect
from cachesync.postgres.rows import Rows
from cachesync.reconcile import run as runs
from cachesync.reconcile.models import Parameters
from cachesync.relay.relay import Relay
from cachesync.slots.clients import blocking_client
from cachesync.slots.layout import slot_name, value_of
from cachesync.stream.stream import open_stream
from tests.faults.proxy import Proxy
from tests.integration.conftest import ENTITIES_FILE
from tests.integration.refusals import denying, refusing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterator

    from typer.testing import Result

    from cachesync.entity import Entity
    from local.redis import Redis
    from tests.integration.redis_cluster import RedisCluster


class System:
    """A database, a Kafka and the Redis of one service, whose name no other test has."""

    def __init__(self, dsn: str, broker: str, redis_url: str, entities: dict[str, Entity]) -> None:
        self.service = f"s{secrets.token_hex(4)}"
        self.dsn = dsn
        self.kafka = {"bootstrap.servers": broker}
        self.entities = entities
        self.redis: Any = blocking_client(redis_url, 5)
        self.redis_url = redis_url

    def close(self) -> None:
        self.redis.close()

    @asynccontextmanager
    async def overview(self, **changed: Any) -> AsyncIterator[Overview]:
        arguments = {
            "dsn": self.dsn,
            "kafka": self.kafka,
            "clients": {self.service: self.redis},
            "entities": self.entities,
            **changed,
        }
        overview = Overview(**arguments)
        yield overview
        overview.close()

    async def sql(self, *statements: str) -> None:
        connection = await asyncpg.connect(self.dsn)
        try:
            for statement in statements:
                await connection.execute(statement)
        finally:
            await connection.close()

    async def cache(self, key: str, entity: str = "student") -> None:
        """Cache a row as a read would."""
        connection = await asyncpg.connect(self.dsn)
        rows = await Rows.open(connection, self.entities[entity])
        row = (await rows.read([key]))[key]
        await connection.close()
        self.redis.set(slot_name(self.service, entity, key), value_of(row), px=3_600_000)

    @contextmanager
    def relay(self) -> Iterator[None]:
        with working(Relay(self.dsn, self.kafka, self.entities, timedelta(days=1))):
            yield

    @contextmanager
    def stream(self) -> Iterator[None]:
        settings = consumer_settings(self.kafka, group_of(self.service))
        with blocking_client(self.redis_url, 1) as client:
            stream = open_stream(
                self.service,
                self.entities,
                client,
                settings,
                RetryPolicy(),
                connect=lambda: Consumer(settings),
                connect_producer=lambda: Producer(self.kafka),
            )
            with working(stream):
                yield


@contextmanager
def working(work: Any) -> Iterator[None]:
    thread = threading.Thread(target=work.run)
    thread.start()
    try:
        yield
    finally:
        work.stop()
        thread.join(30)
        assert not thread.is_alive()


@pytest.fixture
def system(sample: str, redis_sb: Redis, topics: str, entities: dict[str, Entity]) -> Iterator[System]:
    with closing(System(sample, topics, redis_sb.url, entities)) as made:
        yield made


async def shown(overview: Overview, key: str, condition: Callable[[KeyReport], bool]) -> KeyReport:
    """Wait until the report on a student meets a condition."""
    report = None
    try:
        async with asyncio.timeout(60):
            while True:
                report = await overview.show("student", key)
                if condition(report):
                    return report
    except TimeoutError:
        pytest.fail(f"the last verdict was: {report and report.verdict}")


def says(*words: str) -> Callable[[KeyReport], bool]:
    return lambda report: all(word in report.verdict for word in words)


async def test_show_names_each_fault_that_is_staged(system: System) -> None:
    """One system for all: a consumer takes seconds to join its group."""
    for key in "12345":
        await system.sql(f"INSERT INTO student VALUES ({key}, 'Ann', 20)")
        await system.cache(key)
    # Mended by the relay and the stream, which find these changes when they start.
    await system.sql("UPDATE student SET age = 21 WHERE id = 1", "DELETE FROM student WHERE id = 5")
    async with system.overview() as overview:
        report = await shown(
            overview, "1", says("is stale", "(upsert by postgres", "the relay is not running")
        )
        assert report.assessment == "wrong"
        assert report.actions == ("Start the DAG outbox_relay, or run `cachesync relay`.",)
        await shown(overview, "5", says("the row does not exist. Change", "(delete by postgres"))
        with system.relay():
            await shown(
                overview, "1", says("was published", f"the consumer group cachesync-{system.service} has no")
            )
            with system.stream():
                await shown(overview, "1", lambda report: report.assessment == "right")
                await shown(overview, "5", says("The row does not exist, and no cache says otherwise."))

                with refusing(system.redis, "no deletes"):
                    await system.sql("UPDATE student SET age = 21 WHERE id = 2")
                    await shown(
                        overview,
                        "2",
                        says(f"but the Redis of {system.service} refuses writes (this user has"),
                    )
                await shown(overview, "2", lambda report: report.assessment == "right")

                garbage = Producer(system.kafka)
                garbage.produce("cachesync.student", key=b"2", value=b"garbage")
                assert garbage.flush(30) == 0
                await shown(overview, "2", lambda report: bool(report.letters))
                name = slot_name(system.service, "student", "2")
                older = int(system.redis.get(name)[1:20]) - 1
                system.redis.setrange(name, 1, f"{older:019}")
                await shown(
                    overview, "2", says("A message with its key is not a change, and is the dead letter")
                )

                with denying(system.redis, "3"):
                    await system.sql("UPDATE student SET age = 21 WHERE id = 3")
                    await shown(overview, "3", lambda report: bool(report.letters))
                report = await shown(
                    overview, "3", says("could not be applied and is the dead letter dead-letters")
                )
                assert report.letters is not None
                assert report.letters[0].letter in report.verdict

                # As if the live check had looked at its triggers, which is all that it looks at.
                await system.sql(
                    "INSERT INTO cachesync.capture_state (entity, checked_at) VALUES ('student', now())",
                    "ALTER TABLE student DISABLE TRIGGER ALL",
                    "UPDATE student SET age = 21 WHERE id = 4",
                )
                await shown(
                    overview, "4", says("another row than the database", "is disabled", "reconcile --deep")
                )

                status = await overview.status()
                (cache,) = status.caches
                assert cache.consumers is not None
                assert [len(one.partitions) for one in cache.consumers] == [4 * 6]
                assert cache.consumer_lag == 0
                (student, *_) = cache.entities
                # A batch that is applied twice has two letters.
                assert student.open_letters
                assert student.capture_problem is not None
                texts = [problem.text for problem in status.problems]
                assert any("Changes of student may go unnoticed: " in text for text in texts)


async def test_status_and_show_tell_what_they_can_while_servers_are_away(system: System) -> None:
    await system.sql("INSERT INTO student VALUES (7, 'Ann', 20)")
    await system.cache("7")
    away = blocking_client("redis://127.0.0.1:1", 1)
    clients = {system.service: system.redis, "gone": away}
    async with system.overview(kafka={"bootstrap.servers": "127.0.0.1:1"}, clients=clients) as overview:
        status, report = await asyncio.gather(overview.status(), overview.show("student", "7"))
    assert {"kafka", "redis gone"} <= status.unavailable.keys()
    first, second = status.caches
    assert (first.redis, first.keys, first.consumers) == ("ok", 1, None)
    assert (second.redis, second.keys) == ("unavailable", None)
    assert status.letters is None
    assert {"Kafka does not respond", "The Redis of gone does not respond"} <= {
        problem.text.partition(":")[0] for problem in status.problems
    }
    assert report.assessment == "unknown"
    assert f"Every cache that has the row has version {report.row and report.row.version}" in report.verdict
    with socket.create_server(("127.0.0.1", 0)) as frozen:
        frozen.settimeout(0)
        # As Airflow's hook makes it.
        clients["frozen"] = redis.Redis(port=frozen.getsockname()[1], socket_timeout=0.2)
        async with system.overview(dsn="postgresql://127.0.0.1:1/none", clients=clients) as overview:
            status = await overview.status()
        # It is not asked again and again while the others wait.
        frozen.accept()[0].close()
        with pytest.raises(BlockingIOError):
            frozen.accept()
    assert {"database", "redis frozen"} <= status.unavailable.keys()
    assert status.backlog is None
    assert status.caches[0].consumers == ()


async def test_locked_tables_hold_the_status_up_once_and_not_for_each_statement(
    system: System, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("cachesync.overview.overview._SECONDS", 2)
    async with system.overview() as overview:
        connection = await asyncpg.connect(system.dsn)
        async with connection.transaction():
            await connection.execute(
                "LOCK cachesync.change_log, cachesync.consistency, cachesync.cache_state"
            )
            # Of five statements, each waits for a lock.
            async with asyncio.timeout(4.5 * 2):
                status = await overview.status()
            await connection.execute("LOCK student")
            with pytest.raises(DatabaseUnavailableError, match="a lock is held for too long"):
                await overview.show("student", "1")
        await connection.close()
        assert status.unavailable.keys() == {"live check", "backlog"}
        assert "Which changes wait for the relay is not known" in " ".join(
            one.text for one in status.problems
        )
        assert status.reconciliations is not None
        assert (await overview.status(day=False)).unavailable == {}


async def test_looks_share_connections_unless_the_database_did_not_respond(system: System) -> None:
    admin = await asyncpg.connect(system.dsn)

    async def sessions() -> set[int]:
        rows = await admin.fetch(
            "SELECT pid FROM pg_stat_activity WHERE application_name = 'cachesync-overview'"
        )
        return {row["pid"] for row in rows}

    (port,) = re.findall(r":(\d+)/", system.dsn)
    with Proxy(int(port)) as proxy:
        async with system.overview(dsn=system.dsn.replace(f":{port}/", f":{proxy.port}/")) as overview:
            await overview.status()
            kept = await sessions()
            assert (await overview.status()).unavailable == {}
            assert await sessions() == kept != set()
            proxy.freeze()
            assert "database" in (await overview.status()).unavailable
            proxy.mend()
            assert (await overview.status()).unavailable == {}
    while await sessions():
        await asyncio.sleep(0.02)
    await admin.close()


async def test_cache_in_a_cluster_is_looked_at_on_every_primary(
    system: System, redis_cluster: RedisCluster
) -> None:
    with closing(blocking_client(redis_cluster.url, 1)) as client:
        clients = {system.service: client}
        async with system.overview(clients=clients) as overview:
            for key in "123":  # On more than one primary.
                await system.sql(f"INSERT INTO student VALUES ({key}, 'Ann', 20)")
                await system.cache(key)
                name = slot_name(system.service, "student", key)
                client.set(name, system.redis.get(name), px=3_600_000)
                report = await overview.show("student", key)
                assert report.assessment == "right"
                assert report.caches[0].kind == "value"
            (cache,) = (await overview.status()).caches
            assert (cache.redis, cache.keys) == ("ok", 3)
            for node in redis_cluster.nodes:
                with node.client() as primary:
                    primary.execute_command("ACL SETUSER default -evalsha")
                    (cache,) = (await overview.status()).caches
                    primary.execute_command("ACL SETUSER default +@all")
                assert cache.redis == "refuses writes"
            frozen = redis_cluster.nodes[1]
            frozen.freeze()
            (cache,) = (await overview.status()).caches
            frozen.thaw()
            redis_cluster.wait_until_whole()
            assert cache.redis == "unavailable"
            assert f":{frozen.port}: " in (cache.redis_problem or "")


def environment_of(system: System) -> dict[str, str]:
    return {
        "COLUMNS": "250",
        "CACHESYNC_DSN": system.dsn,
        "CACHESYNC_ENTITIES": str(ENTITIES_FILE),
        "CACHESYNC_REDIS_URLS": f"{system.service}={system.redis_url}",
        "KAFKA_BOOTSTRAP_SERVERS": system.kafka["bootstrap.servers"],
    }


def command(system: System, *arguments: str, status: int) -> Result:
    result = CliRunner().invoke(app, arguments, env=environment_of(system))
    assert result.exit_code == status, result.output
    return result


async def test_the_commands_print_words_and_json(system: System) -> None:
    await system.sql(
        "INSERT INTO student VALUES (7, 'Ann', 20)",
        "INSERT INTO grade (student_id, subject, points) VALUES (7, 'Art/Music', 90)",
    )
    await system.cache("7")

    def run(*arguments: str, status: int) -> Awaitable[Result]:
        return asyncio.to_thread(command, system, *arguments, status=status)

    await run("reconcile", "--entity", "student", status=0)
    link = "http://airflow/dags/reconcile/runs/manual"
    parameters = Parameters(services=(system.service,), entities=("student",), mode="delta")
    connection = await connect(system.dsn, "test")
    await runs.plan(connection, "manual", parameters, {system.service: system.redis}, link)
    await connection.close()

    taken = Status.model_validate_json((await run("status", "--json", status=3)).stdout)
    assert [one.entity for one in taken.caches[0].entities] == list(system.entities)
    assert taken.caches[0].entities[0].entries == 1
    assert taken.reconciliations is not None
    assert [(one.run, one.outcome, one.link) for one in taken.reconciliations] == [
        ("manual", None, link),
        (taken.reconciliations[1].run, "clean", None),
    ]
    assert taken.backlog is not None
    assert taken.backlog.changes >= 1
    words = (await run("status", status=3)).stdout
    assert words.startswith("critical  ")
    assert "The relay is not running" in words
    assert "student" in words

    report = KeyReport.model_validate_json((await run("show", "student", "7", "--json", status=0)).stdout)
    assert (report.key, report.assessment) == ("7", "right")
    assert "Every cache that has the row has version" in (await run("show", "student", "7", status=0)).stdout
    for spelling in (["7/Art~1Music"], ["7", "Art/Music"], ['[7, "Art/Music"]']):
        shown = await run("show", "grade", *spelling, status=0)
        assert "grade 7/Art~1Music, version" in shown.stdout

    assert "no part of a key is null" in (await run("show", "grade", "[7, null]", status=1)).output
    assert "did you mean 'student'?" in (await run("show", "studnt", "7", status=1)).output
    assert "KEY" in (await run("show", "student", status=2)).output
    assert "is not a valid value of type bigint" in (await run("show", "student", "x", status=1)).output


async def test_watch_shows_the_status_in_a_terminal_until_q_is_typed(system: System) -> None:
    terminal, other = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "cachesync", "watch"),
        stdin=other,
        stdout=other,
        stderr=other,
        env=os.environ | environment_of(system) | {"TERM": "xterm", "LINES": "50"},
    )
    os.close(other)
    shown = b""
    while b"The relay is not running" not in shown:
        shown += await asyncio.to_thread(os.read, terminal, 65_536)
    os.write(terminal, b"q")
    assert await process.wait() == 0
    os.close(terminal)
    assert b"q ends" in shown
