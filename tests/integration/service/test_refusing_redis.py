"""A service whose Redis can be read, but refuses commands, or holds what is not a slot."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
import redis as redis_client
from structlog.testing import capture_logs

from cachesync.errors import CacheUnavailableError
from cachesync.service.cache import EntityCache, Outcome
from cachesync.service.row_input import RowInput
from cachesync.value import encode_value
from tests.integration.refusals import DELETES, READS_ONLY, refusing
from tests.integration.slots.test_applier import GARBAGE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    import asyncpg

    from cachesync.service.service import Service
    from local.redis import Redis

    OpenService = Callable[..., AbstractAsyncContextManager[Service]]

NAME = "sa:student:1"
PATIENT = {"redis_timeout_ms": 10_000}


@pytest.fixture
async def service(open_service: OpenService, admin: asyncpg.Connection) -> AsyncIterator[Service]:
    await admin.execute("INSERT INTO student VALUES (1, 'Ann', 20)")
    async with open_service("sa", **PATIENT) as service:
        yield service


@pytest.fixture
def students(service: Service) -> EntityCache:
    return service.caches["student"]


@pytest.fixture
def slots(redis_sa: Redis) -> redis_client.Redis:
    return redis_client.Redis.from_url(redis_sa.url)


def renamed(name: str) -> RowInput:
    return RowInput.from_mapping({"name": name})


def content(slots: redis_client.Redis, name: str = NAME) -> bytes:
    """Return the content of a slot; nothing if it is empty."""
    slot = slots.get(name) or b""
    assert isinstance(slot, bytes)
    return slot


async def until(cache: EntityCache, outcome: Outcome) -> None:
    async with asyncio.timeout(20):
        while (await cache.read("1")).outcome is not outcome:
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("how", DELETES)
async def test_write_that_redis_refuses_empties_the_slot(
    students: EntityCache, slots: redis_client.Redis, how: str
) -> None:
    await until(students, Outcome.HIT)
    with refusing(slots, how):
        for name in ("Bea", "Cid"):
            written = await students.merge("1", renamed(name), None)
            assert written.cached
            read = await students.read("1")
            assert (read.outcome, read.row) == (Outcome.BYPASS, written.row)
    await until(students, Outcome.HIT)
    assert (await students.read("1")).row == written.row


@pytest.mark.parametrize("how", READS_ONLY)
async def test_redis_that_refuses_even_deletes_is_not_read(
    open_service: OpenService, students: EntityCache, slots: redis_client.Redis, how: str
) -> None:
    async with open_service("sa", **PATIENT) as other:
        await until(students, Outcome.HIT)
        await until(other.caches["student"], Outcome.HIT)
        with refusing(slots, how):
            written = await students.merge("1", renamed("Bea"), None)
            assert not written.cached
            for _ in range(20):
                read = await students.read("1")
                assert (read.outcome, read.row) == (Outcome.BYPASS, written.row)
            # Another process has seen no write fail.
            await until(other.caches["student"], Outcome.BYPASS)
        while (read := await students.read("1")).outcome is Outcome.BYPASS:
            await asyncio.sleep(0.02)
        assert (read.outcome, read.row) == (Outcome.MISS, written.row)
        await until(other.caches["student"], Outcome.HIT)


async def test_slot_that_missed_a_write_during_an_outage_is_not_read_afterwards(
    open_service: OpenService, admin: asyncpg.Connection, redis_sa: Redis
) -> None:
    await admin.execute("INSERT INTO student VALUES (1, 'Ann', 20)")
    async with open_service("sa", redis_timeout_ms=200) as service:
        students = service.caches["student"]
        await until(students, Outcome.HIT)
        redis_sa.freeze()
        try:
            # Without a lease, and without a slot that has the change.
            written = await students.merge("1", renamed("Bea"), None)
        finally:
            redis_sa.thaw()
        assert not written.cached
        for _ in range(100):
            assert (await students.read("1")).row == written.row
            await asyncio.sleep(0.02)
        await until(students, Outcome.HIT)
        assert (await students.read("1")).row == written.row


@pytest.mark.parametrize("how", [*DELETES, *READS_ONLY])
async def test_health_reports_what_redis_refuses_and_it_is_logged_once(
    service: Service, students: EntityCache, slots: redis_client.Redis, how: str
) -> None:
    reasons = {
        "full": "OOM",
        "no SET": "permission|can't run",
        "no scripts": "evalsha",
        "replica": "read only",
    }
    assert await service.health() == {"postgresql": True, "redis": True, "kafka": True}
    with refusing(slots, how), capture_logs() as logs:
        for name in ("Bea", "Cid", "Dan"):
            await students.merge("1", renamed(name), None)
            await students.read("1")
            health = await service.health()
        assert health["redis"] is False
        reason = str(health["redis_reason"])
        assert any(part in reason for part in reasons.get(how, "'del' command").split("|"))
    assert [one["event"] for one in logs] == ["cache refuses commands"]
    assert (await service.health())["redis"] is True


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("redis://default:wrong@{address}/0", "password"),
        ("redis://{address}/999", "DB index is out of range"),
        ("redis://127.0.0.1:1/0", "127.0.0.1:1"),
    ],
)
async def test_health_reports_why_redis_cannot_be_reached(
    open_service: OpenService, admin: asyncpg.Connection, slots: redis_client.Redis, url: str, reason: str
) -> None:
    await admin.execute("INSERT INTO student VALUES (1, 'Ann', 20)")
    kwargs = slots.get_connection_kwargs()
    address = f"{kwargs['host']}:{kwargs['port']}"
    slots.execute_command("ACL SETUSER default resetpass >right")
    slots.auth("right")
    try:
        with capture_logs() as logs:
            right = f"redis://default:right@{address}/999" if "999" in url else url.format(address=address)
            async with open_service("sa", redis_url=right) as service:
                for _ in range(10):
                    assert (await service.caches["student"].read("1")).outcome is Outcome.BYPASS
                health = await service.health()
    finally:
        slots.execute_command("ACL SETUSER default nopass")
    assert health["redis"] is False
    assert reason in str(health["redis_reason"])
    assert "right" not in str(health["redis_reason"])
    assert [one["event"] for one in logs].count("cache unavailable") == 1


@pytest.mark.parametrize("garbage", GARBAGE)
async def test_unreadable_slot_is_a_miss_and_is_replaced(
    students: EntityCache, slots: redis_client.Redis, garbage: bytes
) -> None:
    slots.set(NAME, garbage)
    assert (await students.read("1")).outcome is Outcome.MISS
    assert (await students.read("1")).outcome is Outcome.HIT
    assert slots.pttl(NAME) > 0
    slots.set(NAME, garbage)
    written = await students.merge("1", renamed("Bea"), None)
    assert written.cached
    assert (await students.read("1")).row == written.row


async def test_lease_that_lasts_longer_than_any_lease_is_replaced(
    students: EntityCache, slots: redis_client.Redis
) -> None:
    slots.set(NAME, b"L" + b"0" * 19 + b"token", px=86_400_000)
    assert (await students.read("1")).outcome is Outcome.MISS


async def test_key_of_another_redis_type_is_a_miss_and_is_replaced(
    students: EntityCache, slots: redis_client.Redis
) -> None:
    slots.hset(NAME, "not", "a slot")
    assert (await students.read("1")).outcome is Outcome.MISS
    assert (await students.read("1")).outcome is Outcome.HIT


async def test_write_that_the_slot_does_not_take_is_reported(
    students: EntityCache, slots: redis_client.Redis
) -> None:
    row = (await students.read("1")).row
    assert row is not None
    slots.set(NAME, encode_value(2**62, row.fingerprint, row.payload), px=60_000)
    assert not (await students.merge("1", renamed("Bea"), None)).cached


async def bypassing(students: EntityCache, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the next read find Redis unavailable, and wait until what it read is in the slot."""

    async def unavailable(_: str) -> None:
        raise CacheUnavailableError

    with monkeypatch.context() as patch:
        patch.setattr(students._slots, "get", unavailable)  # noqa: SLF001
        assert (await students.read("1")).outcome is Outcome.BYPASS
    await asyncio.gather(*students._advances)  # noqa: SLF001


async def test_read_past_the_cache_advances_the_slot(
    students: EntityCache,
    slots: redis_client.Redis,
    monkeypatch: pytest.MonkeyPatch,
    admin: asyncpg.Connection,
) -> None:
    await until(students, Outcome.HIT)
    await admin.execute("UPDATE student SET name = 'Bea'")
    assert b"Ann" in content(slots)
    await bypassing(students, monkeypatch)
    assert b"Bea" in content(slots)
    assert 0 < slots.pttl(NAME) <= students.entity.ttl.total_seconds() * 1000

    await admin.execute("DELETE FROM student")
    await bypassing(students, monkeypatch)
    assert content(slots) == b""
    await admin.execute("INSERT INTO student VALUES (1, 'Cid', 20)")
    await bypassing(students, monkeypatch)
    # An empty slot is not filled: the row could be older than a change that has been applied in between.
    assert content(slots) == b""


async def test_page_advances_the_slots_of_its_rows(
    students: EntityCache, slots: redis_client.Redis, admin: asyncpg.Connection
) -> None:
    await admin.execute("INSERT INTO student SELECT i, 'Ann', 20 FROM generate_series(2, 250) AS i")
    await until(students, Outcome.HIT)
    await students.read("250")
    await admin.execute("UPDATE student SET name = 'Bea'")
    await students.page(None, 1000)
    await asyncio.gather(*students._advances)  # noqa: SLF001
    assert b"Bea" in content(slots)
    assert b"Bea" in content(slots, "sa:student:250")
    assert len(slots.keys("sa:student:*")) == 2
