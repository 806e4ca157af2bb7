"""The caches for code that blocks: threads, forks, interruptions, and the user's own connections."""

from __future__ import annotations

import asyncio
import itertools
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import asyncpg
import psycopg
import pytest
import redis as redis_client
from psycopg_pool import ConnectionPool
from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from cachesync import AsyncCaches, CacheSyncError, PrivilegeError, SettingsError, TransactionError, sync
from cachesync.service import calls, following, own_transactions, sqlalchemy_transactions, watch
from cachesync.sync import Caches
from local.postgres import address, create_role
from tests.integration.entities_file import install_tables
from tests.integration.own_sessions import engine_url

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from types import FrameType

    from local.postgres import Postgres
    from local.redis import Redis

TABLES = """
CREATE TABLE parent (id int PRIMARY KEY, n int NOT NULL DEFAULT 0 CHECK (n < 1000));
CREATE TABLE child (id int PRIMARY KEY, parent int NOT NULL REFERENCES parent ON DELETE CASCADE);
"""
ROWS = "INSERT INTO parent SELECT i FROM generate_series(1, 40) AS i; INSERT INTO child VALUES (1, 1), (2, 2)"
DATABASES = ("dsn", "pool", "engine")
SESSIONS = ("psycopg", "session", "scoped session", "connection")
# The files of which each line can be hit by an interruption.
INTERRUPTED = {
    module.__file__ for module in (calls, following, own_transactions, sqlalchemy_transactions, sync)
}


class IntendedError(Exception):
    """What the user's own code raises."""


class Interruption(BaseException):
    """What a signal raises."""


class Shop:
    """Two tables, and the ways to reach them that a user has.

    Attributes:
        dsn: the DSN of the service's login.
        redis: the URL of the service's Redis.
        entities: the entities file.
        admin: a connection of the owner.
        slots: the Redis of the service.
    """

    def __init__(self, dsn: str, redis: str, entities: Path, admin: psycopg.Connection[Any]) -> None:
        self.dsn = dsn
        self.redis = redis
        self.entities = entities
        self.admin = admin
        self.slots = redis_client.Redis.from_url(redis)

    def caches(self, database: Any = None) -> Caches:
        return Caches("sa", redis=self.redis, database=database or self.dsn, entities=self.entities)

    @contextmanager
    def database(self, kind: str, size: int = 3) -> Iterator[Any]:
        if kind == "dsn":
            yield self.dsn
        elif kind == "pool":
            with ConnectionPool(self.dsn, min_size=1, max_size=size, open=True) as pool:
                yield pool
        else:
            engine = create_engine(engine_url(self.dsn, "psycopg"), pool_size=size, max_overflow=0)
            yield engine
            engine.dispose()

    @contextmanager
    def session(self, kind: str) -> Iterator[tuple[Any, Callable[[str], Any], Callable[[], Any]]]:
        """A session, what executes a statement in it, and what begins a savepoint."""
        if kind == "psycopg":
            with psycopg.connect(self.dsn) as connection:
                yield connection, lambda sql: connection.execute(sql.encode()), connection.transaction
            return
        engine = create_engine(engine_url(self.dsn, "psycopg"))
        made: dict[str, Callable[[], Any]] = {
            "session": lambda: Session(engine),
            "scoped session": scoped_session(sessionmaker(engine)),
            "connection": engine.connect,
        }
        session = made[kind]()
        yield session, lambda sql: session.execute(text(sql)), session.begin_nested
        session.close()
        engine.dispose()

    def kinds(self) -> dict[str, str]:
        """The kinds of the slots of the parents, by their keys."""
        names = [name.decode() for name in self.slots.scan_iter("sa:parent:*")]
        return {name.rpartition(":")[2]: str(self.slots.getrange(name, 0, 0))[2:3] for name in names}

    def n(self, key: int = 1) -> int | None:
        row = self.admin.execute("SELECT n FROM parent WHERE id = %s", (key,)).fetchone()
        return None if row is None else row[0]


@pytest.fixture(scope="module")
def installed(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Path]]:
    """The DSN of a database with the tables, and their entities file."""
    name = "shop"
    dsn = postgres.create_database(name)

    async def prepare() -> Path:
        connection = await asyncpg.connect(dsn)
        file, _ = await install_tables(
            connection, TABLES, ("parent", "child"), tmp_path_factory.mktemp("entities")
        )
        await connection.close()
        return file

    file = asyncio.run(prepare())
    create_role(dsn, "sa", "sa-password")
    postgres.sql("GRANT cachesync_service TO sa", name)
    yield dsn, file
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


@pytest.fixture
def shop(installed: tuple[str, Path], redis_sa: Redis) -> Iterator[Shop]:
    dsn, file = installed
    own = address(dsn, database="shop", user="sa", password="sa-password")
    with psycopg.connect(dsn, autocommit=True) as admin:
        admin.execute(b"TRUNCATE parent CASCADE")
        admin.execute(ROWS.encode())
        opened = Shop(own, f"{redis_sa.url}?socket_timeout=10", file, admin)
        yield opened
        opened.slots.close()


@pytest.mark.parametrize("kind", DATABASES)
def test_rows_are_read_through_the_users_own_database_and_cached(shop: Shop, kind: str) -> None:
    with shop.database(kind, size=1) as database, shop.caches(database) as caches:
        parents = caches["parent"]
        assert parents.get(1) == {"id": 1, "n": 0}
        assert parents.get_many([1, 2, 99]) == {1: {"id": 1, "n": 0}, 2: {"id": 2, "n": 0}, 99: None}
        assert shop.kinds() == {"1": "V", "2": "V", "99": "A"}
        with shop.admin.transaction():
            # Whoever asks the database now waits.
            shop.admin.execute(b"LOCK TABLE parent")
            assert parents.get_many([1, 2, 99]) == {1: {"id": 1, "n": 0}, 2: {"id": 2, "n": 0}, 99: None}
            sessions = shop.admin.execute(
                b"SELECT count(*) FROM pg_stat_activity WHERE usename = 'sa'"
            ).fetchone()
    assert sessions == (1,)


@pytest.mark.parametrize("kind", SESSIONS)
def test_a_followed_transaction_is_in_the_slots_when_its_block_ends(shop: Shop, kind: str) -> None:
    with shop.caches() as caches, shop.session(kind) as (session, execute, savepoint):
        caches["parent"].get_many(range(1, 5))
        caches["child"].get_many([1, 2])
        with caches.following(session) as followed:
            execute("UPDATE parent SET n = 7 WHERE id = 3")
            undone = savepoint()
            with suppress(IntendedError), undone:
                execute("UPDATE parent SET n = 8 WHERE id = 4")
                raise IntendedError
            execute("DELETE FROM parent WHERE id = 1")
        assert sorted((one.entity, one.key) for one in followed.changes) == [
            ("child", "1"),
            ("parent", "1"),
            ("parent", "3"),
        ]
        assert followed.cached
        assert caches["parent"].get_many(range(1, 5)) == {
            1: None,
            2: {"id": 2, "n": 0},
            3: {"id": 3, "n": 7},
            4: {"id": 4, "n": 0},
        }
        assert caches["child"].get(1) is None

        with suppress(IntendedError), caches.following(session):
            execute("UPDATE parent SET n = 9 WHERE id = 3")
            raise IntendedError
        assert caches["parent"].get(3) == {"id": 3, "n": 7}


def test_the_two_halves_of_a_block_follow_a_commit_of_others(shop: Shop) -> None:
    with shop.caches() as caches, shop.session("session") as (session, execute, _):
        caches["parent"].get(1)
        execute("UPDATE parent SET n = 7 WHERE id = 1")
        changes = caches.changes_in(session)
        session.commit()
        assert caches.committed(changes)
        assert caches["parent"].get(1) == {"id": 1, "n": 7}


def test_a_slot_that_a_redis_refused_to_correct_is_not_read_without_the_loop_either(shop: Shop) -> None:
    with shop.caches() as caches, shop.session("psycopg") as (session, execute, _):
        for _ in range(2):
            assert caches["parent"].get(1) == {"id": 1, "n": 0}
        shop.slots.execute_command("ACL", "SETUSER", "default", "-eval", "-evalsha", "-del")
        try:
            with caches.following(session) as followed:
                execute("UPDATE parent SET n = 7 WHERE id = 1")
            assert not followed.cached
            assert shop.kinds() == {"1": "V"}
            assert caches["parent"].get(1) == {"id": 1, "n": 7}
        finally:
            shop.slots.execute_command("ACL", "SETUSER", "default", "+@all")
        assert caches["parent"].get(1) == {"id": 1, "n": 7}


def test_a_transaction_of_others_cannot_be_followed(shop: Shop) -> None:
    with shop.caches() as caches, shop.session("psycopg") as (session, execute, _):
        execute("SELECT 1")
        with pytest.raises(TransactionError, match="already in a transaction"), caches.following(session):
            pass


@contextmanager
def interrupting(at: int) -> Iterator[list[int]]:
    """Raise an interruption at the nth line of the library; provide how many lines were reached."""
    lines = [0]

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if frame.f_code.co_filename not in INTERRUPTED:
            return None
        if event == "line":
            lines[0] += 1
            if lines[0] == at:
                raise Interruption
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


@pytest.mark.parametrize(("kind", "step"), [("psycopg", 1), ("session", 4)])
def test_wherever_a_caller_is_interrupted_no_read_is_older_than_what_is_committed(
    shop: Shop, kind: str, step: int
) -> None:
    """A signal can interrupt each line of the end of the block, before, during and after the commit."""
    outcomes = set()
    with shop.caches() as caches:
        for line in itertools.count(1, step):
            with shop.session(kind) as (session, execute, _):
                caches["parent"].get(1)
                block = caches.following(session)
                block.__enter__()
                execute("UPDATE parent SET n = n + 1 WHERE id = 1")
                before = shop.n()
                with suppress(Interruption), interrupting(line) as reached:
                    block.__exit__(None, None, None)
                row = caches["parent"].get(1)
                assert row is not None
                assert row["n"] == shop.n(), f"at line {line}"
                outcomes.add(shop.n() == before)
            if reached[0] < line:
                break
    assert outcomes == {True, False}


def test_wherever_a_read_is_interrupted_the_pool_gets_its_connection_back(shop: Shop) -> None:
    with shop.database("pool", size=1) as pool, shop.caches(pool) as caches:
        caches["parent"].get(2)
        for line in itertools.count(1, 2):
            shop.slots.flushdb()
            with suppress(Interruption), interrupting(line) as reached:
                caches["parent"].get(1)
            if reached[0] < line:
                break
            assert caches["parent"].get(1) == {"id": 1, "n": 0}, f"at line {line}"
        with pool.connection(timeout=10):
            pass


def test_a_timeout_of_the_caller_ends_a_read_that_the_database_keeps_waiting(shop: Shop) -> None:
    def interrupt(*_: object) -> None:
        raise Interruption

    usual = signal.signal(signal.SIGALRM, interrupt)
    try:
        with shop.database("pool", size=1) as pool, shop.caches(pool) as caches:
            with shop.admin.transaction():
                shop.admin.execute(b"LOCK TABLE parent")
                signal.setitimer(signal.ITIMER_REAL, 0.3)
                with pytest.raises(Interruption):
                    caches["parent"].get(1)
            assert caches["parent"].get(1) == {"id": 1, "n": 0}
    finally:
        signal.signal(signal.SIGALRM, usual)


def test_many_threads_share_the_caches_and_a_small_pool(shop: Shop) -> None:
    with shop.database("pool", size=4) as pool, shop.caches(pool) as caches:

        def work(number: int) -> None:
            for turn in range(10):
                key = (number * 10 + turn) % 40 + 1
                caches["parent"].get(key)
                with pool.connection() as connection, caches.following(connection):
                    connection.execute("UPDATE parent SET n = n + 1 WHERE id = %s RETURNING n", (key,))
                row = caches["parent"].get(key)
                assert row is not None
                assert row["n"] >= turn // 40 + 1

        with ThreadPoolExecutor(3) as threads:
            list(threads.map(work, range(8)))
        rows = caches["parent"].get_many(range(1, 41))
        assert all(row is not None and row["n"] == shop.n(key) for key, row in rows.items())


FORKED = """
import os, sys
from cachesync.sync import Caches

caches = Caches("sa", redis=sys.argv[1], database=sys.argv[2], entities=sys.argv[3])
assert caches["parent"].get(1) == {"id": 1, "n": 0}
child = os.fork()
for turn in range(40):
    assert caches["parent"].get(1 + turn % 40) == {"id": 1 + turn % 40, "n": 0}
if child:
    _, status = os.waitpid(child, 0)
    assert caches["parent"].get(1) == {"id": 1, "n": 0}
    print(os.waitstatus_to_exitcode(status))
"""


def test_caches_opened_before_a_fork_work_in_both_processes_which_end_by_themselves(shop: Shop) -> None:
    """Nothing is closed, as in a service that is simply ended."""
    ended = subprocess.run(
        [sys.executable, "-W", "error", "-c", FORKED, shop.redis, shop.dsn, shop.entities],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
        cwd=Path(__file__).parents[3],
    )
    assert (ended.stdout, ended.stderr, ended.returncode) == ("0\n", "", 0)


def test_closed_caches_can_be_opened_again_but_are_not_by_themselves(shop: Shop) -> None:
    caches = shop.caches()
    assert caches["parent"].get(1) == {"id": 1, "n": 0}
    caches.close()
    with pytest.raises(SettingsError, match="closed"):
        caches["parent"].get(1)
    with caches.open():
        assert caches["parent"].get(1) == {"id": 1, "n": 0}
    assert not [thread for thread in threading.enumerate() if thread.name == "cachesync"]


def test_caches_that_are_closed_in_a_block_still_get_what_it_changes(shop: Shop) -> None:
    caches = shop.caches()
    assert caches["parent"].get(1) == {"id": 1, "n": 0}
    with shop.session("psycopg") as (session, execute, _), caches.following(session) as followed:
        execute("UPDATE parent SET n = 7 WHERE id = 1")
        caches.close()
    assert followed.cached
    with caches.open():
        assert caches["parent"].get(1) == {"id": 1, "n": 7}
    assert not [thread for thread in threading.enumerate() if thread.name == "cachesync"]


def test_closing_ends_the_calls_in_progress(shop: Shop) -> None:
    with shop.database("engine") as engine, ThreadPoolExecutor(1) as threads, shop.caches(engine) as caches:
        with shop.admin.transaction():
            shop.admin.execute(b"LOCK TABLE parent")
            reading = threads.submit(caches["parent"].get, 1)
            while shop.slots.get("sa:parent:1") is None:
                time.sleep(0.01)
            caches.close()
        with pytest.raises(CacheSyncError):
            reading.result()


def test_caches_that_cannot_be_opened_try_it_again_at_their_next_use(shop: Shop) -> None:
    caches = shop.caches()
    shop.admin.execute(b"REVOKE cachesync_service FROM sa")
    with pytest.raises(PrivilegeError):
        caches["parent"].get(1)
    shop.admin.execute(b"GRANT cachesync_service TO sa")
    assert caches["parent"].get(1) == {"id": 1, "n": 0}
    caches.close()


def test_a_call_notices_that_changes_are_no_longer_captured(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No thread looks from time to time, because the user's connections belong to the callers."""
    monkeypatch.setattr(watch.Watch, "_varied_pause", lambda _: 0.0)
    with shop.database("engine") as engine, shop.caches(engine) as caches:
        caches["parent"].get(1)
        shop.admin.execute(b"ALTER TABLE parent DISABLE TRIGGER cachesync_log_update")
        try:
            shop.admin.execute(b"UPDATE parent SET n = 5 WHERE id = 1")
            assert caches["parent"].get(1) == {"id": 1, "n": 5}
        finally:
            shop.admin.execute(b"ALTER TABLE parent ENABLE ALWAYS TRIGGER cachesync_log_update")


async def test_a_session_is_followed_only_where_it_blocks_or_does_not(shop: Shop) -> None:
    async with await psycopg.AsyncConnection.connect(shop.dsn) as session:
        with shop.caches() as caches, pytest.raises(TransactionError, match="not AsyncConnection"):
            caches.following(session).__enter__()
    with shop.session("session") as (blocking, _, _):
        async with AsyncCaches("sa", redis=shop.redis, database=shop.dsn, entities=shop.entities) as opened:
            with pytest.raises(TransactionError, match="not Session; `cachesync"):
                opened.following(blocking)


def test_something_else_is_no_database(shop: Shop) -> None:
    with pytest.raises(SettingsError, match="not int"):
        shop.caches(7)
    with pytest.raises(SettingsError, match="no entity 'parnt'; did you mean 'parent'"):
        shop.caches()["parnt"]
