"""The live check's access to the database and to a cache, without a system around it."""

from __future__ import annotations

import secrets
import threading
import time
from contextlib import closing
from functools import partial
from typing import TYPE_CHECKING

import pytest

from cachesync.entity import CANARY
from cachesync.errors import CacheUnavailableError
from cachesync.install.installer import install
from cachesync.live_check import cache as live_check_cache
from cachesync.live_check import follower as live_check_follower
from cachesync.live_check.cache import REDIS_SECONDS, Cache
from cachesync.live_check.follower import Follower
from cachesync.live_check.judge import LAG_BOUNDS, Change, Counts
from cachesync.live_check.live_check import LiveCheck
from cachesync.live_check.store import Store
from cachesync.slots.clients import blocking_client
from cachesync.slots.layout import slot_name
from cachesync.value import encode_value
from local.silent import Silent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import asyncpg
    from redis import Redis as Client

    from cachesync.entity import Entity
    from local.redis import Redis


@pytest.fixture
async def store(worker_dsn: str, entities: dict[str, Entity]) -> AsyncIterator[Store]:
    store = await Store.open(worker_dsn, entities)
    yield store
    await store.close()


@pytest.fixture
def client(redis_sa: Redis) -> Iterator[Client]:
    with blocking_client(redis_sa.url, 5) as made:
        yield made


@pytest.fixture
def follower(redis_sa: Redis) -> Iterator[Follower]:
    with closing(Follower(Cache("sa", partial(blocking_client, redis_sa.url, REDIS_SECONDS)))) as made:
        yield made


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


async def test_rows_are_read_by_the_new_type_of_their_key_after_an_installation(
    store: Store, admin: asyncpg.Connection, entities: dict[str, Entity]
) -> None:
    await store.capture()
    assert await store.rows("course", ["x"]) == {}
    await admin.execute(
        "DROP VIEW cachesync.course; ALTER TABLE course ALTER id DROP DEFAULT, ALTER id TYPE text;"
        "INSERT INTO course (id, title) VALUES ('x', 'Art')"
    )
    await install(admin, entities, Silent())
    await store.capture()
    assert list(await store.rows("course", ["x"]) or {}) == ["x"]


async def test_changes_are_followed_again_after_the_versions_were_set_back(
    store: Store, admin: asyncpg.Connection, entities: dict[str, Entity], follower: Follower
) -> None:
    """As if a backup had been restored."""
    before = await admin.fetchval("SELECT last_value FROM cachesync.row_version")
    check = LiveCheck(None, {}, entities)
    check._followers = [follower]  # noqa: SLF001 - of a live check that does not run
    check._drawn.append(before)  # noqa: SLF001
    await admin.execute(f"SELECT setval('cachesync.row_version', {before + 1000})")
    await check._change(store)  # noqa: SLF001
    await admin.execute("DELETE FROM cachesync.change_log")
    await admin.execute(f"SELECT setval('cachesync.row_version', {before})")
    await check._change(store)  # noqa: SLF001
    await admin.execute("INSERT INTO student (id, name, age) VALUES (1, 'Ann', 20)")
    await check._change(store)  # noqa: SLF001
    followed = [one.change for one in follower.judge.due(float("inf"))]
    assert [change.entity for change in followed] == [CANARY.name] * 3 + ["student"]
    assert all(before < change.version < before + 10 for change in followed[1:])


async def test_slot_of_the_hidden_entity_above_its_row_is_a_violation(
    store: Store,
    admin: asyncpg.Connection,
    follower: Follower,
    client: Client,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It is past every change, so that nothing else would be noticed."""
    monkeypatch.setattr(live_check_follower, "VIOLATION_SECONDS", 0.0)
    key = str(store.canary[0])
    version, _ = await store.tick(store.canary[0], 0, 0)
    client.set(slot_name("sa", CANARY.name, key), encode_value(10**18, b"01234567", b"{}"))
    follower.follow(Change(CANARY.name, key, version or 0), time.monotonic() - 1, is_exact=True)
    await follower._look()  # noqa: SLF001 - of a follower that does not run
    for _ in range(2):
        await follower.record(store)
    found = await admin.fetch("SELECT entity, key, kind, seen_at FROM cachesync.violation")
    assert [tuple(one) for one in found] == [(CANARY.name, key, "stale", None)]


async def test_slots_of_the_hidden_entity_with_another_schema_are_filled_as_reads_would(
    store: Store, follower: Follower, client: Client
) -> None:
    captures = await store.capture()
    fingerprint = captures[CANARY.name].fingerprint or b""
    follower.fingerprints = {CANARY.name: fingerprint}
    name = slot_name("sa", CANARY.name, str(store.canary[0]))
    client.set(name, encode_value(1, b"01234567", b"{}"))
    await follower._care(store, 0.0)  # noqa: SLF001 - of a follower that does not run
    assert fingerprint in (client.get(name) or b"")


async def test_cache_that_cannot_be_looked_at_is_unavailable_whatever_its_thread_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Such as for the address of a host."""
    monkeypatch.setattr(live_check_cache, "_LONGEST_SECONDS", 0.05)
    resolved = threading.Event()

    def open_client() -> Client:
        resolved.wait()
        raise ConnectionError

    with closing(Cache("sa", open_client)) as cache:
        for _ in range(2):
            with pytest.raises(CacheUnavailableError):
                await cache.care([], None)
        assert cache.state == "unavailable"
        resolved.set()


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
