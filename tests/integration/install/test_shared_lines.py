"""The lines of the change log that rows of a bulk statement share."""

from __future__ import annotations

import asyncio
import random
import secrets
import sys
import time
from contextlib import asynccontextmanager, contextmanager
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import psutil
import pytest

from cachesync.entity import Entity
from cachesync.install.installer import install
from local.silent import Silent
from tests.change_log import CHANGES

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from local.postgres import Postgres

TABLES: Final = """
    CREATE TABLE item (id int PRIMARY KEY, note text NOT NULL, amount int NOT NULL DEFAULT 0);
    CREATE TABLE copy (id int PRIMARY KEY, note text NOT NULL);
    CREATE TABLE pair (half int, id int GENERATED ALWAYS AS (half * 2) STORED PRIMARY KEY);
    CREATE TABLE names (
        id int PRIMARY KEY, lowest int, highest int, drawn int, keys int, payloads int, bytes int, "row" int,
        version int, "key" int, entity int, fingerprint int, last_version int, logged int, announced int,
        versions int, position int
    );
    CREATE TABLE source AS SELECT i AS id, 'from the source' AS note FROM generate_series(201, 600) AS i;
"""
ENTITIES: Final = {
    name: Entity.model_validate(
        {"name": name, "table": name, "key": "id", "ttl": "1h", "absent_ttl": "1s", "path": f"/{name}"}
    )
    for name in ("item", "copy", "pair", "names")
}
ITEMS: Final = "INSERT INTO item SELECT i, 'old', i FROM generate_series(1, 400) AS i"
OF_ENTITY: Final = f"SELECT * FROM {CHANGES} AS c WHERE c.entity = $1 ORDER BY c.version"
LINES: Final = "SELECT count(*) FROM cachesync.change_log WHERE entity = $1"
SHARED: Final = "SELECT coalesce(max(cardinality(keys)), 1) FROM cachesync.change_log"
CAUGHT: Final = """
DO $$
BEGIN
    BEGIN
        UPDATE item SET id = id + 1000, note = 'failed' WHERE id > 100;
        UPDATE item SET note = 'failed', amount = 1 / (amount - 350);
    EXCEPTION WHEN division_by_zero THEN NULL;
    END;
    UPDATE item SET note = 'caught';
END
$$
"""
# Executed in one transaction each, on the items 1 to 400.
STATEMENTS: Final = {
    "insert": "INSERT INTO item SELECT i, 'new', i FROM generate_series(401, 1000) AS i",
    "update": "UPDATE item SET note = note || '.'",
    "delete": "DELETE FROM item WHERE id > 50",
    "upsert": "INSERT INTO item SELECT i, 'new', i FROM generate_series(201, 600) AS i"
    " ON CONFLICT (id) DO UPDATE SET note = 'conflict'",
    "upsert that changes keys": "INSERT INTO item SELECT i, 'new', i FROM generate_series(201, 600) AS i"
    " ON CONFLICT (id) DO UPDATE SET id = 10000 + excluded.id",
    "merge": "MERGE INTO item AS i USING source AS s ON s.id = i.id"
    " WHEN MATCHED AND i.id % 3 = 0 THEN DELETE"
    " WHEN MATCHED THEN UPDATE SET note = s.note"
    " WHEN NOT MATCHED THEN INSERT VALUES (s.id, s.note, 0)",
    "several statements": "UPDATE item SET note = 'a'; DELETE FROM item WHERE id % 2 = 0;"
    " INSERT INTO item SELECT i, 'b', i FROM generate_series(2, 400, 2) AS i; UPDATE item SET note = 'c'",
    "several entities": "INSERT INTO copy SELECT id, note FROM item; UPDATE item SET note = 'a';"
    " UPDATE copy SET note = 'b'; DELETE FROM item WHERE id > 300",
    "rollback to a savepoint": "UPDATE item SET note = 'a'; SAVEPOINT s; UPDATE item SET id = id + 1000;"
    " DELETE FROM item WHERE id > 1200; ROLLBACK TO s; UPDATE item SET note = note || 'b'",
    "statement that fails": CAUGHT,
    "moved keys": "UPDATE item SET id = id + 1000",
    "chain of keys": "DELETE FROM item WHERE id <= 3; UPDATE item SET id = id - 3",
    "exchanged keys": "UPDATE item SET id = -id; UPDATE item SET id = 401 + id WHERE id < 0",
    "exchanged keys of two rows": "UPDATE item SET id = -1 WHERE id = 1; UPDATE item SET id = 1 WHERE id = 2;"
    " UPDATE item SET id = 2 WHERE id = -1; UPDATE item SET note = 'a'",
    "keys taken by new rows": "WITH moved AS (UPDATE item SET id = id + 1000 WHERE id > 50 RETURNING id)"
    " INSERT INTO item SELECT id - 1000, 'taken', 0 FROM moved",
    "large rows": "UPDATE item SET note = repeat('x', CASE WHEN id % 50 = 0 THEN 70000 ELSE id END)",
    "replica": "SET LOCAL session_replication_role = replica; UPDATE item SET note = 'a';"
    " INSERT INTO item SELECT i, 'new', i FROM generate_series(401, 1000) AS i",
    "asynchronous commit": "SET LOCAL synchronous_commit = off; UPDATE item SET note = 'a'",
    "generated keys": "INSERT INTO pair SELECT i FROM generate_series(1, 400) AS i;"
    " UPDATE pair SET half = half + 1000 WHERE half > 200; UPDATE pair SET half = half",
}
STATEMENTS_OF_WRITERS: Final = {
    "bulk update": "UPDATE item SET note = 'bulk' WHERE id > {key} - 250",
    "bulk insert": "INSERT INTO item SELECT i, 'bulk', 0 FROM generate_series({key}, {key} + 200) AS i"
    " ON CONFLICT (id) DO UPDATE SET note = 'conflict'",
    "bulk move": "UPDATE item SET id = id + 3000 WHERE id BETWEEN {key} AND {key} + 120",
    "move back": "UPDATE item SET id = id - 3000 WHERE id BETWEEN {key} + 2950 AND {key} + 3100",
    "delete": "DELETE FROM item WHERE id BETWEEN {key} AND {key} + 3",
    "single update": "UPDATE item SET amount = amount + 1 WHERE id = {key}",
    "single insert": "INSERT INTO item VALUES ({key}, 'single', 0)",
    "single move": "UPDATE item SET id = {other} WHERE id = {key}",
}
# Row triggers of a user, which change rows while the statement is in progress.
TRIGGERS: Final = {
    "none": "SELECT 1",
    "AFTER": """
        CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF pg_trigger_depth() > 1 THEN
                RETURN NULL;
            ELSIF NEW.id % 7 = 0 THEN
                UPDATE item SET amount = -1 WHERE id BETWEEN NEW.id AND NEW.id + 200;
            ELSIF NEW.id % 7 = 1 THEN
                UPDATE item SET id = id + 5000 WHERE id = NEW.id;
            ELSIF NEW.id % 7 = 2 THEN
                DELETE FROM item WHERE id = NEW.id;
            END IF;
            RETURN NULL;
        END
        $$;
        CREATE TRIGGER meddle AFTER INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION meddle()
    """,
    "BEFORE": """
        CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$
        BEGIN
            IF NEW.id % 70 = 0 THEN
                INSERT INTO copy SELECT NEW.id * 1000 + i, 'nested' FROM generate_series(1, 150) AS i
                ON CONFLICT (id) DO UPDATE SET note = copy.note || '.';
            END IF;
            RETURN NEW;
        END
        $$;
        CREATE TRIGGER meddle BEFORE INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION meddle()
    """,
}


@pytest.fixture(scope="module")
def template(postgres: Postgres) -> Iterator[str]:
    """A database with the tables and the installed database side, to copy."""
    name = f"lines_{secrets.token_hex(4)}"

    async def work(dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute(TABLES)
        await install(connection, ENTITIES, Silent())
        await connection.close()

    asyncio.run(work(postgres.create_database(name)))
    yield name
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


@contextmanager
def copied(postgres: Postgres, template: str) -> Iterator[str]:
    """Yield the address of a copy of the database, which is dropped afterwards."""
    name = f"lines_{secrets.token_hex(4)}"
    postgres.sql(f"CREATE DATABASE {name} TEMPLATE {template}", "postgres")
    yield postgres.dsn_of(name)
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


@pytest.fixture
def database(postgres: Postgres, template: str) -> Iterator[str]:
    with copied(postgres, template) as dsn:
        yield dsn


@asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Yield a session, which ends at once, whatever state a test has left it in."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        connection.terminate()


@pytest.fixture
async def session(database: str) -> AsyncIterator[asyncpg.Connection]:
    """A session that is not a service's, on a table with 400 items."""
    async with connected(database) as connection:
        await connection.execute(ITEMS)
        yield connection


@pytest.fixture(scope="module")
def reused_database(postgres: Postgres, template: str) -> Iterator[str]:
    """A database for tests that leave only rows and triggers behind; to create one takes longer."""
    with copied(postgres, template) as dsn:
        yield dsn


@pytest.fixture
async def emptied_session(reused_database: str) -> AsyncIterator[asyncpg.Connection]:
    """As `session`, in the reused database."""
    async with connected(reused_database) as connection:
        await connection.execute("DROP FUNCTION IF EXISTS meddle() CASCADE")
        await connection.execute(f"TRUNCATE {', '.join(ENTITIES)}; TRUNCATE cachesync.change_log; {ITEMS}")
        yield connection


async def rows_of(session: asyncpg.Connection, entity: str) -> dict[str, tuple[int, str]]:
    """Return the version and the payload of each row by key."""
    records = await session.fetch(f"SELECT key::text, version, payload FROM cachesync.{entity}")
    return {record["key"]: (record["version"], record["payload"]) for record in records}


async def replayed(session: asyncpg.Connection, entity: str) -> dict[str, tuple[int, str]]:
    """Return what a reader of the log knows: the newest change of each key that is no delete."""
    changes = await session.fetch(OF_ENTITY, entity)
    versions = [change["version"] for change in changes]
    assert len(versions) == len(set(versions))
    newest = {change["key"]: change for change in changes}
    return {
        key: (change["version"], change["payload"])
        for key, change in newest.items()
        if change["operation"] != "delete"
    }


async def test_rows_share_lines_after_the_first_hundred(session: asyncpg.Connection) -> None:
    changes = await session.fetch(
        "SELECT operation, cardinality(keys) AS rows, cardinality(payloads) AS payloads, key, payload"
        " FROM cachesync.change_log ORDER BY version"
    )
    assert [change["operation"] for change in changes] == ["upsert"] * 100 + ["upserts"] * 3
    assert all(change["key"] and change["payload"] and change["rows"] is None for change in changes[:100])
    assert [tuple(change)[1:] for change in changes[100:]] == [(100, 100, None, None)] * 3
    assert await replayed(session, "item") == await rows_of(session, "item")


async def test_statement_of_a_hundred_rows_and_one_of_a_service_share_no_lines(
    session: asyncpg.Connection,
) -> None:
    await session.execute("TRUNCATE cachesync.change_log; UPDATE item SET note = 'x' WHERE id <= 100")
    assert await session.fetchval(LINES, "item") == 100
    await session.execute("UPDATE item SET note = 'y' WHERE id <= 101")
    assert await session.fetchval(LINES, "item") == 201
    await session.execute("SET cachesync.source = 'sa'; UPDATE item SET note = 'z'")
    assert await session.fetchval(LINES, "item") == 601
    assert await session.fetchval(SHARED) == 1
    assert await replayed(session, "item") == await rows_of(session, "item")


async def test_rows_whose_versions_are_not_consecutive_share_no_line(session: asyncpg.Connection) -> None:
    await session.execute(
        "CREATE FUNCTION draw() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN PERFORM nextval(''cachesync.row_version''); RETURN NEW; END';"
        "CREATE TRIGGER draw BEFORE UPDATE ON item FOR EACH ROW WHEN (new.id IN (150, 250, 251))"
        " EXECUTE FUNCTION draw();"
        "TRUNCATE cachesync.change_log; UPDATE item SET note = 'x'"
    )
    lines = await session.fetch(
        "SELECT operation, cardinality(keys) AS rows FROM cachesync.change_log ORDER BY version OFFSET 100"
    )
    expected = [("upserts", 49), ("upserts", 100), ("upsert", None), ("upserts", 100), ("upserts", 50)]
    assert [tuple(line) for line in lines] == expected
    assert await replayed(session, "item") == await rows_of(session, "item")


async def test_line_has_at_most_64_kib_of_payloads_and_a_larger_row_has_its_own(
    session: asyncpg.Connection,
) -> None:
    await session.execute("TRUNCATE cachesync.change_log")
    await session.execute(
        "UPDATE item SET note = repeat('x', CASE WHEN id % 50 = 0 THEN 70000 ELSE 1000 END)"
    )
    lines = await session.fetch(
        "SELECT l.operation, octet_length(l.payload) AS bytes, cardinality(l.keys) AS rows,"
        " (SELECT sum(octet_length(p.payload)) FROM unnest(l.payloads) AS p (payload)) AS shared"
        " FROM cachesync.change_log AS l ORDER BY l.version OFFSET 100"
    )
    assert [line["bytes"] > 65536 for line in lines if line["operation"] == "upsert"] == [True] * 6
    shared = [line for line in lines if line["operation"] == "upserts"]
    assert [line["rows"] for line in shared] == [49] * 6
    assert all(line["shared"] <= 65536 for line in shared)
    await session.execute("UPDATE item SET note = repeat('x', 6000)")
    largest = "SELECT max(cardinality(keys)) FROM cachesync.change_log WHERE version > $1"
    assert await session.fetchval(largest, await session.fetchval("SELECT min(row_version) FROM item")) == 10
    assert await replayed(session, "item") == await rows_of(session, "item")


@pytest.mark.parametrize(
    ("triggers", "isolation"),
    [*((triggers, "READ COMMITTED") for triggers in TRIGGERS), ("BEFORE", "SERIALIZABLE")],
)
@pytest.mark.parametrize("statement", STATEMENTS)
async def test_log_has_the_newest_change_of_every_row(
    emptied_session: asyncpg.Connection, statement: str, triggers: str, isolation: str
) -> None:
    await emptied_session.execute(TRIGGERS[triggers])
    await emptied_session.execute(f"BEGIN ISOLATION LEVEL {isolation}; {STATEMENTS[statement]}; COMMIT")
    for entity in ENTITIES:
        assert await replayed(emptied_session, entity) == await rows_of(emptied_session, entity)


async def test_log_has_the_newest_change_of_every_row_of_a_copy(session: asyncpg.Connection) -> None:
    await session.copy_records_to_table(
        "item", records=[(key, "copied", key) for key in range(401, 3000)], columns=["id", "note", "amount"]
    )
    assert await session.fetchval(LINES, "item") == 100 + 3 + 100 + 25
    assert await replayed(session, "item") == await rows_of(session, "item")


async def test_only_keys_that_no_row_has_any_more_are_logged_as_deleted(session: asyncpg.Connection) -> None:
    await session.execute("DELETE FROM item WHERE id <= 3; TRUNCATE cachesync.change_log")
    # Each row takes a key that another one has just left.
    await session.execute("UPDATE item SET id = id - 3")
    changes = await session.fetch(OF_ENTITY, "item")
    assert [change["key"] for change in changes if change["operation"] == "delete"] == ["398", "399", "400"]
    assert len(changes) == 397 + 3


async def test_columns_can_have_the_names_of_the_variables_of_the_triggers(
    session: asyncpg.Connection,
) -> None:
    await session.execute("INSERT INTO names SELECT i FROM generate_series(1, 300) AS i")
    await session.execute("UPDATE names SET id = -id, lowest = 1 WHERE id > 100")
    await session.execute("UPDATE names SET id = -1 WHERE id = 1; UPDATE names SET id = 1 WHERE id = -101")
    await session.execute("DELETE FROM names WHERE id = 3")
    assert await replayed(session, "names") == await rows_of(session, "names")


async def test_serializable_transactions_that_change_keys_of_different_tables_do_not_fail_each_other(
    database: str, session: asyncpg.Connection
) -> None:
    await session.execute("INSERT INTO copy SELECT id, note FROM item")
    await session.execute("VACUUM ANALYZE item, copy")
    other = await asyncpg.connect(database)
    async with (
        session.transaction(isolation="serializable"),
        other.transaction(isolation="serializable"),
    ):
        await session.execute("UPDATE item SET id = -1 WHERE id = 1")
        await other.execute("UPDATE copy SET id = -1 WHERE id = 1")
        await session.execute("INSERT INTO item VALUES (20000, 'new', 0)")
    await other.close()
    for entity in ("item", "copy"):
        assert await replayed(session, entity) == await rows_of(session, entity)


async def test_key_of_a_row_that_an_old_snapshot_still_shows_is_logged_as_deleted(
    session: asyncpg.Connection, database: str
) -> None:
    other = await asyncpg.connect(database)
    await session.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM item")
    await other.execute("DELETE FROM item WHERE id = 1")
    await session.execute(
        "INSERT INTO item VALUES (1, 'again', 0); UPDATE item SET id = 1000 WHERE note = 'again'"
    )
    # The snapshot of the transaction shows the row that the other one has deleted.
    assert await session.fetchval("SELECT count(*) FROM item WHERE id = 1") == 1
    await session.execute("COMMIT")
    await other.close()
    assert await replayed(session, "item") == await rows_of(session, "item")


async def test_concurrent_bulk_statements_and_single_writers_keep_the_order_of_every_key(
    session: asyncpg.Connection, database: str
) -> None:
    """Several sessions change the same rows and keys, at all isolation levels; some commit late."""
    until = time.monotonic() + 4
    committed = dict.fromkeys(STATEMENTS_OF_WRITERS, 0)

    async def write(number: int) -> None:
        choose = random.Random(number)
        connection = await asyncpg.connect(database, server_settings={"deadlock_timeout": "20ms"})
        while time.monotonic() < until:
            kind = choose.choice(list(STATEMENTS_OF_WRITERS))
            isolation: Any = choose.choice(["read_committed", "repeatable_read", "serializable"])
            key = choose.randrange(1, 401)
            try:
                async with connection.transaction(isolation=isolation):
                    await connection.execute(STATEMENTS_OF_WRITERS[kind].format(key=key, other=key + 1000))
                    await asyncio.sleep(choose.choice([0, 0, 0.02]))
            except (
                asyncpg.SerializationError,
                asyncpg.DeadlockDetectedError,
                asyncpg.UniqueViolationError,
            ):
                continue
            committed[kind] += 1
        await connection.close()

    await asyncio.gather(*map(write, range(5)))
    assert all(committed.values()), committed
    assert await session.fetchval(SHARED) > 1
    assert await replayed(session, "item") == await rows_of(session, "item")


@pytest.mark.skipif(sys.platform != "linux", reason="tells private memory from shared memory")
async def test_memory_of_a_statement_does_not_grow_with_its_rows(session: asyncpg.Connection) -> None:
    await session.execute("SET work_mem = '1MB'")
    process = psutil.Process(await session.fetchval("SELECT pg_backend_pid()"))
    peaks = []
    for rows in (20_000, 200_000):
        inserting = asyncio.create_task(
            session.execute(
                f"INSERT INTO item SELECT i, 'x', 0 FROM generate_series({rows}, {2 * rows}) AS i"
            )
        )
        peak = 0
        while not inserting.done():
            memory = process.memory_info()
            peak = max(peak, memory.rss - memory.shared)
            await asyncio.sleep(0.01)
        await inserting
        peaks.append(peak)
    assert peaks[1] < peaks[0] + (8 << 20)
