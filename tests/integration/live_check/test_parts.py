"""The live check's access to the database and to a cache, without a system around it."""

from __future__ import annotations

import secrets
from functools import partial
from typing import TYPE_CHECKING

import pytest

from cachesync.live_check.cache import REDIS_SECONDS, Cache
from cachesync.live_check.judge import LAG_BOUNDS, Counts
from cachesync.live_check.store import Store
from cachesync.slots.clients import blocking_client

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from cachesync.entity import Entity
    from local.redis import Redis


@pytest.fixture
async def store(worker_dsn: str, entities: dict[str, Entity]) -> AsyncIterator[Store]:
    store = await Store.open(worker_dsn, entities)
    yield store
    await store.close()


async def test_change_of_a_long_transaction_is_found_once_it_is_committed(
    store: Store, admin: asyncpg.Connection
) -> None:
    after = await store.newest()
    async with admin.transaction():
        await admin.execute("INSERT INTO student (id, name, age) VALUES (1, 'Ann', 20)")
        for _ in range(3):
            version, found = await store.tick(store.canary[0], after, 20)
            assert (version or 0) > after
            assert found == []
    _, (change,) = await store.tick(store.canary[0], after, 20)
    assert (*change.slot, change.version < (version or 0)) == ("student", "1", True)


async def test_row_of_a_table_that_is_locked_is_not_known_and_all_else_goes_on(
    store: Store, admin: asyncpg.Connection
) -> None:
    async with admin.transaction():
        await admin.execute("LOCK TABLE student IN ACCESS EXCLUSIVE MODE")
        assert await store.rows("student", ["1"]) is None
        version, _ = await store.tick(store.canary[0], 0, 20)
        assert version is not None
    assert await store.rows("student", ["1"]) == {}


async def test_figures_are_kept_by_hour_after_two_days_and_for_thirty(
    store: Store, admin: asyncpg.Connection
) -> None:
    minutes = [
        "29 days 20:00",
        "29 days 20:01",
        "29 days 20:02",
        "29 days 21:00",
        "31 days",
        "1 day",
        "1 day 00:01",
    ]
    figures = Counts([1, 2, 3, 4], [1, 1, 2, 3], list(range(len(LAG_BOUNDS))), 5, 6, 7)
    await store.count([("sa", "student", figures)])
    for age in minutes:
        await admin.execute(
            "INSERT INTO cachesync.consistency"
            f" SELECT date_trunc('hour', now(), 'UTC') - interval '{age}', c.service, c.entity, c.judged,"
            " c.seen, c.lags, c.hits, c.misses, c.bypasses FROM cachesync.consistency AS c"
            " ORDER BY minute DESC LIMIT 1"
        )
    for _ in range(3):
        await store.prune()
    rows = await admin.fetch("SELECT * FROM cachesync.consistency ORDER BY minute")
    # Three of an hour that is 29 days old, one of the next, the two of yesterday, and now.
    assert [row["hits"] for row in rows] == [15, 5, 5, 5, 5]
    assert (rows[0]["judged"], rows[0]["seen"]) == ([3, 6, 9, 12], [3, 3, 6, 9])
    assert rows[0]["lags"] == [3 * count for count in figures.lags]


async def test_redis_whose_login_may_not_write_is_told_with_the_reason(redis_sa: Redis) -> None:
    name, password = f"reader-{secrets.token_hex(4)}", secrets.token_hex(8)
    with blocking_client(redis_sa.url, 5) as admin:
        admin.execute_command(
            "ACL", "SETUSER", name, "on", f">{password}", "~*", "+@read", "+@connection", "+eval", "+evalsha"
        )
        try:
            url = redis_sa.url.replace("://", f"://{name}:{password}@")
            cache = Cache("sa", partial(blocking_client, url, REDIS_SECONDS))
            await cache.care([], None)
            assert cache.state == "refuses writes"
            # Which words follow depends on the version of Redis.
            assert "user" in (cache.problem or "").lower()
            cache.close()
        finally:
            admin.execute_command("ACL", "DELUSER", name)
