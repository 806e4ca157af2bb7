"""How the reads of a service are counted: in its metrics, and in its Redis for the live check."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import redis as redis_client
from prometheus_client import REGISTRY

from cachesync import AsyncCaches
from cachesync.service import reporting
from cachesync.service.cache import Outcome
from cachesync.service.row_input import RowInput
from cachesync.sync import Caches
from tests.integration.conftest import ENTITIES_FILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    import asyncpg

    from cachesync.service.cache import EntityCache
    from cachesync.service.service import Service
    from local.redis import Redis

    OpenService = Callable[..., AbstractAsyncContextManager[Service]]


@pytest.fixture
def slots(redis_sa: Redis) -> redis_client.Redis:
    return redis_client.Redis.from_url(redis_sa.url, decode_responses=True)


def reads_in(slots: redis_client.Redis) -> dict[str, int]:
    """The reads in the hash, by entity and outcome."""
    return {str(field): int(number) for field, number in slots.hgetall("sa:@:reads").items()}


def sample(name: str, **labels: str) -> float:
    return REGISTRY.get_sample_value(name, labels) or 0


async def read_until_hit(cache: EntityCache, key: str) -> dict[str, int]:
    """Read until a read hits, and return how many reads had each outcome."""
    outcomes: dict[str, int] = {}
    async with asyncio.timeout(30):
        while Outcome.HIT not in outcomes:
            outcome = (await cache.read(key)).outcome
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


async def test_reads_are_counted_once_by_entity_and_outcome(
    open_service: OpenService, slots: redis_client.Redis, admin: asyncpg.Connection
) -> None:
    await admin.execute("INSERT INTO grade (student_id, subject, certificate) VALUES (1, 'art', 'c1')")
    before = {name: sample(f"cachesync_{name}_total", entity="student") for name in ("hits", "misses")}
    bypassed = sample("cachesync_bypasses_total", entity="student", reason="suspended")
    async with open_service("sa") as sa:
        students, grades = sa.caches["student"], sa.caches["grade"]
        await students.insert(RowInput.from_json('{"id": 1, "name": "Ann"}'))
        slots.delete("sa:student:1")
        outcomes = await read_until_hit(students, "1")
        many = [read.outcome for read in (await students.read_many(["1", "2", "1"])).values()]
        found = [(await grades.find(["certificate"], ("c1",))).outcome for _ in range(4)]
        students.problem = "because of this test"
        await students.read("1")
        students.problem = None
        sa.share_metrics()
        if Outcome.BYPASS not in outcomes and Outcome.BYPASS not in many:
            assert sample("cachesync_hits_total", entity="student") - before["hits"] == 1 + many.count(
                Outcome.HIT
            )
            assert sample("cachesync_misses_total", entity="student") - before["misses"] == 1 + many.count(
                Outcome.MISS
            )
        assert sample("cachesync_bypasses_total", entity="student", reason="suspended") - bypassed == 1
        assert sample("cachesync_pool_limit") == 10
        assert sample("cachesync_pool_connections", state="idle") >= 1
    reads = reads_in(slots)
    assert sum(number for field, number in reads.items() if field.startswith("student|")) == 3 + sum(
        outcomes.values()
    )
    # A lookup that finds a row reads the slots of the value and of the row, which is one read.
    assert sum(number for field, number in reads.items() if field.startswith("grade|")) == len(found)


async def test_reads_wait_in_the_process_while_redis_is_away(
    open_service: OpenService,
    redis_sa: Redis,
    slots: redis_client.Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(reporting, "_SHARE_SECONDS", 0.01)
    async with open_service("sa") as sa:
        redis_sa.freeze()
        try:
            while sample("cachesync_open_breakers") == 0:
                assert (await sa.caches["student"].read("1")).outcome is Outcome.BYPASS
                await asyncio.sleep(0.02)
        finally:
            redis_sa.thaw()
        async with asyncio.timeout(30):
            while not reads_in(slots).get("student|bypass"):
                await asyncio.sleep(0.02)
            while sample("cachesync_open_breakers"):
                await sa.caches["student"].read("1")
                await asyncio.sleep(0.02)


async def test_library_counts_its_reads_too(sa_dsn: str, redis_sa: Redis, slots: redis_client.Redis) -> None:
    async with AsyncCaches("sa", redis=redis_sa.url, database=sa_dsn, entities=ENTITIES_FILE) as caches:
        await caches["student"].get(1)
    assert sum(reads_in(slots).values()) == 1

    def blocking() -> None:
        with Caches("sa", redis=redis_sa.url, database=sa_dsn, entities=ENTITIES_FILE) as caches:
            for _ in range(5):
                caches["student"].get(1)

    await asyncio.to_thread(blocking)
    assert sum(reads_in(slots).values()) == 6
