"""The reader in JavaScript keeps to the rules of the slots, on slots that it shares with the library."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import pytest
import redis

from cachesync import AsyncCaches
from cachesync.slots.layout import slot_name
from tests.integration.conftest import ENTITIES_FILE
from tests.waiting import wait_until

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import asyncpg

    from local.redis import Redis

EXAMPLE: Final = Path(__file__).parents[2] / "examples" / "node"

pytestmark = pytest.mark.skipif(
    shutil.which("npm") is None, reason="Node.js and npm are not installed, so the reader cannot run"
)


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reader with its packages."""
    folder = tmp_path_factory.mktemp("node")
    shutil.copytree(EXAMPLE, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("node_modules"))
    subprocess.run(["npm", "ci", "--silent"], cwd=folder, check=True, timeout=120)
    return folder / "students.js"


@pytest.fixture
def slots(redis_sa: Redis) -> Iterator[redis.Redis]:
    with redis.Redis.from_url(redis_sa.url) as client:
        yield client


class Reader:
    """The running program, which reads one student per line."""

    def __init__(self, program: Path, **settings: str) -> None:
        self._process = subprocess.Popen(
            ["node", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | settings,
        )

    def ask(self, key: str) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write(f"{key}\n")
        self._process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def read(self, key: str) -> dict[str, Any]:
        self.ask(key)
        return self.answer()

    def read_until(self, key: str, outcome: str) -> dict[str, Any]:
        """Read until the reader got an answer in this way: a busy machine makes a Redis that is late."""
        wait_until(lambda: self.read(key)["outcome"] == outcome, f"a {outcome}")
        return self.read(key)

    def close(self) -> None:
        self._process.communicate(timeout=60)


@pytest.fixture
def reader(program: Path, sa_dsn: str, redis_sa: Redis) -> Iterator[Reader]:
    scripts = EXAMPLE.parents[1] / "cachesync" / "slots" / "lua"
    running = Reader(program, SERVICE="sa", DATABASE_URL=sa_dsn, REDIS_URL=redis_sa.url, SCRIPTS=str(scripts))
    yield running
    running.close()


@pytest.fixture
async def caches(sa_dsn: str, redis_sa: Redis) -> AsyncIterator[AsyncCaches]:
    async with AsyncCaches("sa", redis=redis_sa.url, database=sa_dsn, entities=ENTITIES_FILE) as opened:
        yield opened


async def test_slots_are_the_same_whoever_fills_them(
    reader: Reader, caches: AsyncCaches, admin: asyncpg.Connection, slots: redis.Redis
) -> None:
    await admin.execute("INSERT INTO student VALUES (1, 'Zoë \"/~', 20)")
    name = slot_name("sa", "student", "1")
    row = {"id": 1, "name": 'Zoë "/~', "age": 20}
    assert reader.read("1")["row"] == row
    assert reader.read_until("1", "HIT")["row"] == row
    filled = slots.get(name)
    slots.delete(name)
    assert await caches["student"].get(1) == row
    wait_until(lambda: slots.get(name) is not None, "the slot is filled")
    assert slots.get(name) == filled
    assert reader.read_until("1", "HIT")["row"] == row


async def test_missing_row_is_absent_until_a_change_of_it_is_applied(
    reader: Reader, caches: AsyncCaches, admin: asyncpg.Connection, slots: redis.Redis
) -> None:
    assert reader.read_until("2", "HIT")["row"] is None
    assert slots.get(slot_name("sa", "student", "2")) == b"A"
    async with caches.following(admin):
        await admin.execute("INSERT INTO student VALUES (2, 'Bo', NULL)")
    assert reader.read("2")["row"] == {"id": 2, "name": "Bo", "age": None}


async def test_row_that_was_loaded_before_a_newer_change_does_not_fill_the_slot(
    reader: Reader, caches: AsyncCaches, admin: asyncpg.Connection, slots: redis.Redis
) -> None:
    version = await admin.fetchval("INSERT INTO student VALUES (3, 'Di', 30) RETURNING row_version")
    name = slot_name("sa", "student", "3")
    async with admin.transaction():
        await admin.execute("LOCK TABLE student IN ACCESS EXCLUSIVE MODE")
        reader.ask("3")
        wait_until(lambda: slots.getrange(name, 0, 0) == b"L", "the lease is taken")
        # It holds the lease, and waits for the database.
        assert await caches.committed([("student", 3, version + 1)])
    assert reader.answer()["row"] == {"id": 3, "name": "Di", "age": 30}
    wait_until(lambda: slots.get(name) is None, "the slot is empty")


async def test_database_answers_while_redis_does_not(
    reader: Reader, admin: asyncpg.Connection, redis_sa: Redis
) -> None:
    await admin.execute("INSERT INTO student VALUES (4, 'Flo', 40)")
    assert reader.read_until("4", "HIT")
    redis_sa.freeze()
    try:
        assert reader.read("4") == {"row": {"id": 4, "name": "Flo", "age": 40}, "outcome": "BYPASS"}
    finally:
        redis_sa.thaw()
    assert reader.read_until("4", "HIT")


async def test_row_of_another_schema_is_a_miss(
    reader: Reader, admin: asyncpg.Connection, slots: redis.Redis
) -> None:
    await admin.execute("INSERT INTO student VALUES (5, 'Gus', 50)")
    assert reader.read_until("5", "HIT")
    name = slot_name("sa", "student", "5")
    slot = slots.get(name)
    assert isinstance(slot, bytes)
    slots.set(name, slot[:20] + b"00000000" + b'{"id": 5}')
    assert reader.read("5")["row"] == {"id": 5, "name": "Gus", "age": 50}
