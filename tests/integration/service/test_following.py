"""Transactions of a user's own: what they change is in the slots when their block ends."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest
import redis as redis_client
from sqlalchemy import select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

from cachesync import (
    AsyncCaches,
    DatabaseUnavailableError,
    Followed,
    InvalidValueError,
    NotInstalledError,
    PrivilegeError,
    SettingsError,
    TransactionError,
)
from cachesync.entity import load_entities
from cachesync.kafka.topics import create_topics
from cachesync.postgres.change_log import change_of
from cachesync.service import own_changes, own_transactions
from cachesync.service.database import OwnDatabase
from cachesync.service.settling import Settler
from cachesync.service.table import Table
from cachesync.slots.batch import Applier
from cachesync.slots.clients import blocking_client
from local.postgres import address, create_role
from tests.integration.entities_file import install_tables_once
from tests.integration.own_sessions import KINDS, SQLALCHEMY, Own, engine_url, own_session

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from cachesync import Entity, Row
    from local.postgres import Postgres
    from local.redis import Redis

TABLES = """
CREATE TABLE parent (id int PRIMARY KEY, code int UNIQUE, n int NOT NULL DEFAULT 0);
CREATE TABLE child (
    id int PRIMARY KEY, parent int REFERENCES parent ON DELETE CASCADE, n int NOT NULL DEFAULT 0
);
CREATE TABLE pet (
    id int PRIMARY KEY,
    child int REFERENCES child ON DELETE SET NULL DEFERRABLE INITIALLY DEFERRED,
    n int NOT NULL DEFAULT 0
);
INSERT INTO parent VALUES (1, 11), (3, 13), (4, 14);
INSERT INTO child VALUES (1, 1), (2, 1), (3, 3);
INSERT INTO pet VALUES (1, 1), (2, 2), (3, 3);
"""
NAMES = ("parent", "child", "pet")
KEYS = (1, 2, 3, 4)
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'advisory'"


class IntendedError(Exception):
    """What the user's own code raises."""


class Family:
    """Three tables that refer to each other, and the caches of a service on them.

    Attributes:
        dsn: the DSN of the service's login.
        caches: the caches.
        slots: the Redis of the service.
    """

    def __init__(
        self,
        dsn: str,
        caches: AsyncCaches,
        slots: redis_client.Redis,
        admin: asyncpg.Connection,
        entities: dict[str, Entity],
    ) -> None:
        self.dsn = dsn
        self.caches = caches
        self.slots = slots
        self.entities = entities
        self._admin = admin

    async def cache_all(self) -> None:
        """Fill the slots of all rows, and of keys without rows."""
        for name in NAMES:
            await self.caches[name].get_many(KEYS)

    def slot(self, name: str, key: int) -> bytes:
        content = self.slots.get(f"sa:{name}:{key}") or b""
        assert isinstance(content, bytes)
        return content

    async def stale(self) -> list[str]:
        """Return the names of the slots that reads would be answered from although they are wrong."""
        wrong = []
        for name in NAMES:
            records = await self._admin.fetch(f"SELECT key::text, payload FROM cachesync.{name}")
            rows = {record["key"]: record["payload"] for record in records}
            for slot_name in self.slots.scan_iter(f"sa:{name}:*"):
                slot = self.slots.get(slot_name)
                assert isinstance(slot, bytes)
                expected = rows.get(slot_name.decode().rpartition(":")[2])
                content = b"A" if expected is None else expected.encode()
                if slot[:1] != b"L" and (slot if slot == b"A" else slot[28:]) != content:
                    wrong.append(slot_name.decode())
        return wrong


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the entities file."""
    return tmp_path_factory.mktemp("family")


@pytest.fixture(scope="module")
def sample_template(sample_template: str, postgres: Postgres, folder: Path) -> str:
    """The name of a database in which the three tables are installed too, to copy."""
    install_tables_once(postgres.dsn_of(sample_template), TABLES, NAMES, folder)
    return sample_template


@pytest.fixture
def open_family(sa_dsn: str, admin: asyncpg.Connection, redis_sa: Redis, folder: Path) -> Callable[..., Any]:
    @asynccontextmanager
    async def opened(
        redis_options: str = "?socket_timeout=10", kafka: str | None = None
    ) -> AsyncIterator[Family]:
        file = folder / "entities.toml"
        entities = load_entities(file)
        url = f"{redis_sa.url}{redis_options}"
        brokers = None if kafka is None else {"bootstrap.servers": kafka}
        if brokers is not None:
            await asyncio.to_thread(create_topics, brokers, entities.values(), partitions=1, replication=1)
        async with AsyncCaches("sa", redis=url, database=sa_dsn, entities=file, kafka=brokers) as caches:
            with redis_client.Redis.from_url(redis_sa.url) as slots:
                yield Family(sa_dsn, caches, slots, admin, entities)

    return opened


@pytest.fixture
async def family(open_family: Callable[..., Any]) -> AsyncIterator[Family]:
    async with open_family() as family:
        yield family


@pytest.fixture
async def publishing_family(open_family: Callable[..., Any], topics: str) -> AsyncIterator[Family]:
    async with open_family(kafka=topics) as family:
        yield family


@asynccontextmanager
async def failing(block: AbstractAsyncContextManager[Any]) -> AsyncIterator[None]:
    """A block that the user's own code leaves with an error."""
    intended = IntendedError()
    raised: Exception | None = None
    try:
        async with block:
            yield
            raise intended
    except IntendedError as error:
        raised = error
    assert raised is intended


async def follow(family: Family, own: Own, *statements: str) -> None:
    """Execute statements in a block."""
    async with family.caches.following(own.session):
        for sql in statements:
            await own.execute(sql)


async def until_waiting(admin: asyncpg.Connection) -> None:
    async with asyncio.timeout(30):
        while not await admin.fetchval(WAITING):
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("kind", KINDS)
async def test_rows_are_current_when_the_block_ends(family: Family, kind: str) -> None:
    await family.cache_all()
    async with own_session(kind, family.dsn) as own:
        async with family.caches.following(own.session) as followed:
            await own.execute("UPDATE parent SET n = 7 WHERE id = 1")
            await own.execute("INSERT INTO parent VALUES (2, 12, 7)")
            await own.execute("DELETE FROM parent WHERE id = 4")
        # Advanced, not only emptied.
        assert family.slot("parent", 1).endswith(b'{"id":1,"code":11,"n":7}')
        assert family.slot("parent", 2) == b""
        assert family.slot("parent", 4) == b""
        assert followed.cached
        assert {(change.entity, change.key, change.operation) for change in followed.changes} == {
            ("parent", "1", "upsert"),
            ("parent", "2", "upsert"),
            ("parent", "4", "delete"),
        }
        assert await family.caches["parent"].get_many(KEYS) == {
            1: {"id": 1, "code": 11, "n": 7},
            2: {"id": 2, "code": 12, "n": 7},
            3: {"id": 3, "code": 13, "n": 0},
            4: None,
        }
        assert await family.stale() == []


@pytest.mark.parametrize("kind", KINDS)
async def test_both_keys_of_a_row_that_moves_are_current(family: Family, kind: str) -> None:
    await family.cache_all()
    async with own_session(kind, family.dsn) as own, family.caches.following(own.session):
        await own.execute("UPDATE parent SET id = 2 WHERE id = 4")
    assert await family.stale() == []
    assert await family.caches["parent"].get_many([2, 4]) == {2: {"id": 2, "code": 14, "n": 0}, 4: None}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_block_that_only_reads_changes_nothing(family: Family, kind: str) -> None:
    await family.cache_all()
    async with own_session(kind, family.dsn) as own:
        async with family.caches.following(own.session) as followed:
            await own.execute("SELECT * FROM parent")
        assert followed.cached
        async with family.caches.following(own.session):
            pass
    assert followed.changes == ()
    assert family.slot("parent", 1) != b""


@pytest.mark.parametrize("kind", KINDS)
async def test_several_transactions_of_one_session_are_followed_one_after_the_other(
    family: Family, kind: str
) -> None:
    await family.cache_all()
    async with own_session(kind, family.dsn) as own:
        for number in (1, 2, 3):
            async with family.caches.following(own.session) as followed:
                await own.execute(f"UPDATE parent SET n = {number} WHERE id = 1")
            assert [change.key for change in followed.changes] == ["1"]
            assert family.slot("parent", 1).endswith(b'"n":%d}' % number)


@pytest.mark.parametrize("kind", KINDS)
async def test_rows_of_cascades_and_of_triggers_are_current(
    family: Family, admin: asyncpg.Connection, kind: str
) -> None:
    await admin.execute(
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN UPDATE parent SET n = n + 1 WHERE id = 3; RETURN NULL; END';"
        "CREATE TRIGGER touch AFTER DELETE ON child FOR EACH ROW EXECUTE FUNCTION touch()"
    )
    await family.cache_all()
    async with own_session(kind, family.dsn) as own, family.caches.following(own.session) as followed:
        await own.execute("DELETE FROM parent WHERE id = 1")
    assert followed.cached
    assert await family.stale() == []
    assert await family.caches["child"].get_many([1, 2]) == {1: None, 2: None}
    assert await family.caches["pet"].get(1) == {"id": 1, "child": None, "n": 0}
    assert (await family.caches["parent"].get(3)) == {"id": 3, "code": 13, "n": 2}


@pytest.mark.parametrize("kind", KINDS)
async def test_rows_that_a_deferred_trigger_changes_are_current(
    family: Family, admin: asyncpg.Connection, kind: str
) -> None:
    await admin.execute(
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN UPDATE child SET n = n + 1 WHERE id = 3; RETURN NULL; END';"
        "CREATE CONSTRAINT TRIGGER touch AFTER UPDATE ON parent DEFERRABLE INITIALLY DEFERRED"
        " FOR EACH ROW EXECUTE FUNCTION touch()"
    )
    await family.cache_all()
    async with own_session(kind, family.dsn) as own, family.caches.following(own.session):
        await own.execute("UPDATE parent SET n = 1 WHERE id IN (1, 3)")
    assert await family.stale() == []
    assert family.slot("child", 3).endswith(b'"n":2}')


@pytest.mark.parametrize("level", ["REPEATABLE READ", "SERIALIZABLE"])
@pytest.mark.parametrize("kind", ["asyncpg", "psycopg", "session on asyncpg"])
async def test_rows_are_current_at_every_isolation_level(family: Family, kind: str, level: str) -> None:
    await family.cache_all()
    async with own_session(kind, family.dsn) as own, family.caches.following(own.session) as followed:
        await own.execute(f"SET TRANSACTION ISOLATION LEVEL {level}")
        await own.execute("UPDATE parent SET n = 7 WHERE id = 1")
        await own.execute("DELETE FROM child WHERE id = 1")
    assert followed.cached
    assert {(change.entity, change.key) for change in followed.changes} == {
        ("parent", "1"),
        ("child", "1"),
        ("pet", "1"),
    }
    assert await family.stale() == []
    assert family.slot("parent", 1).endswith(b'"n":7}')


async def test_serializable_transactions_do_not_conflict_because_they_are_followed(family: Family) -> None:
    async def write(own: Own, key: int, barrier: asyncio.Barrier) -> Followed:
        async with family.caches.following(own.session) as followed:
            await own.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
            await own.execute(f"UPDATE parent SET n = 7 WHERE id = {key}")
            await barrier.wait()
        return followed

    await family.cache_all()
    # Before the log is large, its lines share a page, which SERIALIZABLE takes for a conflict of any reader.
    async with own_session("asyncpg", family.dsn) as one, own_session("asyncpg", family.dsn) as other:
        for _ in range(5):
            barrier = asyncio.Barrier(2)
            followed = await asyncio.gather(write(one, 1, barrier), write(other, 3, barrier))
            assert [one.cached for one in followed] == [True, True]
    assert await family.stale() == []


async def test_changes_of_a_serializable_transaction_that_the_relay_has_published_are_found(
    family: Family, admin: asyncpg.Connection
) -> None:
    await family.cache_all()
    async with own_session("asyncpg", family.dsn) as own:
        async with own.session.transaction(isolation="serializable"):
            await own.execute("UPDATE parent SET n = 7 WHERE id = 1")
            changes = await family.caches.changes_in(own.session)
        await admin.execute("UPDATE cachesync.change_log SET published_at = now()")
    assert await family.caches.committed(changes)
    assert family.slot("parent", 1).endswith(b'"n":7}')
    assert await family.stale() == []


async def test_a_serializable_transaction_whose_changes_cannot_be_looked_up_empties_every_slot(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise DatabaseUnavailableError

    await family.cache_all()
    async with own_session("asyncpg", family.dsn) as own, family.caches.following(own.session) as followed:
        await own.execute("SET TRANSACTION ISOLATION LEVEL SERIALIZABLE")
        await own.execute("UPDATE parent SET n = 7 WHERE id = 1")
        monkeypatch.setattr(OwnDatabase, "connection", fail)
    monkeypatch.undo()
    assert followed.changes == ()
    assert followed.cached
    assert await family.stale() == []
    assert (await family.caches["parent"].get(1)) == {"id": 1, "code": 11, "n": 7}


@pytest.mark.parametrize("own_kind", ["asyncpg", "psycopg"])
async def test_a_caller_that_is_canceled_at_any_moment_leaves_a_session_that_can_be_followed(
    publishing_family: Family, own_kind: str
) -> None:
    family = publishing_family
    await family.cache_all()
    completed = False
    turns = 0
    async with own_session(own_kind, family.dsn) as own:
        while not completed:
            writing = asyncio.create_task(follow(family, own, "UPDATE parent SET n = n + 1 WHERE id = 1"))
            for _ in range(turns):
                await asyncio.sleep(0)
            writing.cancel()
            [ended] = await asyncio.gather(writing, return_exceptions=True)
            assert ended is None or isinstance(ended, asyncio.CancelledError)
            completed = ended is None
            assert await family.stale() == []
            turns = turns * 3 // 2 + 1


async def test_a_connection_of_psycopg_in_a_pipeline_is_refused(family: Family) -> None:
    await family.cache_all()
    async with await psycopg.AsyncConnection.connect(family.dsn) as connection:
        async with connection.pipeline():
            with pytest.raises(TransactionError, match="pipeline"):
                async with family.caches.following(connection):
                    pytest.fail("it was followed")
            await connection.execute("UPDATE parent SET n = 7 WHERE id = 1")
            with pytest.raises(TransactionError, match="pipeline"):
                await family.caches.changes_in(connection)
        await connection.rollback()
        async with family.caches.following(connection):
            await connection.execute("UPDATE parent SET n = 7 WHERE id = 1")
    assert family.slot("parent", 1).endswith(b'"n":7}')


@pytest.mark.parametrize("kind", KINDS)
async def test_an_error_in_the_block_rolls_back_and_leaves_the_slots(family: Family, kind: str) -> None:
    await family.cache_all()
    before = family.slot("parent", 1)
    async with own_session(kind, family.dsn) as own:
        async with failing(family.caches.following(own.session)):
            await own.execute("UPDATE parent SET n = 7 WHERE id = 1")
        assert family.slot("parent", 1) == before
        assert await family.stale() == []
        # The session can be used again.
        async with family.caches.following(own.session):
            await own.execute("UPDATE parent SET n = 8 WHERE id = 1")
    assert family.slot("parent", 1).endswith(b'"n":8}')


@pytest.mark.parametrize("kind", KINDS)
async def test_what_a_savepoint_took_back_is_not_in_the_slots(family: Family, kind: str) -> None:
    await family.cache_all()
    async with own_session(kind, family.dsn) as own, family.caches.following(own.session) as followed:
        await own.execute("UPDATE parent SET n = 1 WHERE id = 1")
        async with failing(own.savepoint()):
            await own.execute("UPDATE parent SET n = 2 WHERE id IN (1, 3)")
        async with own.savepoint():
            await own.execute("UPDATE parent SET n = 4 WHERE id = 4")
    assert await family.stale() == []
    assert {change.key for change in followed.changes} == {"1", "4"}
    assert [family.slot("parent", key)[-6:] for key in (1, 3, 4)] == [b'"n":1}', b'"n":0}', b'"n":4}']


@pytest.mark.parametrize("kind", KINDS)
async def test_a_constraint_that_was_deferred_raises_the_error_of_the_driver(
    family: Family, kind: str
) -> None:
    await family.cache_all()
    before = family.slot("pet", 1)
    async with own_session(kind, family.dsn) as own:
        with pytest.raises(own.integrity_error):
            async with family.caches.following(own.session):
                await own.execute("UPDATE pet SET child = 99 WHERE id = 1")
        assert family.slot("pet", 1) == before
        async with family.caches.following(own.session):
            await own.execute("UPDATE pet SET child = 3 WHERE id = 1")
    assert await family.stale() == []
    assert (await family.caches["pet"].get(1)) == {"id": 1, "child": 3, "n": 0}


# The last statement of a transaction waits for a lock.
HOLD = """
CREATE FUNCTION hold() RETURNS trigger LANGUAGE plpgsql AS
'BEGIN PERFORM pg_advisory_xact_lock(77); RETURN NULL; END';
CREATE CONSTRAINT TRIGGER hold AFTER UPDATE ON parent DEFERRABLE INITIALLY DEFERRED
FOR EACH ROW EXECUTE FUNCTION hold()
"""


@pytest.mark.parametrize("kind", KINDS)
async def test_a_caller_that_is_canceled_during_the_commit_leaves_no_stale_slot(
    family: Family, admin: asyncpg.Connection, kind: str
) -> None:
    await admin.execute(HOLD)
    await family.cache_all()

    async def write() -> None:
        async with own_session(kind, family.dsn) as own, family.caches.following(own.session):
            await own.execute("UPDATE parent SET n = 7 WHERE id = 1")

    await admin.execute("SELECT pg_advisory_lock(77)")
    writing = asyncio.create_task(write())
    await until_waiting(admin)
    for _ in range(3):
        writing.cancel()
        await asyncio.sleep(0.02)
    assert not writing.done()
    await admin.execute("SELECT pg_advisory_unlock(77)")
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await admin.fetchval("SELECT n FROM parent WHERE id = 1") == 7
    assert family.slot("parent", 1).endswith(b'"n":7}')


@pytest.mark.parametrize("kind", KINDS)
async def test_a_caller_that_is_canceled_in_the_block_rolls_back(
    family: Family, admin: asyncpg.Connection, kind: str
) -> None:
    await family.cache_all()
    updated = asyncio.Event()

    async def write() -> None:
        async with own_session(kind, family.dsn) as own, family.caches.following(own.session):
            await own.execute("UPDATE parent SET n = 7 WHERE id = 1")
            updated.set()
            await asyncio.sleep(60)

    writing = asyncio.create_task(write())
    await updated.wait()
    writing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await writing
    assert await admin.fetchval("SELECT n FROM parent WHERE id = 1") == 0
    assert await family.stale() == []


@pytest.mark.parametrize("committed", [True, False])
async def test_a_commit_of_which_the_end_is_unknown_empties_the_slots(
    family: Family, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, *, committed: bool
) -> None:
    """If its transaction was not committed, a row in the slot would be ahead of the database for good."""
    await family.cache_all()
    commit = own_transactions.AsyncpgTransaction._commit  # noqa: SLF001 - where the connection breaks

    async def broken(transaction: Any) -> None:
        if committed:
            await commit(transaction)
        else:
            await transaction.rollback()
        raise ConnectionResetError

    monkeypatch.setattr(own_transactions.AsyncpgTransaction, "_commit", broken)
    async with own_session("asyncpg", family.dsn) as own:
        with pytest.raises(ConnectionResetError):
            async with family.caches.following(own.session) as followed:
                await own.execute("UPDATE parent SET n = 7 WHERE id = 1")
    assert followed.changes == ()
    assert family.slot("parent", 1) == b""
    assert family.slot("parent", 3) != b""
    row = await family.caches["parent"].get(1)
    assert row is not None
    assert row["n"] == (7 if committed else 0) == await admin.fetchval("SELECT n FROM parent WHERE id = 1")


@pytest.mark.parametrize("moment", ["in the block", "at its end"])
@pytest.mark.parametrize("kind", KINDS)
async def test_a_connection_that_breaks_raises_the_error_of_the_driver_and_leaves_no_stale_slot(
    family: Family, admin: asyncpg.Connection, kind: str, moment: str
) -> None:
    await admin.execute(HOLD)
    await family.cache_all()
    written, broken = asyncio.Event(), asyncio.Event()

    async def write() -> None:
        async with own_session(kind, family.dsn) as own, family.caches.following(own.session):
            await own.execute("UPDATE parent SET n = 7 WHERE id = 1")
            written.set()
            if moment == "in the block":
                await broken.wait()

    await admin.execute("SELECT pg_advisory_lock(77)")
    writing = asyncio.create_task(write())
    await (until_waiting(admin) if moment == "at its end" else written.wait())
    await admin.fetch(
        "SELECT pg_terminate_backend(pid, 10000) FROM pg_locks WHERE relation = 'parent'::regclass"
        " AND mode = 'RowExclusiveLock'"
    )
    broken.set()
    with pytest.raises((asyncpg.PostgresError, asyncpg.InterfaceError, psycopg.Error, DBAPIError)):
        await writing
    assert await admin.fetchval("SELECT n FROM parent WHERE id = 1") == 0
    assert await family.stale() == []


CRASHING = """
import asyncio, os, sys
import asyncpg
from cachesync import AsyncCaches
from cachesync.service.settling import Settler

async def crash(*_):
    os._exit(7)

async def main(redis, dsn, entities):
    async with AsyncCaches("sa", redis=redis, database=dsn, entities=entities) as caches:
        connection = await asyncpg.connect(dsn)
        Settler.apply = crash
        async with caches.following(connection):
            await connection.execute("UPDATE parent SET n = 7 WHERE id = 1")

asyncio.run(main(*sys.argv[1:]))
"""


async def test_after_a_crash_between_commit_and_slots_the_relay_has_the_change(
    family: Family, admin: asyncpg.Connection, redis_sa: Redis, folder: Path
) -> None:
    await family.cache_all()
    ended = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-c", CRASHING, redis_sa.url, family.dsn, str(folder / "entities.toml")],
        check=False,
        cwd=Path(__file__).parents[3],
    )
    assert ended.returncode == 7
    assert await admin.fetchval("SELECT n FROM parent WHERE id = 1") == 7
    # Due at once: nobody else publishes it.
    [line] = await admin.fetch(
        "SELECT * FROM cachesync.change_log WHERE published_at IS NULL AND relay_at <= clock_timestamp()"
        " AND entity = 'parent' AND operation <> 'truncate'"
    )
    with blocking_client(redis_sa.url, 5) as client:
        Applier(client, "sa", family.entities).apply([change_of(line)])
    assert await family.stale() == []
    assert family.slot("parent", 1).endswith(b'"n":7}')


async def test_a_load_that_began_before_the_commit_does_not_fill_the_slot_with_the_old_row(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = Table.read
    has_read, may_fill = asyncio.Event(), asyncio.Event()

    async def slow(table: Table, key: str) -> Row | None:
        row = await read(table, key)
        has_read.set()
        await may_fill.wait()
        return row

    monkeypatch.setattr(Table, "read", slow)
    loading = asyncio.create_task(family.caches["parent"].get(1))
    await has_read.wait()
    monkeypatch.setattr(Table, "read", read)
    async with own_session("asyncpg", family.dsn) as own, family.caches.following(own.session):
        await own.execute("UPDATE parent SET n = 7 WHERE id = 1")
    may_fill.set()
    assert (await loading) == {"id": 1, "code": 11, "n": 0}
    assert (await family.caches["parent"].get(1)) == {"id": 1, "code": 11, "n": 7}


async def test_a_transaction_without_redis_commits_and_its_rows_are_current_afterwards(
    open_family: Callable[..., Any], admin: asyncpg.Connection, redis_sa: Redis
) -> None:
    async with open_family("?socket_timeout=0.2") as family:
        await family.cache_all()
        redis_sa.freeze()
        try:
            async with (
                own_session("asyncpg", family.dsn) as own,
                family.caches.following(own.session) as followed,
            ):
                await own.execute("UPDATE parent SET n = 7 WHERE id = 1")
            assert (await family.caches["parent"].get(1)) == {"id": 1, "code": 11, "n": 7}
        finally:
            redis_sa.thaw()
        assert not followed.cached
        assert [change.key for change in followed.changes] == ["1"]
        assert await admin.fetchval("SELECT n FROM parent WHERE id = 1") == 7
        for _ in range(50):
            assert (await family.caches["parent"].get(1)) == {"id": 1, "code": 11, "n": 7}
            await asyncio.sleep(0.02)


async def test_every_row_of_a_bulk_statement_is_current(family: Family, admin: asyncpg.Connection) -> None:
    await admin.execute("INSERT INTO child SELECT g, 3 FROM generate_series(100, 1299) AS g")
    keys = range(100, 1300)
    await family.caches["child"].get_many(keys)
    async with own_session("asyncpg", family.dsn) as own, family.caches.following(own.session) as followed:
        await own.execute("UPDATE child SET n = 7 WHERE id >= 100")
    assert await admin.fetchval("SELECT count(*) FROM cachesync.change_log WHERE operation = 'upserts'") > 0
    assert followed.cached
    assert len(followed.changes) == len(keys)
    assert await family.stale() == []
    assert all(family.slot("child", key).endswith(b'"n":7}') for key in keys)


async def test_a_transaction_with_very_many_lines_empties_the_slots_of_their_entities(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_changes, "_LINES", 3)
    await family.cache_all()
    async with own_session("asyncpg", family.dsn) as own, family.caches.following(own.session) as followed:
        for number in range(1, 4):
            await own.execute(f"UPDATE child SET n = {number}")
        await own.execute("UPDATE parent SET n = 5 WHERE id = 4")
    assert followed.cached
    assert await family.stale() == []
    assert [family.slot("child", key) for key in KEYS] == [b""] * 4
    assert (await family.caches["child"].get(3)) == {"id": 3, "parent": 3, "n": 3}
    assert (await family.caches["parent"].get(4)) == {"id": 4, "code": 14, "n": 5}
    # Nothing of this entity has changed.
    assert family.slot("pet", 1) != b""


async def test_payloads_that_are_too_large_together_only_empty_their_slots(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(own_changes, "_PAYLOAD_BYTES", 30)
    await family.cache_all()
    async with own_session("asyncpg", family.dsn) as own, family.caches.following(own.session):
        await own.execute("UPDATE parent SET n = 1 WHERE id = 1")
        await own.execute("UPDATE parent SET n = 2 WHERE id = 3")
        await own.execute("UPDATE parent SET n = 3 WHERE id = 4")
    assert family.slot("parent", 1).endswith(b'"n":1}')
    assert [family.slot("parent", key) for key in (3, 4)] == [b"", b""]
    assert await family.stale() == []


async def test_a_truncate_empties_every_slot_of_its_entity(family: Family, admin: asyncpg.Connection) -> None:
    await admin.execute("GRANT TRUNCATE ON pet TO cachesync_service")
    await family.cache_all()
    async with own_session("asyncpg", family.dsn) as own, family.caches.following(own.session) as followed:
        await own.execute("TRUNCATE pet")
    assert followed.cached
    assert await family.stale() == []
    assert await family.caches["pet"].get_many(KEYS) == dict.fromkeys(KEYS)
    assert family.slot("child", 1) != b""


async def test_a_truncate_without_redis_empties_the_slots_before_this_process_reads_them(
    open_family: Callable[..., Any], admin: asyncpg.Connection, redis_sa: Redis
) -> None:
    async with open_family("?socket_timeout=0.2") as family:
        await admin.execute("GRANT TRUNCATE ON pet TO cachesync_service")
        await family.cache_all()
        redis_sa.freeze()
        try:
            async with (
                own_session("asyncpg", family.dsn) as own,
                family.caches.following(own.session) as followed,
            ):
                await own.execute("TRUNCATE pet")
            assert not followed.cached
            assert await family.caches["pet"].get(1) is None
        finally:
            redis_sa.thaw()
        async with asyncio.timeout(30):
            while any(family.slot("pet", key)[:1] == b"V" for key in KEYS):
                assert await family.caches["pet"].get(1) is None
                assert await family.caches["pet"].get_many(KEYS) == dict.fromkeys(KEYS)
            while family.slot("pet", 1) != b"A":
                assert await family.caches["pet"].get(1) is None


async def test_the_relay_is_left_to_publish(family: Family, admin: asyncpg.Connection) -> None:
    await admin.execute("UPDATE cachesync.change_log SET published_at = now()")
    async with own_session("asyncpg", family.dsn) as own, family.caches.following(own.session):
        await own.execute("UPDATE parent SET n = 1 WHERE id = 1")
    due = "SELECT relay_at <= clock_timestamp() FROM cachesync.change_log WHERE published_at IS NULL"
    assert [record[0] for record in await admin.fetch(due)] == [True]


@pytest.mark.parametrize("kind", KINDS)
async def test_a_service_with_a_producer_publishes_and_marks_its_changes(
    publishing_family: Family, admin: asyncpg.Connection, kind: str
) -> None:
    family = publishing_family
    await admin.execute("UPDATE cachesync.change_log SET published_at = now()")
    await family.cache_all()
    async with own_session(kind, family.dsn) as own, family.caches.following(own.session):
        await own.execute("UPDATE parent SET n = 7 WHERE id = 1")
        await own.execute("DELETE FROM parent WHERE id = 4")
    assert await family.stale() == []
    # Nobody else marks them: there is no relay. It leaves them alone for two seconds.
    lines = await admin.fetch(
        "SELECT source, relay_at - changed_at > interval '1 s' FROM cachesync.change_log"
        " WHERE login = 'sa' ORDER BY version"
    )
    assert [tuple(line) for line in lines] == [("sa", True), ("sa", True)]
    async with asyncio.timeout(30):
        while await admin.fetchval("SELECT count(*) FROM cachesync.change_log WHERE published_at IS NULL"):
            await asyncio.sleep(0.02)


async def test_what_a_producer_does_not_know_as_a_whole_is_left_to_the_relay(
    publishing_family: Family, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    family = publishing_family
    monkeypatch.setattr(own_changes, "_LINES", 2)
    await admin.execute("UPDATE cachesync.change_log SET published_at = now()")
    async with own_session("asyncpg", family.dsn) as own, family.caches.following(own.session):
        for key in (1, 3, 4):
            await own.execute(f"UPDATE parent SET n = 7 WHERE id = {key}")
    unmarked = "SELECT array_agg(key ORDER BY version) FROM cachesync.change_log WHERE published_at IS NULL"
    async with asyncio.timeout(30):
        while await admin.fetchval(unmarked) != ["4"]:
            await asyncio.sleep(0.02)
    await asyncio.sleep(0.3)
    assert await admin.fetchval(unmarked) == ["4"]


@pytest.mark.parametrize("kind", ["asyncpg", "pooled asyncpg", "psycopg"])
async def test_a_transaction_that_others_commit_is_refused(family: Family, kind: str) -> None:
    async with own_session(kind, family.dsn) as own, own.savepoint():
        await own.execute("UPDATE parent SET n = 1 WHERE id = 1")
        with pytest.raises(TransactionError, match="already in a transaction"):
            async with family.caches.following(own.session):
                pytest.fail("it was followed")


async def test_a_transaction_that_ended_within_the_block_is_an_error(family: Family) -> None:
    async with own_session("asyncpg", family.dsn) as own:
        with pytest.raises(TransactionError, match="has ended within the block"):
            await follow(family, own, "UPDATE parent SET n = 1 WHERE id = 1", "COMMIT")


async def update_and_catch(session: AsyncSession) -> None:
    """Do as users do who get around an error."""
    with pytest.raises(TransactionError, match="AUTOCOMMIT"):
        await session.execute(text("UPDATE parent SET n = 1 WHERE id = 1"))


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_an_engine_that_commits_each_statement_is_refused_before_the_first_one(
    family: Family, admin: asyncpg.Connection, driver: str
) -> None:
    engine = create_async_engine(engine_url(family.dsn, driver), isolation_level="AUTOCOMMIT")
    async with AsyncSession(engine) as session, engine.connect() as connection:
        with pytest.raises(TransactionError, match="AUTOCOMMIT"):
            async with family.caches.following(session):
                await update_and_catch(session)
        with pytest.raises(TransactionError, match="AUTOCOMMIT"):
            async with family.caches.following(connection):
                pytest.fail("it was followed")
    await engine.dispose()
    assert await admin.fetchval("SELECT n FROM parent WHERE id = 1") == 0


async def test_a_connection_cannot_begin_to_commit_each_statement_in_the_block(
    family: Family, admin: asyncpg.Connection
) -> None:
    await family.cache_all()
    async with own_session("connection on asyncpg", family.dsn) as own:
        async with family.caches.following(own.session):
            await own.execute("UPDATE parent SET n = 1 WHERE id = 1")
            await own.session.commit()
            with pytest.raises(TransactionError, match="AUTOCOMMIT"):
                await own.session.execution_options(isolation_level="AUTOCOMMIT")
            await own.execute("UPDATE parent SET n = n + 1 WHERE id = 1")
        await own.session.execution_options(isolation_level="AUTOCOMMIT")
    assert await admin.fetchval("SELECT n FROM parent WHERE id = 1") == 2
    assert await family.stale() == []


async def test_a_second_session_on_a_followed_connection_is_refused_and_leaves_its_transaction(
    family: Family,
) -> None:
    await family.cache_all()
    async with (
        own_session("connection on psycopg", family.dsn) as own,
        AsyncSession(own.session) as one,
        AsyncSession(own.session) as two,
    ):
        async with family.caches.following(one) as followed:
            await one.execute(text("UPDATE parent SET n = n + 1 WHERE id = 1"))
            with pytest.raises(TransactionError, match="already followed"):
                async with family.caches.following(two):
                    await two.execute(text("UPDATE parent SET n = 9 WHERE id = 1"))
        assert [change.key for change in followed.changes] == ["1"]
    assert family.slot("parent", 1).endswith(b'"n":1}')


@pytest.mark.parametrize("kind", ["session on asyncpg", "connection on psycopg"])
async def test_a_block_within_a_block_on_one_session_is_refused_and_leaves_the_outer_one(
    family: Family, kind: str
) -> None:
    await family.cache_all()
    async with own_session(kind, family.dsn) as own:
        async with family.caches.following(own.session) as followed:
            for _ in ("before its first statement", "in its transaction"):
                with pytest.raises(TransactionError, match="already followed"):
                    async with family.caches.following(own.session):
                        pytest.fail("it was followed")
                await own.execute("UPDATE parent SET n = n + 1 WHERE id = 1")
        assert followed.cached
        assert family.slot("parent", 1).endswith(b'"n":2}')
        await follow(family, own, "UPDATE parent SET n = 3 WHERE id = 1")
    assert await family.stale() == []


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_a_session_on_a_connection_that_others_commit_is_an_error(
    family: Family, admin: asyncpg.Connection, driver: str
) -> None:
    await family.cache_all()
    engine = create_async_engine(engine_url(family.dsn, driver))
    with pytest.raises(TransactionError, match="already in a transaction"):
        async with (
            engine.begin() as connection,
            AsyncSession(connection) as session,
            family.caches.following(session),
        ):
            await session.execute(text("UPDATE parent SET n = 7 WHERE id = 1"))
    await engine.dispose()
    assert await admin.fetchval("SELECT n FROM parent WHERE id = 1") == 0
    assert await family.stale() == []


async def test_a_session_that_commits_in_two_phases_is_an_error(family: Family) -> None:
    engine = create_async_engine(engine_url(family.dsn, "psycopg"))
    async with AsyncSession(engine, twophase=True) as session:
        with pytest.raises(TransactionError, match="two phases"):
            async with family.caches.following(session):
                pytest.fail("it was followed")
    await engine.dispose()


async def test_caches_that_are_closed_in_a_block_still_get_what_it_changes(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    await family.cache_all()
    async with own_session("asyncpg", family.dsn) as own:
        async with family.caches.following(own.session) as followed:
            await own.execute("UPDATE parent SET n = 1 WHERE id = 1")
            await family.caches.close()
        assert followed.cached
        assert await family.stale() == []
        await family.caches.open()
        begun = asyncio.Event()
        apply = Settler.apply

        async def apply_while_closing(self: Settler, changes: Any) -> bool:
            begun.set()
            for _ in range(1000):
                await asyncio.sleep(0)
            return await apply(self, changes)

        monkeypatch.setattr(Settler, "apply", apply_while_closing)
        ending = asyncio.create_task(follow(family, own, "UPDATE parent SET n = 2 WHERE id = 1"))
        await begun.wait()
        await family.caches.close()
        await ending
    assert family.slot("parent", 1).endswith(b'"n":2}')


async def test_caches_whose_closing_was_canceled_are_closed_when_their_blocks_have_ended(
    family: Family, monkeypatch: pytest.MonkeyPatch
) -> None:
    await family.cache_all()
    begun, ended = asyncio.Event(), asyncio.Event()
    apply = Settler.apply

    async def apply_later(self: Settler, changes: Any) -> bool:
        begun.set()
        await ended.wait()
        return await apply(self, changes)

    monkeypatch.setattr(Settler, "apply", apply_later)
    async with own_session("asyncpg", family.dsn) as own:
        ending = asyncio.create_task(follow(family, own, "UPDATE parent SET n = 1 WHERE id = 1"))
        await begun.wait()
        closing = asyncio.create_task(family.caches.close())
        await asyncio.sleep(0)
        closing.cancel()
        await asyncio.sleep(0)
        ended.set()
        await ending
        with pytest.raises(asyncio.CancelledError):
            await closing
    await family.caches.open()
    assert await family.caches["parent"].get(1) == {"id": 1, "code": 11, "n": 1}


@pytest.mark.parametrize("kind", SQLALCHEMY)
async def test_what_was_rolled_back_within_the_block_does_not_count(family: Family, kind: str) -> None:
    await family.cache_all()
    async with own_session(kind, family.dsn) as own, family.caches.following(own.session) as followed:
        await own.execute("UPDATE parent SET n = 1 WHERE id = 1")
        await own.session.rollback()
        await own.execute("UPDATE parent SET n = 3 WHERE id = 3")
    assert [change.key for change in followed.changes] == ["3"]
    assert await family.stale() == []
    assert [family.slot("parent", key)[-6:] for key in (1, 3)] == [b'"n":0}', b'"n":3}']


@pytest.mark.parametrize("kind", SQLALCHEMY)
async def test_what_was_changed_before_the_block_counts(family: Family, kind: str) -> None:
    await family.cache_all()
    async with own_session(kind, family.dsn) as own:
        await own.execute("UPDATE parent SET n = 1 WHERE id = 1")
        async with family.caches.following(own.session):
            await own.execute("UPDATE parent SET n = 3 WHERE id = 3")
    assert await family.stale() == []
    assert [family.slot("parent", key)[-6:] for key in (1, 3)] == [b'"n":1}', b'"n":3}']


@pytest.mark.parametrize("kind", SQLALCHEMY)
async def test_commits_within_the_block_count(family: Family, kind: str) -> None:
    await family.cache_all()
    async with own_session(kind, family.dsn) as own, family.caches.following(own.session) as followed:
        async with own.session.begin():
            await own.execute("UPDATE parent SET n = 1 WHERE id = 1")
        await own.execute("UPDATE parent SET n = 3 WHERE id = 3")
        await own.session.commit()
        await own.execute("UPDATE parent SET n = 4 WHERE id = 4")
    assert followed.cached
    assert await family.stale() == []
    assert (await family.caches["parent"].get_many([1, 3, 4])) == {
        1: {"id": 1, "code": 11, "n": 1},
        3: {"id": 3, "code": 13, "n": 3},
        4: {"id": 4, "code": 14, "n": 4},
    }


@pytest.mark.parametrize("kind", SQLALCHEMY)
async def test_commits_within_a_block_that_fails_later_count(family: Family, kind: str) -> None:
    await family.cache_all()
    async with own_session(kind, family.dsn) as own, failing(family.caches.following(own.session)):
        await own.execute("UPDATE parent SET n = 1 WHERE id = 1")
        await own.session.commit()
        await own.execute("UPDATE parent SET n = 3 WHERE id = 3")
    assert await family.stale() == []
    assert (await family.caches["parent"].get_many([1, 3])) == {
        1: {"id": 1, "code": 11, "n": 1},
        3: {"id": 3, "code": 13, "n": 0},
    }


@pytest.mark.parametrize("kind", SQLALCHEMY)
async def test_a_commit_that_fails_within_the_block_brings_no_row_to_a_slot(
    family: Family, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """Even though another commit in the block succeeds."""
    await family.cache_all()
    async with own_session(kind, family.dsn) as own, family.caches.following(own.session):
        await own.execute("UPDATE parent SET n = 1 WHERE id = 1")
        dialect = own.session.get_bind().dialect if "session" in kind else own.session.dialect
        with monkeypatch.context() as patch:
            patch.setattr(dialect, "do_commit", _broken)
            with pytest.raises(ConnectionResetError):
                await own.session.commit()
        await own.session.rollback()
        await own.execute("UPDATE parent SET n = 3 WHERE id = 3")
    assert await family.stale() == []
    assert family.slot("parent", 1) == b""
    assert family.slot("parent", 3).endswith(b'"n":3}')


def _broken(*_: object) -> None:
    raise ConnectionResetError


class Base(DeclarativeBase):
    pass


class Parent(Base):
    __tablename__ = "parent"
    id: Mapped[int] = mapped_column(primary_key=True)
    code: Mapped[int | None]
    n: Mapped[int]


@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_objects_that_the_commit_flushes_are_current(family: Family, driver: str) -> None:
    await family.cache_all()
    engine = create_async_engine(engine_url(family.dsn, driver))
    async with AsyncSession(engine) as session, family.caches.following(session):
        one = (await session.execute(select(Parent).where(Parent.id == 1))).scalar_one()
        one.n = 7
        session.add(Parent(id=2, code=None, n=7))
    await engine.dispose()
    assert await family.stale() == []
    assert family.slot("parent", 1).endswith(b'"n":7}')
    assert await family.caches["parent"].get(2) == {"id": 2, "code": None, "n": 7}


@pytest.mark.parametrize("kind", KINDS)
async def test_a_login_without_the_role_gets_an_error_and_a_rollback(
    family: Family, sample: str, admin: asyncpg.Connection, kind: str
) -> None:
    create_role(sample, "stranger", "stranger-password")
    await admin.execute("GRANT SELECT, UPDATE ON parent TO stranger")
    dsn = address(sample, database=sample.rpartition("/")[2], user="stranger", password="stranger-password")
    async with own_session(kind, dsn) as own:
        with pytest.raises(PrivilegeError, match="GRANT cachesync_service"):
            async with family.caches.following(own.session):
                await own.execute("UPDATE parent SET n = 7 WHERE id = 1")
    assert await admin.fetchval("SELECT n FROM parent WHERE id = 1") == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_database_side_of_an_earlier_version_is_an_error(
    family: Family, admin: asyncpg.Connection, kind: str
) -> None:
    await admin.execute("DROP FUNCTION cachesync.final_changes")
    async with own_session(kind, family.dsn) as own:
        with pytest.raises(NotInstalledError, match="run `cachesync install`"):
            async with family.caches.following(own.session):
                await own.execute("UPDATE parent SET n = 7 WHERE id = 1")
    assert await admin.fetchval("SELECT n FROM parent WHERE id = 1") == 0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_transaction_that_has_failed_is_not_committed_silently(family: Family, kind: str) -> None:
    async with own_session(kind, family.dsn) as own:
        errors = (asyncpg.PostgresError, psycopg.Error, DBAPIError)

        async def go_on_after_an_error() -> None:
            async with family.caches.following(own.session):
                await own.execute("UPDATE parent SET n = 7 WHERE id = 1")
                with pytest.raises(errors):
                    await own.execute("SELECT 1 / 0")

        with pytest.raises(errors, match="transaction is aborted"):
            await go_on_after_an_error()


async def test_something_else_cannot_be_followed(family: Family) -> None:
    with pytest.raises(TransactionError, match="not str"):
        async with family.caches.following("session"):
            pass


@pytest.mark.parametrize("kind", KINDS)
async def test_the_halves_of_a_block_do_the_same(family: Family, kind: str) -> None:
    await family.cache_all()
    async with own_session(kind, family.dsn) as own:
        begins = "on" not in kind.split() and kind != "psycopg"
        if begins:
            await own.execute("BEGIN")
        await own.execute("UPDATE parent SET n = 7 WHERE id = 1")
        await own.execute("DELETE FROM parent WHERE id = 4")
        changes = await family.caches.changes_in(own.session)
        await (own.execute("COMMIT") if begins else own.session.commit())
    assert family.slot("parent", 1).endswith(b'"n":0}')
    assert await family.caches.committed(changes)
    assert family.slot("parent", 1).endswith(b'"n":7}')
    assert family.slot("parent", 4) == b""
    assert await family.stale() == []


async def test_committed_rows_of_which_only_the_version_is_known_are_current(family: Family) -> None:
    await family.cache_all()
    async with own_session("asyncpg", family.dsn) as own:
        version = await own.session.fetchval("UPDATE parent SET n = 7 WHERE id = 1 RETURNING row_version")
    assert await family.caches.committed([("parent", 1, version)])
    assert family.slot("parent", 1) == b""
    assert (await family.caches["parent"].get(1)) == {"id": 1, "code": 11, "n": 7}
    # An older one does nothing.
    assert not await family.caches.committed([("parent", "1", version - 1)])
    assert family.slot("parent", 1) != b""


async def test_committed_rows_that_cannot_exist_are_rejected(family: Family) -> None:
    wrong: dict[type[Exception], list[Any]] = {
        SettingsError: [("parents", 1, 1), (["parent"], 1, 1)],
        InvalidValueError: [
            ("parent", "x", 1),
            ("parent", True, 1),
            ("parent", 1, "1"),
            ("parent", 1, True),
            ("parent", 1, -1),
            ("parent", 1, 1 << 63),
            ("parent", 1, 10**5000),
            ("parent", 1),
            "abc",
            None,
        ],
    }
    for error, changes in wrong.items():
        for change in changes:
            with pytest.raises(error):
                await family.caches.committed([change])
