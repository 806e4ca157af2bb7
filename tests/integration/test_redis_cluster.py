"""Services, applied changes, dead letters and reconciliation on a real Redis Cluster."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import TYPE_CHECKING

import psycopg
import pytest
from redis import RedisCluster as Client

from cachesync.change import Operation
from cachesync.cli.options import redis_clients
from cachesync.errors import CacheUnavailableError, ReconcileError
from cachesync.reconcile import run as runs
from cachesync.reconcile.models import Parameters, Report
from cachesync.service.cache import EntityCache, Outcome
from cachesync.service.row_input import RowInput
from cachesync.slots.batch import Applier
from cachesync.slots.bulk import Bulk
from cachesync.slots.clients import blocking_client
from cachesync.sync import Caches
from cachesync.value import encode_value
from tests.integration.changes import change, value
from tests.integration.post import Post

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    import asyncpg

    from cachesync.entity import Entity
    from cachesync.service.service import Service
    from tests.integration.redis_cluster import Node, RedisCluster

    OpenService = Callable[..., AbstractAsyncContextManager[Service]]

KEYS = [str(key) for key in range(1, 61)]
TIMEOUT_MS = 500


@pytest.fixture
async def students(
    open_service: OpenService, redis_cluster: RedisCluster, admin: asyncpg.Connection
) -> AsyncIterator[EntityCache]:
    await admin.execute("INSERT INTO student SELECT i, 'Ann', 20 FROM generate_series(1, 60) AS i")
    # All reads at once must find a connection in time even on a busy machine.
    async with open_service(
        "sa", redis_url=redis_cluster.url, redis_timeout_ms=TIMEOUT_MS, db_timeout_ms=20_000
    ) as service:
        yield service.caches["student"]


@pytest.fixture
def slots(redis_cluster: RedisCluster) -> Iterator[Client]:
    client = blocking_client(redis_cluster.url, 1)
    assert isinstance(client, Client)
    with client:
        yield client


@pytest.fixture
def lost(redis_cluster: RedisCluster) -> Iterator[Node]:
    """The primary that owns the slot of the key 1; a test may kill or freeze it."""
    node = redis_cluster.node_of("sa:student:1")
    yield node
    if node.running:
        node.thaw()
    else:
        node.start()
    redis_cluster.wait_until_whole()


async def outcomes(cache: EntityCache, keys: list[str]) -> set[Outcome]:
    return {read.outcome for read in await asyncio.gather(*(cache.read(key) for key in keys))}


async def until_hit(cache: EntityCache, keys: list[str]) -> None:
    async with asyncio.timeout(60):
        while await outcomes(cache, keys) != {Outcome.HIT}:
            await asyncio.sleep(0.05)


def elsewhere(cluster: RedisCluster, node: Node) -> list[str]:
    """Return the keys whose slots are on other primaries."""
    return [key for key in KEYS if cluster.node_of(f"sa:student:{key}") is not node]


def held(slots: Client) -> set[object]:
    return {slots.get(f"sb:student:{key}") for key in KEYS}


async def test_reads_miss_then_hit_and_writes_go_through(students: EntityCache) -> None:
    assert (await students.read("1")).outcome is Outcome.MISS
    assert (await students.read("1")).outcome is Outcome.HIT
    written = await students.merge("1", RowInput.from_json(b'{"name":"Bea"}'), None)
    read = await students.read("1")
    assert (written.cached, read.outcome, read.row) == (True, Outcome.HIT, written.row)
    assert (await students.delete("1", None)).cached
    assert (await students.read("1")).row is None


async def test_rows_are_found_by_values_whose_slots_are_on_other_primaries(
    open_service: OpenService, redis_cluster: RedisCluster
) -> None:
    certificates = {f"c/{number}": f"{number}/a" for number in range(1, 31)}
    assert {
        redis_cluster.node_of(f"sa:grade@certificate:{value}") is redis_cluster.node_of(f"sa:grade:{key}")
        for value, key in certificates.items()
    } == {True, False}
    async with open_service("sa", redis_url=redis_cluster.url, redis_timeout_ms=TIMEOUT_MS) as service:
        grades = service.caches["grade"]

        async def found() -> tuple[set[Outcome], list[str | None]]:
            reads = await asyncio.gather(*(grades.find(["certificate"], (value,)) for value in certificates))
            return {read.outcome for read in reads}, [
                None if read.row is None else read.row.key for read in reads
            ]

        async with asyncio.timeout(10):
            while await found() != ({Outcome.HIT}, [None] * len(certificates)):
                await asyncio.sleep(0.05)
        for number in range(1, 31):
            row = RowInput.from_mapping({"student_id": number, "subject": "a", "certificate": f"c/{number}"})
            await grades.insert(row)
        assert (await found())[1] == [*certificates.values()]
        async with asyncio.timeout(10):
            while await found() != ({Outcome.HIT}, [*certificates.values()]):
                await asyncio.sleep(0.05)


def test_code_that_blocks_reads_and_follows_on_all_primaries(
    sample: str, sa_dsn: str, redis_cluster: RedisCluster, entities: dict[str, Entity]
) -> None:
    outcomes: set[str] = set()
    caches = Caches(
        "sa",
        redis=redis_cluster.url,
        database=sa_dsn,
        entities=entities,
        on_read=lambda _entity, outcome, _rows: outcomes.add(outcome),
    )
    with caches, psycopg.connect(sample) as connection:
        connection.execute("INSERT INTO student SELECT i, 'Ann', 20 FROM generate_series(1, 60) AS i")
        connection.commit()
        deadline = time.monotonic() + 10
        while outcomes != {"HIT"}:
            assert time.monotonic() < deadline
            outcomes.clear()
            caches["student"].get_many(range(1, 61))
        with caches.following(connection) as followed:
            connection.execute("UPDATE student SET age = 21")
        assert followed.cached
        rows = [caches["student"].get(key) for key in range(1, 61)]
        assert rows == [{"id": key, "name": "Ann", "age": 21} for key in range(1, 61)]


async def test_keys_of_all_primaries_are_read_concurrently(
    students: EntityCache, redis_cluster: RedisCluster
) -> None:
    await until_hit(students, KEYS)
    for node in redis_cluster.nodes:
        with node.client() as client:
            assert client.dbsize() > len(KEYS) / 6


async def test_scripts_are_loaded_again_on_every_primary(students: EntityCache, slots: Client) -> None:
    await students.read("1")
    slots.script_flush()
    await until_hit(students, KEYS)


async def test_killed_primary_affects_only_its_own_keys(
    students: EntityCache, redis_cluster: RedisCluster, lost: Node
) -> None:
    await until_hit(students, KEYS)
    lost.kill()
    others = elsewhere(redis_cluster, lost)
    for _ in range(5):
        read, _ = await asyncio.gather(students.read("1"), until_hit(students, others))
        assert (read.outcome, read.row is None) == (Outcome.BYPASS, False)
    assert not (await students.merge("1", RowInput.from_json(b'{"name":"Bea"}'), None)).cached
    lost.start()
    await until_hit(students, KEYS)


async def test_primary_that_restarts_at_another_address_is_found(
    students: EntityCache, slots: Client, redis_cluster: RedisCluster, lost: Node, entities: dict[str, Entity]
) -> None:
    await until_hit(students, KEYS)
    lost.kill()
    lost.take_another_port()
    lost.start()
    redis_cluster.wait_until_whole()
    with pytest.raises(CacheUnavailableError):
        Applier(slots, "sb", entities).heads([change(key, 1) for key in KEYS])
    assert set(Applier(slots, "sb", entities).heads([change(key, 1) for key in KEYS])) == {b""}
    await until_hit(students, KEYS)


async def test_frozen_primary_costs_a_few_timeouts_for_only_its_own_keys(
    students: EntityCache, redis_cluster: RedisCluster, lost: Node
) -> None:
    await until_hit(students, KEYS)
    lost.freeze()
    others = elsewhere(redis_cluster, lost)

    async def waited() -> bool:
        began = time.monotonic()
        assert (await students.read("1")).outcome is Outcome.BYPASS
        return time.monotonic() - began >= TIMEOUT_MS / 1000

    async with asyncio.timeout(60):
        waits = True
        while waits:
            waits, _ = await asyncio.gather(waited(), until_hit(students, others))
    lost.thaw()
    await until_hit(students, KEYS)


async def test_key_that_moves_to_another_primary_is_cached_again(
    students: EntityCache, redis_cluster: RedisCluster
) -> None:
    source = redis_cluster.node_of("sa:student:1")
    target = next(node for node in redis_cluster.nodes if node is not source)
    assert (await students.read("2")).outcome is Outcome.MISS
    redis_cluster.move("sa:student:1", target)
    try:
        read = await students.read("1")
        assert (read.outcome, read.row is None) == (Outcome.BYPASS, False)
        await until_hit(students, ["1"])
    finally:
        with target.client() as client:
            client.flushall()
        redis_cluster.move("sa:student:1", source)


async def test_service_that_starts_while_no_node_responds_finds_them_later(
    open_service: OpenService, redis_cluster: RedisCluster, lost: Node, admin: asyncpg.Connection
) -> None:
    await admin.execute("INSERT INTO student VALUES (1, 'Ann', 20)")
    lost.kill()
    async with open_service("sa", redis_url=f"redis+cluster://127.0.0.1:{lost.port}") as service:
        assert (await service.caches["student"].read("1")).outcome is Outcome.BYPASS
        assert (await service.health())["redis"] is False
        lost.start()
        redis_cluster.wait_until_whole()
        await until_hit(service.caches["student"], ["1"])
        assert (await service.health())["redis"] is True


def test_batch_reaches_all_primaries_even_without_loaded_scripts(
    slots: Client, entities: dict[str, Entity]
) -> None:
    applier = Applier(slots, "sb", entities)
    for key in KEYS:
        slots.set(f"sb:student:{key}", value(10))
    for version in (11, 12):
        slots.script_flush()
        assert applier.apply([change(key, version) for key in KEYS]) == []
        assert held(slots) == {value(version)}
    assert set(applier.heads([change(key, 12) for key in KEYS])) == {value(12)[:29]}


def test_truncate_empties_the_slots_of_all_primaries(slots: Client, entities: dict[str, Entity]) -> None:
    for key in KEYS:
        slots.set(f"sb:student:{key}", value(10))
    slots.set("sb:course:1", value(10))
    Applier(slots, "sb", entities).apply([change(None, 20, Operation.TRUNCATE)])
    assert held(slots) == {None}
    assert slots.get("sb:course:1") == value(10)


def test_batch_fails_within_a_timeout_while_a_primary_is_frozen_and_succeeds_later(
    slots: Client, entities: dict[str, Entity], lost: Node
) -> None:
    applier = Applier(slots, "sb", entities)
    for key in KEYS:
        slots.set(f"sb:student:{key}", value(10))
    batch = [change(key, 20) for key in KEYS]
    lost.freeze()
    began = time.monotonic()
    with pytest.raises(CacheUnavailableError):
        applier.apply(batch)
    with pytest.raises(CacheUnavailableError):
        applier.apply([change(None, 20, Operation.TRUNCATE)])
    # One second per primary queried and for the refresh of the hash slot map.
    assert time.monotonic() - began < 8
    lost.thaw()
    assert applier.apply(batch) == []
    assert held(slots) == {value(20)}


def test_batch_fails_while_a_primary_is_down_and_succeeds_later(
    slots: Client, entities: dict[str, Entity], lost: Node, redis_cluster: RedisCluster
) -> None:
    applier = Applier(slots, "sb", entities)
    batch = [change(key, 20) for key in KEYS]
    lost.kill()
    for _ in range(3):
        with pytest.raises(CacheUnavailableError):
            applier.apply(batch)
    lost.start()
    redis_cluster.wait_until_whole()
    assert applier.apply(batch) == []


def test_change_follows_its_key_to_another_primary(
    slots: Client, entities: dict[str, Entity], redis_cluster: RedisCluster
) -> None:
    source = redis_cluster.node_of("sb:student:1")
    target = next(node for node in redis_cluster.nodes if node is not source)
    redis_cluster.move("sb:student:1", target)
    try:
        with target.client() as client:
            client.set("sb:student:1", value(10))
            assert Applier(slots, "sb", entities).apply([change("1", 20)]) == []
            assert client.get("sb:student:1") == value(20)
            client.flushall()
    finally:
        redis_cluster.move("sb:student:1", source)


async def test_letters_are_retried_on_every_primary(
    admin: asyncpg.Connection,
    worker: asyncpg.Connection,
    topics: str,
    slots: Client,
    entities: dict[str, Entity],
) -> None:
    post = Post(admin, worker, topics, slots, entities)
    rows = {}
    for key in range(1, 13):
        version, rows[key] = await post.insert(key)
        slots.set(f"{post.service}:student:{key}", encode_value(version - 1, b"01234567", b"{}"))
        post.put(b"%d" % key, version)
    assert await post.retry() == ["resolved"] * 12
    assert {key: slots.get(f"{post.service}:student:{key}") for key in rows} == rows


async def test_reconciliation_repairs_the_slots_of_all_primaries(
    sample: str, admin: asyncpg.Connection, slots: Client, entities: dict[str, Entity]
) -> None:
    for key in KEYS:
        slots.set(f"sb:student:{key}", value(10))
    slots.script_flush()
    report = await reconciled(sample, admin, slots, entities, mode="delta")
    assert (report.orphan, report.repaired, report.failed) == (len(KEYS), len(KEYS), 0)
    assert report.notes == ("sb: full run instead of delta, because the cache is a Redis Cluster",)
    assert held(slots) == {None}


async def test_reconciliation_is_planned_again_for_new_primaries(
    sample: str, admin: asyncpg.Connection, slots: Client, entities: dict[str, Entity]
) -> None:
    asked = Parameters(services=("sb",), entities=("student",))
    tasks = await runs.plan(admin, "test", asked, {"sb": slots})
    assert await runs.plan(admin, "test", asked, {"sb": slots}) == tasks
    gone = tasks[0].model_copy(update={"node": "127.0.0.1:1"})
    with pytest.raises(ReconcileError, match=r"no longer has a primary 127\.0\.0\.1:1"):
        await runs.run_chunk(sample, slots, "test", gone, entities, on_progress=lambda _: None)
    await admin.execute(
        "UPDATE cachesync.reconciliation_chunk SET task = $1 WHERE number = 0", gone.model_dump_json()
    )
    assert await runs.plan(admin, "test", asked, {"sb": slots}) == tasks


def test_reconciliation_stops_at_a_key_that_has_moved_to_another_primary(redis_cluster: RedisCluster) -> None:
    away = redis_cluster.node_of("sb:student:1")
    node = next(node for node in redis_cluster.nodes if node is not away)
    stopped = pytest.raises(CacheUnavailableError, match="keys are moving between a node and other nodes")
    with node.client() as client, Bulk(client, "a node") as bulk, stopped:
        bulk.call([(b"GET", b"sb:student:1")])


async def reconciled(
    sample: str, admin: asyncpg.Connection, slots: Client, entities: dict[str, Entity], **asked: object
) -> Report:
    parameters = Parameters.model_validate({"services": ["sb"], "entities": ["student"], **asked})
    name = f"test-{secrets.token_hex(4)}"
    for task in await runs.plan(admin, name, parameters, {"sb": slots}):
        await runs.run_chunk(
            sample, slots, name, task, entities, on_progress=lambda _: None, settle_seconds=0.05
        )
    return await runs.report(admin, name)


def test_command_reaches_a_cluster_through_any_of_its_nodes(redis_cluster: RedisCluster) -> None:
    for node in redis_cluster.nodes:
        with redis_clients([f"sb=redis+cluster://127.0.0.1:{node.port}"]) as clients:
            assert clients["sb"].dbsize(target_nodes="primaries") == 0
    with pytest.raises(CacheUnavailableError), redis_clients(["sb=redis+cluster://127.0.0.1:1"]):
        pytest.fail("nothing responds there")


def test_airflow_connection_with_the_extra_cluster_opens_a_cluster_client(
    redis_cluster: RedisCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cachesync_airflow.connections import redis  # noqa: PLC0415 - importing Airflow takes seconds

    address = f"redis://127.0.0.1:{redis_cluster.nodes[2].port}"
    monkeypatch.setenv("AIRFLOW_CONN_REDIS_SB", f"{address}?cluster=true")
    with redis("sb", 2) as client:
        assert isinstance(client, Client)
        assert len(client.get_primaries()) == 3
