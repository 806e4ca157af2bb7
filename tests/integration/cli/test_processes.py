"""The commands `cachesync stream` and `cachesync relay`, as processes on the real servers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import secrets
import signal
import subprocess
import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any
from urllib.request import urlopen

import pytest
import redis as redis_client
from confluent_kafka import Consumer, KafkaException, Producer
from confluent_kafka.admin import AdminClient

from cachesync.dead_letters.letter import DEFAULT_POLICY
from cachesync.entity import with_canary
from cachesync.kafka.groups import consumer_settings, group_of, unconsumed
from cachesync.service.cache import Outcome
from cachesync.service.row_input import RowInput
from cachesync.stream.stream import open_stream
from local.airflow import connections
from local.command import cachesync
from local.ports import HOST, free_port
from local.postgres import run_sql
from tests.faults.proxy import Proxy
from tests.integration.conftest import ENTITIES_FILE, REPOSITORY
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager, AbstractContextManager
    from pathlib import Path

    import asyncpg

    from cachesync.entity import Entity
    from cachesync.service.cache import EntityCache
    from cachesync.service.service import Service
    from local.kafka import Kafka
    from local.redis import Redis

    OpenService = Callable[..., AbstractAsyncContextManager[Service]]
    Start = Callable[..., AbstractContextManager["Command"]]

GIVEN_UP = "a server does not respond, not waiting for it"


class Command:
    """A command that runs until it is stopped.

    Args:
        process: its process.
        log: the file with its log.
    """

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self.log = log

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The entries of its log; a line that is not yet complete is missing."""
        lines = self.log.read_text(encoding="utf-8").splitlines(keepends=True)
        return [json.loads(line) for line in lines if line.endswith("\n")]

    def wait_for(self, event: str) -> None:
        """Wait until it has logged this event."""
        wait_until(lambda: event in [entry["event"] for entry in self.entries], f"{event} in {self.log}")

    def stop(self, number: signal.Signals = signal.SIGTERM) -> None:
        """Ask it to stop, and wait until it has."""
        self.process.send_signal(number)
        assert self.process.wait(30) == 0
        assert self.entries[-1]["event"] == "stopped"


@pytest.fixture
def group() -> str:
    return f"test-{secrets.token_hex(4)}"


@pytest.fixture
def servers(worker_dsn: str, redis_sb: Redis, topics: str) -> dict[str, str]:
    """The addresses of the servers, by environment variable."""
    return {"CACHESYNC_DSN": worker_dsn, "REDIS_URL": redis_sb.url, "KAFKA_BOOTSTRAP_SERVERS": topics}


@pytest.fixture
def start(servers: dict[str, str], group: str, tmp_path: Path) -> Start:
    """Starts the relay, or a stream to sb's cache in a group of its own, with the given environment."""
    arguments = {"stream": ["stream", "--service", "sb", "--group", group], "relay": ["relay"]}

    @contextmanager
    def start(name: str, **changed: str) -> Iterator[Command]:
        environment = {
            **os.environ,
            **servers,
            "CACHESYNC_ENTITIES": str(ENTITIES_FILE),
            **changed,
        }
        log = tmp_path / f"{name}-{secrets.token_hex(4)}.log"
        with log.open("wb") as file:
            command = [sys.executable, "-m", "cachesync", *arguments[name]]
            process = subprocess.Popen(command, cwd=REPOSITORY, env=environment, stderr=file)
        try:
            yield Command(process, log)
        finally:
            process.kill()
            process.wait()

    return start


def metric(port: int, name: str) -> float:
    """The sum of a metric over its labels."""
    with urlopen(f"http://{HOST}:{port}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.partition("{")[0].split()[0] == name)


def metrics(port: int) -> set[str]:
    """The names of all metrics."""
    with urlopen(f"http://{HOST}:{port}/metrics", timeout=5) as response:
        lines = response.read().decode().splitlines()
    return {re.split(r"[{ ]", line)[0] for line in lines if not line.startswith("#")}


class Tags:
    """A new entity with a key that no other test uses, since topics outlive a test.

    Args:
        dsn: the database.
        topics: the broker.
        folder: directory of the entities files.
    """

    def __init__(self, dsn: str, topics: str, folder: Path) -> None:
        self.name = f"tag_{secrets.token_hex(4)}"
        self.section = (
            f'\n[{self.name}]\ntable = "{self.name}"\nkey = "id"\nttl = "1h"\nabsent_ttl = "1m"\n'
            f'path = "/{self.name}"\n'
        )
        self._dsn = dsn
        self._topics = topics
        self._folder = folder
        self.declare("installed", ENTITIES_FILE.read_text(encoding="utf-8") + self.section)

    def file(self, name: str) -> Path:
        """An entities file; `installed` has the new entity."""
        return self._folder / f"{name}.toml"

    def declare(self, name: str, text: str) -> Path:
        """Write an entities file."""
        self.file(name).write_text(text, encoding="utf-8")
        return self.file(name)

    def install(self) -> None:
        """Create the table, and install it."""
        run_sql(self._dsn, f"CREATE TABLE {self.name} (id int PRIMARY KEY, label text)")
        cachesync("install", CACHESYNC_DSN=self._dsn, CACHESYNC_ENTITIES=str(self.file("installed")))

    def create_topic(self) -> None:
        """Create the topic."""
        file = str(self.file("installed"))
        cachesync("create-topics", KAFKA_BOOTSTRAP_SERVERS=self._topics, CACHESYNC_ENTITIES=file)


@pytest.fixture
def tags(sample: str, topics: str, tmp_path: Path) -> Tags:
    return Tags(sample, topics, tmp_path)


async def cached_label(cache: EntityCache) -> str:
    """The label of the new entity's row in its slot, which a read fills if it is empty."""
    async with asyncio.timeout(30):
        # On a busy machine, a reply of Redis can be too late for the service.
        while (read := await cache.read("1")).outcome is not Outcome.HIT:
            pass
    assert read.row is not None
    label: str = json.loads(read.row.payload)["label"]
    return label


async def insert(sb: Service) -> str:
    """Insert a row through a service, and return its key.

    A new consumer group also reads the changes of earlier tests' databases, whose versions can be higher; so
    the key is a new one.
    """
    key = str(secrets.randbelow(2**31))
    await sb.caches["student"].insert(RowInput.from_json(f'{{"id": {key}, "name": "Ann", "age": 20}}'))
    return key


async def follows(sb: Service, admin: asyncpg.Connection, key: str, age: int) -> None:
    """Change a row with SQL, and wait until sb's cache has it."""
    students = sb.caches["student"]
    await students.read(key)
    await admin.execute("UPDATE student SET age = $1 WHERE id = $2", age, int(key))
    async with asyncio.timeout(60):
        while True:
            read = await students.read(key)
            # On a busy machine, a reply of Redis can be too late, so that the service asks the database.
            hit = read.row if read.outcome is Outcome.HIT else None
            if hit is not None and json.loads(hit.payload)["age"] == age:
                return
            await asyncio.sleep(0.01)


async def test_change_by_sql_reaches_a_cache_through_both_processes(
    open_service: OpenService, start: Start, admin: asyncpg.Connection
) -> None:
    ports = {"stream": free_port(), "relay": free_port()}
    with (
        start("stream", METRICS_PORT=str(ports["stream"])) as stream,
        start("relay", METRICS_PORT=str(ports["relay"])) as relay,
    ):
        async with open_service("sb") as sb:
            key = await insert(sb)
            await follows(sb, admin, key, 21)
            await follows(sb, admin, key, 22)
        stream.wait_for("partitions assigned")
        assert metric(ports["relay"], "cachesync_relayed_total") >= 2
        assert metric(ports["stream"], "cachesync_applied_total") >= 2
        assert metric(ports["stream"], "cachesync_restarts_total") == 0
        # Each exports what it does, and nothing of what it imports.
        of_stream, of_relay = (metrics(port) for port in ports.values())
        assert {"cachesync_streams", "cachesync_paused", "cachesync_build_info"} <= of_stream
        assert {"cachesync_backlog", "cachesync_pruned_total", "cachesync_build_info"} <= of_relay
        common = {"cachesync_build_info", "cachesync_restarts_total", "cachesync_restarts_created"}
        assert {name for name in of_stream & of_relay if name.startswith("cachesync_")} == common
        assert not {"cachesync_hits_total", "cachesync_published_total"} & (of_stream | of_relay)
        await asyncio.to_thread(stream.stop)
        await asyncio.to_thread(relay.stop, signal.SIGINT)


def test_stream_shares_its_consumer_group_with_that_of_a_triggerer_and_leaves_it_at_the_end(
    start: Start, group: str, topics: str, redis_sb: Redis, entities: dict[str, Entity]
) -> None:
    kafka = {"bootstrap.servers": topics}
    settings = consumer_settings(kafka, group)
    own = open_stream(
        "sb",
        entities,
        redis_client.Redis.from_url(redis_sb.url, socket_timeout=2),
        settings,
        DEFAULT_POLICY,
        connect=lambda: Consumer(settings),
        connect_producer=lambda: Producer(kafka),
    )
    names = [entity.topic for entity in with_canary(entities).values()]
    admin = AdminClient({"bootstrap.servers": topics})
    described_topics = admin.list_topics(timeout=10).topics
    partitions = sum(len(described_topics[name].partitions) for name in names)

    def members() -> list[int]:
        """The number of partitions of each member."""
        try:
            described = admin.describe_consumer_groups([group])[group].result(10)
        except KafkaException:  # There is no coordinator yet.
            return []
        return sorted(len(member.assignment.topic_partitions) for member in described.members)

    thread = threading.Thread(target=own.run)
    thread.start()
    try:
        wait_until(lambda: members() == [partitions], "all partitions are its own")
        with start("stream") as stream:
            wait_until(lambda: members() == [partitions // 2] * 2, "the partitions are shared")
            stream.stop()
            # It has left, so that the other member need not wait for its session to time out.
            assert GIVEN_UP not in [entry["event"] for entry in stream.entries]
        wait_until(lambda: members() == [partitions], "all partitions are its own again")
        assert unconsumed(kafka, group, names) == []
    finally:
        own.stop()
        thread.join(30)


async def test_processes_wait_for_servers_that_are_not_there_yet(
    open_service: OpenService, start: Start, admin: asyncpg.Connection, servers: dict[str, str]
) -> None:
    ports = {name: re.findall(r":(\d+)", url)[-1] for name, url in servers.items()}
    proxies = {name: Proxy(int(port)) for name, port in ports.items()}
    away = {name: url.replace(f":{ports[name]}", f":{proxies[name].port}") for name, url in servers.items()}
    postgres, redis, kafka = proxies.values()
    async with open_service("sb") as sb:
        key = await insert(sb)
        with start("stream", **away) as stream, start("relay", **away) as relay:
            await asyncio.to_thread(stream.wait_for, "no connection to Kafka")
            await asyncio.to_thread(relay.wait_for, "relay paused: PostgreSQL unavailable")
            # They can be stopped while they wait.
            for name in ("stream", "relay"):
                with start(name, **away) as other:
                    await asyncio.to_thread(other.wait_for, "starting")
                    await asyncio.sleep(1)
                    await asyncio.to_thread(other.stop)
            with kafka, redis, postgres:
                await follows(sb, admin, key, 21)
                # And while they wait again.
                for proxy in (kafka, redis, postgres):
                    proxy.cut()
                await admin.execute("UPDATE student SET age = 22 WHERE id = $1", int(key))
                await asyncio.to_thread(relay.wait_for, "relay paused: PostgreSQL unavailable")
                await asyncio.to_thread(relay.stop)
                await asyncio.to_thread(stream.stop)


async def test_processes_end_before_a_frozen_kafka_responds(
    open_service: OpenService, start: Start, admin: asyncpg.Connection, kafka: Kafka
) -> None:
    with start("stream") as stream, start("relay") as relay:
        async with open_service("sb") as sb:
            key = await insert(sb)
            await follows(sb, admin, key, 21)
        kafka.freeze()
        try:
            await admin.execute("UPDATE student SET age = 22 WHERE id = $1", int(key))
            await asyncio.sleep(0.5)
            stops = (asyncio.to_thread(process.stop, signal.SIGINT) for process in (stream, relay))
            await asyncio.gather(*stops)
        finally:
            kafka.thaw()


async def test_new_entity_is_followed_without_a_restart_and_its_earlier_messages_are_not_lost(
    open_service: OpenService, start: Start, admin: asyncpg.Connection, tags: Tags
) -> None:
    declared = ENTITIES_FILE.read_text(encoding="utf-8")
    with (
        start("stream", CACHESYNC_ENTITIES=str(tags.declare("stream", declared))) as stream,
        start("relay", CACHESYNC_ENTITIES=str(tags.declare("relay", declared))) as relay,
    ):
        await asyncio.to_thread(stream.wait_for, "partitions assigned")
        await asyncio.to_thread(tags.install)
        await asyncio.to_thread(tags.create_topic)
        async with open_service("sb", cachesync_entities=tags.file("installed")) as sb:
            cache = sb.caches[tags.name]

            async def becomes(label: str) -> None:
                async with asyncio.timeout(30):
                    while await cached_label(cache) != label:
                        await asyncio.sleep(0.01)

            await admin.execute(f"INSERT INTO {tags.name} VALUES (1, 'a')")
            assert await cached_label(cache) == "a"
            # Only the relay knows the entity.
            tags.declare("relay", declared + tags.section)
            await admin.execute(f"UPDATE {tags.name} SET label = 'b'")
            unpublished = (
                "SELECT count(*) FROM cachesync.change_log WHERE entity = $1 AND published_at IS NULL"
            )
            async with asyncio.timeout(30):
                while await admin.fetchval(unpublished, tags.name):
                    await asyncio.sleep(0.05)
            await asyncio.sleep(1)
            assert await cached_label(cache) == "a"
            # The stream begins with the messages that were there before.
            tags.declare("stream", declared + tags.section)
            await becomes("b")
            await admin.execute(f"UPDATE {tags.name} SET label = 'c'")
            await becomes("c")
        events = {entry["event"] for process in (stream, relay) for entry in process.entries}
        assert events.isdisjoint({"sending dead letter", "ended with an error", "capture lost"})


async def test_entity_that_one_member_of_the_group_does_not_know_is_left_to_the_others(
    open_service: OpenService, start: Start, admin: asyncpg.Connection, tags: Tags
) -> None:
    await asyncio.to_thread(tags.install)
    await asyncio.to_thread(tags.create_topic)
    with start("stream") as former, start("relay", CACHESYNC_ENTITIES=str(tags.file("installed"))):
        await asyncio.to_thread(former.wait_for, "partitions assigned")
        with start("stream", CACHESYNC_ENTITIES=str(tags.file("installed"))):
            async with open_service("sb", cachesync_entities=tags.file("installed")) as sb:
                cache = sb.caches[tags.name]
                await admin.execute(f"INSERT INTO {tags.name} VALUES (1, 'a')")
                assert await cached_label(cache) == "a"
                await admin.execute(f"UPDATE {tags.name} SET label = 'b'")
                async with asyncio.timeout(30):
                    while await cached_label(cache) != "b":
                        await asyncio.sleep(0.01)
        assert not [entry for entry in former.entries if tags.name in str(entry)]


async def test_topic_that_is_created_after_the_entities_file_has_changed_is_noticed_within_seconds(
    start: Start, tags: Tags
) -> None:
    declared = ENTITIES_FILE.read_text(encoding="utf-8")
    file = tags.declare("stream", declared)
    with start("stream", CACHESYNC_ENTITIES=str(file)) as stream:
        await asyncio.to_thread(stream.wait_for, "partitions assigned")
        tags.declare("stream", declared + tags.section)
        await asyncio.to_thread(stream.wait_for, "entities changed")
        await asyncio.sleep(3)
        await asyncio.to_thread(tags.create_topic)
        topic = f"cachesync.{tags.name}[0]"
        await asyncio.to_thread(
            wait_until,
            lambda: any(topic in entry.get("partitions", []) for entry in stream.entries),
            "the topic is assigned",
            seconds=250,
        )


@pytest.mark.parametrize(
    ("name", "changed", "text"),
    [
        ("relay", {"CACHESYNC_ENTITIES": "/none.toml"}, "cannot read the entities file /none.toml"),
        (
            "relay",
            {"CACHESYNC_CHANGE_LOG_RETENTION_DAYS": "0"},
            "CACHESYNC_CHANGE_LOG_RETENTION_DAYS must be at least 1",
        ),
        ("relay", {"CACHESYNC_DSN": "postgresql://u:x@h:abc/x"}, "invalid database address"),
        ("stream", {"REDIS_URL": "http://h"}, "--redis-url (REDIS_URL): not a Redis URL such as"),
        ("stream", {"KAFKA_SASL_USERNAME": "x"}, "KAFKA_SASL_USERNAME is invalid: it has no effect"),
    ],
)
def test_invalid_setting_ends_the_process_with_one_line(
    start: Start, name: str, changed: dict[str, str], text: str
) -> None:
    with start(name, **changed) as command:
        assert command.process.wait(30) == 1
        *entries, line = command.log.read_text(encoding="utf-8").splitlines()
        assert line.startswith(f"cachesync: {text}")
        assert {json.loads(entry)["event"] for entry in entries} <= {"starting"}


def test_port_of_the_metrics_that_is_taken_ends_the_process_with_one_line(
    start: Start, redis_sb: Redis
) -> None:
    port = redis_sb.url.rpartition(":")[2].partition("/")[0]
    with start("relay", METRICS_PORT=port) as command:
        assert command.process.wait(30) == 1
        (line,) = command.log.read_text(encoding="utf-8").splitlines()
        assert line == f"cachesync: cannot serve metrics on 127.0.0.1:{port}: Address already in use"


def test_stream_is_by_default_a_member_of_the_group_of_airflows_connection() -> None:
    settings = json.loads(connections({"sb": "redis://h"}, "b", "postgresql://")["AIRFLOW_CONN_KAFKA_SB"])
    assert settings["extra"] == consumer_settings({"bootstrap.servers": "b"}, group_of("sb"))
    assert group_of("sb") == "cachesync-sb"
