"""Filling a cache before it is read, on a real Redis and PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
import redis
from typer.testing import CliRunner

from cachesync.cli.main import app
from cachesync.errors import DatabaseError, NotInstalledError
from cachesync.postgres.connect import connected
from cachesync.postgres.rows import Rows
from cachesync.slots.clients import blocking_client
from cachesync.warm.warm import Warmed, Warming
from tests.integration.conftest import ENTITIES_FILE

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator
    from contextlib import AbstractAsyncContextManager

    import asyncpg

    from cachesync.change import Row
    from cachesync.entity import Entity
    from cachesync.service.service import Service
    from local.redis import Redis
    from tests.integration.redis_cluster import RedisCluster

    Warm = Callable[..., Coroutine[None, None, Warmed]]

WARM = ["warm", "student", "--json"]


@pytest.fixture
def client(redis_sb: Redis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_sb.url, decode_responses=True) as opened:
        yield opened


@pytest.fixture
async def students(admin: asyncpg.Connection) -> None:
    """1200 students, of which 10 and 9 changed last."""
    await admin.execute(
        """
        INSERT INTO student (id, name, age) SELECT i, 'Ada ' || i, 36 FROM generate_series(1, 1200) AS i;
        UPDATE student SET age = 37 WHERE id = 9;
        UPDATE student SET age = 37 WHERE id = 10;
        """
    )


@pytest.fixture
def warm(worker_dsn: str, redis_sb: Redis) -> Callable[..., tuple[int, Warmed]]:
    """Runs the command, and returns its exit status and its result."""

    def run(*options: str) -> tuple[int, Warmed]:
        environment = {
            "CACHESYNC_DSN": worker_dsn,
            "CACHESYNC_ENTITIES": str(ENTITIES_FILE),
            "CACHESYNC_REDIS_URLS": f"sb={redis_sb.url}",
        }
        ended = CliRunner().invoke(app, [*WARM, *options], env=environment)
        (done,) = json.loads(ended.stdout)
        return ended.exit_code, Warmed.model_validate(done)

    return run


@pytest.fixture
def warmed(worker_dsn: str, redis_sb: Redis) -> Warm:
    """Fills the slots of an entity without the command."""

    async def run(entity: Entity, url: str = redis_sb.url, **options: Any) -> Warmed:
        async with connected(worker_dsn, "test") as connection:
            with blocking_client(url, 5) as opened:
                warming = Warming(connection, opened, "sb", entity)
                return await warming.run(on_progress=lambda _: None, **options)

    return run


@pytest.mark.usefixtures("students")
async def test_service_reads_hits_and_repeating_the_command_fills_nothing(
    warm: Callable[..., tuple[int, Warmed]],
    open_service: Callable[..., AbstractAsyncContextManager[Service]],
    client: redis.Redis,
) -> None:
    status, done = await asyncio.to_thread(warm)
    assert (status, done.rows, done.filled, done.cached, done.stopped) == (0, 1200, 1200, 0, None)
    assert client.dbsize() == 1200
    assert 3_000_000 < client.pttl("sb:student:7") <= 3_600_000
    async with open_service("sb") as service:
        read = await service.caches["student"].read("700")
        assert read.outcome == "HIT"
        assert read.row is not None
        assert json.loads(read.row.payload) == {"id": 700, "name": "Ada 700", "age": 36}
    status, done = await asyncio.to_thread(warm)
    assert (status, done.filled, done.cached) == (0, 0, 1200)


@pytest.mark.usefixtures("students")
async def test_limit_takes_the_first_rows_in_key_order_and_recent_those_that_changed_last(
    warm: Callable[..., tuple[int, Warmed]], client: redis.Redis
) -> None:
    _, done = await asyncio.to_thread(warm, "--recent", "--limit", "2")
    assert done.filled == 2
    assert set(client.keys()) == {"sb:student:9", "sb:student:10"}
    _, done = await asyncio.to_thread(warm, "--limit", "60", "--rate", "100000")
    assert (done.rows, done.filled, done.cached) == (60, 58, 2)
    assert client.exists("sb:student:60") == 1
    assert client.exists("sb:student:61") == 0


@pytest.mark.usefixtures("students")
async def test_newer_values_and_leases_of_others_stay_as_they_are(
    warm: Callable[..., tuple[int, Warmed]], client: redis.Redis, entities: dict[str, Entity], worker_dsn: str
) -> None:
    async with connected(worker_dsn, "test") as connection:
        rows = await Rows.open(connection, entities["student"])
        fingerprint = (await rows.read(["1"]))["1"].fingerprint.decode()
    kept = {
        "sb:student:1": f"V{2**62:019}{fingerprint}{{}}",
        "sb:student:2": f"L{0:019}token",
        "sb:student:3": "A",
    }
    for name, content in kept.items():
        client.set(name, content, px=50_000)
    client.set("sb:student:4", f"V{2**62:019}deadbeef{{}}")
    _, done = await asyncio.to_thread(warm, "--limit", "5")
    assert (done.filled, done.cached, done.not_filled) == (1, 3, 1)
    assert {name: client.get(name) for name in kept} == kept
    # A value of another schema is a miss, whose version is the floor of the lease.
    assert client.get("sb:student:4") is None


@pytest.mark.usefixtures("students")
async def test_change_that_commits_between_the_read_and_the_fill_is_not_overwritten(
    admin: asyncpg.Connection,
    warmed: Warm,
    client: redis.Redis,
    entities: dict[str, Entity],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    read = Rows.read

    async def read_then_change(self: Rows, keys: Iterable[str]) -> dict[str, Row]:
        loaded = await read(self, keys)
        version = await admin.fetchval("UPDATE student SET age = 40 WHERE id = 1 RETURNING row_version")
        token = str(client.get("sb:student:1"))[20:]
        # What the stream does to a lease: it raises the floor.
        client.set("sb:student:1", f"L{version:019}{token}", keepttl=True)
        return loaded

    monkeypatch.setattr(Rows, "read", read_then_change)
    done = await warmed(entities["student"], limit=2)
    assert (done.filled, done.not_filled) == (1, 1)
    assert client.keys() == ["sb:student:2"]


@pytest.mark.usefixtures("students")
async def test_command_stops_before_it_evicts(
    warm: Callable[..., tuple[int, Warmed]], client: redis.Redis
) -> None:
    before = str(client.config_get("maxmemory")["maxmemory"])
    client.set("sb:course:1", "A", px=60_000)
    client.config_set("maxmemory", int(client.info("memory")["used_memory"] * 1.2))
    try:
        status, done = await asyncio.to_thread(warm)
    finally:
        client.config_set("maxmemory", before)
    assert status == 3
    assert done.stopped is not None
    assert done.stopped.startswith("the Redis of sb is nearly full (")
    assert done.filled < 1200
    assert client.info("stats")["evicted_keys"] == 0
    # No lease is left, for which reads would wait.
    assert client.dbsize() == done.filled + 1


@pytest.mark.usefixtures("students")
async def test_interrupted_command_leaves_no_lease(
    warmed: Warm,
    client: redis.Redis,
    entities: dict[str, Entity],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reading = asyncio.Event()

    async def never(_: Rows, keys: Iterable[str]) -> dict[str, Row]:
        reading.set()
        await asyncio.Event().wait()
        raise AssertionError(keys)

    monkeypatch.setattr(Rows, "read", never)
    task = asyncio.create_task(warmed(entities["student"]))
    await reading.wait()
    assert client.dbsize() == 50
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert client.dbsize() == 0


@pytest.mark.usefixtures("students")
async def test_replica_and_entity_that_is_suspended_are_refused(
    admin: asyncpg.Connection,
    warmed: Warm,
    entities: dict[str, Entity],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await admin.execute("ALTER TABLE student DISABLE TRIGGER cachesync_log_update")
    with pytest.raises(NotInstalledError, match="cachesync_log_update is disabled"):
        await warmed(entities["student"])
    # A standby would take longer to make than all other tests together.
    monkeypatch.setattr("cachesync.warm.warm._IS_REPLICA", "SELECT true")
    with pytest.raises(DatabaseError, match="PostgreSQL is a replica"):
        await warmed(entities["course"])


async def test_keys_of_several_columns_and_a_redis_cluster_are_filled(
    admin: asyncpg.Connection, warmed: Warm, redis_cluster: RedisCluster, entities: dict[str, Entity]
) -> None:
    await admin.execute(
        """
        INSERT INTO grade (student_id, subject, points)
        SELECT i % 10, 'a/b ' || i, 50 FROM generate_series(1, 120) AS i
        """
    )
    done = await warmed(entities["grade"], redis_cluster.url)
    assert (done.rows, done.filled) == (120, 120)
    assert (await warmed(entities["grade"], redis_cluster.url, recent=True)).cached == 120
