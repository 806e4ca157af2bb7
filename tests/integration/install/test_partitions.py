"""Partitioned tables, and partitions, as the tables of entities."""

from __future__ import annotations

import asyncio
import secrets
from typing import TYPE_CHECKING, Final

import asyncpg
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from cachesync.entity import Entity
from cachesync.errors import InstallError
from cachesync.install.checks import check
from cachesync.install.installer import install, uninstall
from cachesync.install.proposal import propose
from cachesync.postgres.registry import read_registry
from cachesync.relay import capture
from cachesync.relay.capture import CaptureCheck
from local.postgres import create_database
from local.silent import Silent
from tests.integration.install.interleaving import Interleaving, Operation
from tests.integration.install.test_row_versions import (
    AMOUNTS,
    ENTITIES,
    INSERTS,
    KEYS,
    OPERATIONS,
    OWN_TRIGGERS,
    TABLES,
    log_of,
    operation,
    overtaken,
    play,
    reset,
    schedules,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from local.postgres import Postgres

# Two levels, a default, and a partition with its columns in another order and a dropped one.
ORDERS: Final = """
    CREATE TYPE state AS ENUM ('open', 'paid');
    CREATE TABLE orders (
        region text, id int, state state NOT NULL DEFAULT 'open', placed timestamptz, PRIMARY KEY (region, id)
    ) PARTITION BY LIST (region);
    CREATE TABLE north (
        junk int, placed timestamptz, state state NOT NULL, id int NOT NULL, region text NOT NULL
    );
    ALTER TABLE north DROP COLUMN junk;
    ALTER TABLE orders ATTACH PARTITION north FOR VALUES IN ('n');
    CREATE TABLE south PARTITION OF orders FOR VALUES IN ('s', 'so') PARTITION BY RANGE (id);
    CREATE TABLE south_low PARTITION OF south FOR VALUES FROM (MINVALUE) TO (100);
    CREATE TABLE south_high PARTITION OF south FOR VALUES FROM (100) TO (MAXVALUE);
    CREATE TABLE elsewhere PARTITION OF orders DEFAULT;
    INSERT INTO orders VALUES ('n', 1), ('n', 2), ('s', 1), ('s', 100), ('x', 1);
"""


def entity(name: str, table: str) -> Entity:
    return Entity.model_validate(
        {
            "name": name,
            "table": table,
            "key": ["region", "id"],
            "ttl": "1h",
            "absent_ttl": "1s",
            "path": f"/{name}",
        }
    )


WHOLE: Final = {"orders": entity("orders", "orders")}
PARTS: Final = {"north": entity("north", "north"), "south": entity("south", "south")}


def create(postgres: Postgres, tables: str, entities: dict[str, Entity]) -> str:
    """Create a database with the tables and the installed database side of entities; return its name."""

    async def work(dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute(tables)
        if entities:
            await install(connection, entities, Silent())
        await connection.close()

    name = f"partitions_{secrets.token_hex(4)}"
    asyncio.run(work(postgres.create_database(name)))
    return name


@pytest.fixture(scope="module")
def databases(postgres: Postgres) -> Iterator[dict[str, str]]:
    """The names of databases: with the entity of the whole table, with those of partitions, with none."""
    names = {
        "whole": create(postgres, ORDERS, WHOLE),
        "parts": create(postgres, ORDERS, PARTS),
        "none": create(postgres, ORDERS, {}),
    }
    yield names
    for name in names.values():
        postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


async def connected(postgres: Postgres, name: str) -> AsyncIterator[asyncpg.Connection]:
    """Yield a connection to a database, and undo everything afterwards."""
    connection = await asyncpg.connect(postgres.dsn_of(name))
    await connection.transaction().start()
    yield connection
    connection.terminate()


@pytest.fixture
async def whole(postgres: Postgres, databases: dict[str, str]) -> AsyncIterator[asyncpg.Connection]:
    async for connection in connected(postgres, databases["whole"]):
        yield connection


@pytest.fixture
async def parts(postgres: Postgres, databases: dict[str, str]) -> AsyncIterator[asyncpg.Connection]:
    async for connection in connected(postgres, databases["parts"]):
        yield connection


@pytest.fixture
async def bare(postgres: Postgres, databases: dict[str, str]) -> AsyncIterator[asyncpg.Connection]:
    async for connection in connected(postgres, databases["none"]):
        yield connection


async def changes(connection: asyncpg.Connection, *statements: str) -> list[str]:
    """Execute statements; return what they add to the change log, without the payloads."""
    before = await connection.fetchval("SELECT coalesce(max(version), 0) FROM cachesync.change_log")
    for statement in statements:
        await connection.execute(statement)
    lines = await connection.fetch(
        "SELECT entity, operation, key FROM cachesync.change_log WHERE version > $1 ORDER BY version", before
    )
    return [" ".join(filter(None, line)) for line in lines]


async def faults(connection: asyncpg.Connection, name: str) -> list[asyncpg.Record]:
    """Return the rows whose newest lines differ from them."""
    faulty: list[asyncpg.Record] = await connection.fetch(
        f"""
        SELECT * FROM cachesync.{name} AS r
        LEFT JOIN (
            SELECT DISTINCT ON (key) * FROM cachesync.change_log WHERE entity = $1 ORDER BY key, version DESC
        ) AS l USING (key)
        WHERE r.version > (SELECT min(version) FROM cachesync.{name})
        AND (r.version, r.payload, 'upsert') IS DISTINCT FROM (l.version, l.payload, l.operation)
        """,
        name,
    )
    return faulty


WRITES: Final = {
    "insert": (
        "INSERT INTO orders VALUES ('n', 7), ('s', 7), ('x', 7)",
        ["upsert n/7", "upsert s/7", "upsert x/7"],
    ),
    "insert into a partition": (
        "INSERT INTO north (region, id, state) VALUES ('n', 7, 'paid')",
        ["upsert n/7"],
    ),
    "insert into a partitioned partition": ("INSERT INTO south VALUES ('so', 200)", ["upsert so/200"]),
    "on conflict": (
        "INSERT INTO orders VALUES ('n', 1), ('n', 3) ON CONFLICT (region, id) DO UPDATE SET state = 'paid'",
        ["upsert n/1", "upsert n/3"],
    ),
    "merge": (
        """
        MERGE INTO orders AS o USING (VALUES ('n', 1), ('s', 1), ('x', 9)) AS m (region, id)
        ON o.region = m.region AND o.id = m.id
        WHEN MATCHED AND o.region = 'n' THEN DELETE
        WHEN MATCHED THEN UPDATE SET state = 'paid'
        WHEN NOT MATCHED THEN INSERT VALUES (m.region, m.id)
        """,
        ["upsert s/1", "upsert x/9", "delete n/1"],
    ),
    "update of all": (
        "UPDATE orders SET state = 'paid'",
        ["upsert n/1", "upsert n/2", "upsert s/1", "upsert s/100", "upsert x/1"],
    ),
    "update of a partition": ("UPDATE south SET state = 'paid' WHERE id = 1", ["upsert s/1"]),
    "changed key": ("UPDATE north SET id = 9 WHERE id = 1", ["upsert n/9", "delete n/1"]),
    "move": ("UPDATE orders SET region = 's' WHERE id = 2", ["upsert s/2", "delete n/2"]),
    "move within a partition": ("UPDATE south SET id = 300 WHERE id = 1", ["upsert s/300", "delete s/1"]),
    "move to the default": ("UPDATE orders SET region = 'y' WHERE id = 2", ["upsert y/2", "delete n/2"]),
    "move to the key of a row that is deleted": (
        """
        WITH d AS (DELETE FROM orders WHERE region = 'n' AND id = 1 RETURNING id)
        UPDATE orders SET region = 'n' FROM d WHERE orders.region = 'x'
        """,
        ["upsert n/1", "delete x/1"],
    ),
    "delete": ("DELETE FROM orders WHERE id = 1", ["delete n/1", "delete s/1", "delete x/1"]),
    "delete and insert of a key": (
        "WITH d AS (DELETE FROM north WHERE id = 1 RETURNING id) INSERT INTO orders SELECT 'n', id FROM d",
        ["upsert n/1"],
    ),
    "truncate": ("TRUNCATE orders", ["truncate"]),
    "truncate of a partition": ("TRUNCATE north", ["truncate"]),
    "truncate of a partitioned partition": ("TRUNCATE south", ["truncate"]),
}


@pytest.mark.parametrize(("statement", "logged"), WRITES.values(), ids=WRITES)
async def test_each_kind_of_write_is_logged_whatever_table_it_names(
    whole: asyncpg.Connection, statement: str, logged: list[str]
) -> None:
    assert sorted(await changes(whole, statement)) == [f"orders {line}" for line in sorted(logged)]
    assert await faults(whole, "orders") == []


async def test_truncate_after_an_insert_is_logged_again(whole: asyncpg.Connection) -> None:
    logged = await changes(whole, "TRUNCATE orders", "INSERT INTO orders VALUES ('n', 5)", "TRUNCATE north")
    assert logged == ["orders truncate", "orders upsert n/5", "orders truncate"]


async def test_partition_that_comes_later_is_captured_at_once(whole: asyncpg.Connection) -> None:
    await whole.execute(
        """
        ALTER TABLE orders DETACH PARTITION elsewhere;
        CREATE TABLE west PARTITION OF orders FOR VALUES IN ('w') PARTITION BY HASH (id);
        CREATE TABLE west_all PARTITION OF west FOR VALUES WITH (MODULUS 1, REMAINDER 0);
        ALTER TABLE orders ATTACH PARTITION elsewhere DEFAULT
        """
    )
    assert await changes(
        whole,
        "SET session_replication_role = replica",
        "INSERT INTO west_all VALUES ('w', 1)",
        "UPDATE orders SET region = 'z' WHERE region = 'w'",
        "DELETE FROM elsewhere WHERE region = 'z'",
    ) == ["orders upsert w/1", "orders upsert z/1", "orders delete w/1", "orders delete z/1"]


async def test_entity_of_a_partition_has_what_is_written_through_the_table_above_it(
    parts: asyncpg.Connection,
) -> None:
    assert await changes(
        parts,
        "INSERT INTO orders VALUES ('n', 5), ('s', 5), ('x', 5)",
        "UPDATE orders SET region = 'n', id = 6 WHERE region = 'x' AND id = 5",
        "UPDATE orders SET region = 's' WHERE region = 'n' AND id = 6",
        "UPDATE orders SET region = 'x' WHERE id = 6",
        "UPDATE orders SET state = 'paid' WHERE region = 'x'",
        "DELETE FROM orders WHERE id = 5",
        "TRUNCATE south_low",
    ) == [
        *("north upsert n/5", "south upsert s/5", "north upsert n/6", "south upsert s/6", "north delete n/6"),
        *("south delete s/6", "north delete n/5", "south delete s/5", "south truncate"),
    ]
    assert await faults(parts, "north") == []
    assert sorted(await changes(parts, "TRUNCATE orders")) == ["north truncate", "south truncate"]


async def test_uninstalling_leaves_nothing_but_what_other_partitions_need(parts: asyncpg.Connection) -> None:
    columns = (
        "SELECT count(*) FROM pg_attribute WHERE attname = 'row_version' AND attrelid::regclass::text ~ $1"
    )
    assert await uninstall(parts, ["south"]) == ("south",)
    assert await parts.fetchval(columns, "^(orders|north|south|elsewhere)") == 6
    assert await changes(parts, "INSERT INTO orders VALUES ('n', 5), ('s', 5)") == ["north upsert n/5"]
    await uninstall(parts)
    assert await parts.fetchval(columns, "^(orders|north|south|elsewhere)") == 0
    assert await parts.fetchval("SELECT count(*) FROM pg_trigger") == 0
    assert await check(parts, WHOLE) == (
        [],
        ["the database has no schema 'cachesync'; run `cachesync install`"],
    )


async def test_installing_again_changes_nothing_and_repairs_a_partition(whole: asyncpg.Connection) -> None:
    state = "SELECT array_agg(t::text ORDER BY t.oid) FROM pg_trigger AS t"
    before = await whole.fetchval(state)
    await install(whole, WHOLE, Silent())
    assert await whole.fetchval(state) == before
    await whole.execute("ALTER TABLE south_low DISABLE TRIGGER cachesync_log_row")
    problem = (await read_registry(whole))["orders"].problem or ""
    assert "trigger cachesync_log_row of partition public.south_low is disabled" in problem
    await install(whole, WHOLE, Silent())
    assert (await read_registry(whole))["orders"].problem is None
    assert await whole.fetchval(state) == before


REFUSED: Final = {
    "a foreign partition": (
        """
        ALTER TABLE orders DROP CONSTRAINT orders_pkey; ALTER TABLE orders DETACH PARTITION elsewhere;
        CREATE FOREIGN DATA WRAPPER nothing; CREATE SERVER far FOREIGN DATA WRAPPER nothing;
        CREATE FOREIGN TABLE far PARTITION OF orders DEFAULT SERVER far
        """,
        "its partition public.far is a foreign table",
    ),
    "an unlogged partition": ("ALTER TABLE south_low SET UNLOGGED", "a partition of it is unlogged"),
    "a key that partitions lack": (
        """
        ALTER TABLE orders DROP CONSTRAINT orders_pkey;
        ALTER TABLE ONLY orders ADD PRIMARY KEY (region, id)
        """,
        "some of its partitions lack its primary key",
    ),
    "a late trigger of a partition": (
        """
        CREATE FUNCTION late() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
        CREATE TRIGGER zzzz BEFORE INSERT ON south_low FOR EACH ROW EXECUTE FUNCTION late()
        """,
        "its trigger 'zzzz' fires after",
    ),
    "columns of its own": ("ALTER TABLE orders ADD row_version int", "has its own column 'row_version'"),
}


@pytest.mark.parametrize(("statement", "problem"), REFUSED.values(), ids=REFUSED)
async def test_what_cannot_work_is_refused_with_the_reason(
    bare: asyncpg.Connection, statement: str, problem: str
) -> None:
    await bare.execute(statement)
    problems, _ = await check(bare, WHOLE)
    assert problem in problems[0]


async def test_table_and_its_partition_cannot_both_be_entities(
    bare: asyncpg.Connection, parts: asyncpg.Connection
) -> None:
    problems, _ = await check(bare, {**WHOLE, "low": entity("low", "south_low")})
    assert problems == [
        f"entity '{name}', table {table}: it shares rows with public.{other}; declare only one of them"
        for name, table, other in (
            ("orders", "orders", "south_low, the table of entity 'low'"),
            ("low", "south_low", "orders, the table of entity 'orders'"),
        )
    ]
    with pytest.raises(InstallError, match="'south' is installed; run `cachesync uninstall south` first"):
        await install(parts, {"low": entity("low", "south_low")}, Silent())


async def test_proposal_offers_the_partitioned_table_instead_of_its_partitions(
    bare: asyncpg.Connection,
) -> None:
    proposal = await propose(bare)
    assert [proposed.entity.table for proposed in proposal.tables] == ["orders"]
    covered = "it is a partition of orders, whose entity has its rows"
    assert proposal.left_out == dict.fromkeys(
        ("elsewhere", "north", "south", "south_high", "south_low"), covered
    )


async def test_entity_whose_table_becomes_a_partition_is_installed_anew(database: str) -> None:
    bare = await asyncpg.connect(database)
    await bare.execute(ORDERS)
    await bare.execute("ALTER TABLE orders DETACH PARTITION north")
    north = {"north": PARTS["north"]}
    await install(bare, north, Silent())
    await bare.execute(
        "ALTER TABLE orders ADD row_version bigint NOT NULL DEFAULT 0;"
        "ALTER TABLE orders ATTACH PARTITION north FOR VALUES IN ('n')"
    )
    problem = (await read_registry(bare))["north"].problem or ""
    assert "it became a partition" in problem
    await install(bare, north, Silent())
    assert (await read_registry(bare))["north"].problem is None
    assert await changes(bare, "INSERT INTO orders VALUES ('n', 5)") == ["north upsert n/5"]
    # The other way round, its triggers fire as before.
    await bare.execute("ALTER TABLE orders DETACH PARTITION north")
    assert (await read_registry(bare))["north"].problem is None
    assert await changes(bare, "UPDATE north SET id = 6 WHERE id = 5") == [
        "north upsert n/6",
        "north delete n/5",
    ]
    await bare.close()


async def test_owner_of_the_table_creates_partitions_and_runs_nothing_as_the_installing_user(
    whole: asyncpg.Connection,
) -> None:
    await whole.execute(
        """
        CREATE ROLE shopkeeper; GRANT CREATE ON SCHEMA public TO shopkeeper;
        DO $$
        DECLARE part text;
        BEGIN
            FOREACH part IN ARRAY '{orders,north,south,south_low,south_high,elsewhere}'::text [] LOOP
                EXECUTE format('ALTER TABLE %I OWNER TO shopkeeper', part);
            END LOOP;
        END $$
        """
    )
    await install(whole, WHOLE, Silent())
    assert await changes(
        whole,
        "SET ROLE shopkeeper",
        "ALTER TABLE south DETACH PARTITION south_low",
        "CREATE TABLE south_lowest PARTITION OF south FOR VALUES FROM (MINVALUE) TO (0)",
        "INSERT INTO orders VALUES ('so', -1)",
        "RESET ROLE",
    ) == ["orders upsert so/-1"]
    await whole.execute(
        """
        GRANT USAGE ON SCHEMA cachesync TO shopkeeper; SET ROLE shopkeeper;
        CREATE TYPE trap AS (text text);
        CREATE FUNCTION spring(trap) RETURNS json LANGUAGE plpgsql AS
        $$ BEGIN RAISE 'sprung as %', current_user; END $$;
        CREATE CAST (trap AS json) WITH FUNCTION spring(trap);
        CREATE TABLE snare (region text, id int, state trap, placed timestamptz, row_version bigint);
        CREATE TRIGGER log AFTER INSERT ON snare FOR EACH ROW EXECUTE FUNCTION cachesync.orders_log_row()
        """
    )
    with pytest.raises(asyncpg.RaiseError, match="snare is not a partition of"):
        await whole.execute("INSERT INTO snare VALUES ('n', 1, '(x)', now(), 0)")


@pytest.fixture(scope="module")
def template(postgres: Postgres) -> Iterator[str]:
    """A database with the entity of the whole table that nobody connects to, to copy."""
    name = create(postgres, ORDERS, WHOLE)
    yield name
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


@pytest.fixture
async def copy(postgres: Postgres, template: str) -> AsyncIterator[str]:
    """The DSN of a database with the entity of the whole table, for what must be committed."""
    name = f"copy_{secrets.token_hex(4)}"
    create_database(postgres.dsn_of("postgres"), name, template=template)
    yield postgres.dsn_of(name)
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


@pytest.fixture
async def owner(copy: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(copy)
    yield connection
    connection.terminate()


@pytest.fixture
async def relay(copy: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(copy)
    await connection.execute("SET ROLE cachesync_worker")
    yield connection
    connection.terminate()


@pytest.fixture
def relay_check(monkeypatch: pytest.MonkeyPatch) -> CaptureCheck:
    monkeypatch.setattr(capture, "_PAUSE_SECONDS", 0)
    return CaptureCheck(WHOLE)


NEW: Final = "CREATE TABLE west PARTITION OF orders FOR VALUES IN ('w')"
DETACH: Final = "ALTER TABLE orders DETACH PARTITION north"
ATTACH: Final = "ALTER TABLE orders ATTACH PARTITION north FOR VALUES IN ('n')"
ARRIVALS: Final = {
    "detach": ([DETACH], ["truncate"]),
    "detach and attach": ([DETACH, "UPDATE north SET state = 'paid'", ATTACH], ["truncate"]),
    "drop": (["DROP TABLE south"], ["truncate"]),
    "new": ([NEW], []),
    "new and filled": ([NEW, "INSERT INTO west VALUES ('w', 1)"], ["truncate"]),
    "new, filled and truncated": ([NEW, "INSERT INTO west VALUES ('w', 1)", "TRUNCATE west"], ["truncate"]),
}


@pytest.mark.parametrize(("statements", "emptied"), ARRIVALS.values(), ids=ARRIVALS)
async def test_relay_empties_the_caches_if_partitions_came_or_went_with_rows(
    owner: asyncpg.Connection,
    relay: asyncpg.Connection,
    relay_check: CaptureCheck,
    statements: list[str],
    emptied: list[str],
) -> None:
    await relay_check.step(relay)
    for statement in statements:
        await owner.execute(statement)
    with capture_logs() as logs:
        await relay_check.step(relay)
        await relay_check.step(relay)
    assert [(log["event"], log["emptied"]) for log in logs] == [("partitions changed", bool(emptied))]
    lines = await owner.fetch("SELECT operation FROM cachesync.change_log WHERE key IS NULL")
    assert [line["operation"] for line in lines] == emptied
    # From here on, a TRUNCATE of a partition is logged, and one of a former partition is not.
    leaves = "SELECT relid::text FROM pg_partition_tree('orders') WHERE isleaf"
    for (table,) in await owner.fetch(leaves):
        assert await changes(owner, f"TRUNCATE {table}") == ["orders truncate"]
    if statements == [DETACH]:
        assert await changes(owner, "TRUNCATE north") == []


async def test_changes_of_attached_rows_are_newer_than_versions_that_another_database_has_drawn(
    owner: asyncpg.Connection, relay: asyncpg.Connection, relay_check: CaptureCheck
) -> None:
    await relay_check.step(relay)
    drawn = 10**15
    await owner.execute(
        f"""
        CREATE TABLE west (LIKE orders INCLUDING ALL);
        INSERT INTO west (region, id, row_version) VALUES ('w', 1, {drawn});
        ALTER TABLE orders ATTACH PARTITION west FOR VALUES IN ('w')
        """
    )
    await relay_check.step(relay)
    truncated = await owner.fetchval("SELECT version FROM cachesync.change_log WHERE operation = 'truncate'")
    assert truncated > drawn
    changed = "UPDATE orders SET state = 'paid' WHERE region = 'w' RETURNING row_version"
    assert await owner.fetchval(changed) > truncated


async def test_changes_of_attached_rows_are_newer_although_the_partition_could_not_be_read_at_first(
    owner: asyncpg.Connection, relay: asyncpg.Connection, relay_check: CaptureCheck
) -> None:
    await relay_check.step(relay)
    await owner.execute(
        f"""
        CREATE TABLE west (LIKE orders INCLUDING ALL);
        INSERT INTO west (region, id, row_version) VALUES ('w', 1, {10**15});
        ALTER TABLE orders ATTACH PARTITION west FOR VALUES IN ('w');
        BEGIN;
        LOCK TABLE west
        """
    )
    await relay_check.step(relay)
    await owner.execute("COMMIT")
    await relay_check.step(relay)
    changed = "UPDATE orders SET state = 'paid' WHERE region = 'w' RETURNING row_version"
    assert await owner.fetchval(changed) > 10**15


async def test_relay_reports_an_attached_version_that_leaves_no_higher_ones(
    owner: asyncpg.Connection, relay: asyncpg.Connection, relay_check: CaptureCheck
) -> None:
    await relay_check.step(relay)
    await owner.execute(
        f"""
        CREATE TABLE west (LIKE orders INCLUDING ALL);
        INSERT INTO west (region, id, row_version) VALUES ('w', 1, {2**63 - 1});
        ALTER TABLE orders ATTACH PARTITION west FOR VALUES IN ('w')
        """
    )
    with capture_logs() as logs:
        await relay_check.step(relay)
    assert "row_version 9223372036854775807 is too high" in logs[-1]["problem"]
    await owner.execute("INSERT INTO orders VALUES ('n', 9)")


async def test_sessions_raise_the_sequence_one_after_the_other(
    owner: asyncpg.Connection, relay: asyncpg.Connection
) -> None:
    """Otherwise, one could set it back to what it had found before the other."""
    await relay.execute("RESET ROLE; SET lock_timeout = '50ms'")
    async with owner.transaction():
        await owner.execute(f"SELECT cachesync.draw_above({10**15})")
        with pytest.raises(asyncpg.LockNotAvailableError):
            await relay.execute(f"SELECT cachesync.draw_above({10**14})")
    await relay.execute(f"SELECT cachesync.draw_above({10**14})")
    assert await owner.fetchval("SELECT nextval('cachesync.row_version')") > 10**15


async def test_relay_reports_a_partition_that_it_cannot_follow(
    owner: asyncpg.Connection, relay: asyncpg.Connection, relay_check: CaptureCheck
) -> None:
    """Its changes are captured, so that the entity stays in use; the caches are emptied once."""
    await owner.execute(f"{NEW}; INSERT INTO west VALUES ('w', 1)")
    await owner.execute("BEGIN; LOCK TABLE west IN ROW EXCLUSIVE MODE")
    with capture_logs() as logs:
        await relay_check.step(relay)
    assert [log["event"] for log in logs] == ["partitions changed", "capture lost"]
    assert "partition public.west: canceling statement due to lock timeout" in logs[1]["problem"]
    assert (await read_registry(relay))["orders"].problem is None
    await owner.execute("COMMIT")
    with capture_logs() as logs:
        await relay_check.step(relay)
    assert [log["event"] for log in logs] == ["partitions changed", "capture restored"]
    lines = await owner.fetch("SELECT operation FROM cachesync.change_log WHERE key IS NULL")
    assert [line["operation"] for line in lines] == ["truncate", "truncate"]


# The statements of the tests of ordinary tables, on a table whose rows move whenever their keys change.
PARTITIONED: Final = """
    CREATE TABLE item_low (amount int NOT NULL DEFAULT 0, junk int, note text NOT NULL, id int NOT NULL);
    ALTER TABLE item_low DROP COLUMN junk;
    ALTER TABLE item RENAME TO former;
    CREATE TABLE item (id int PRIMARY KEY, note text NOT NULL, amount int NOT NULL DEFAULT 0)
    PARTITION BY RANGE (id);
    ALTER TABLE item ATTACH PARTITION item_low FOR VALUES FROM (MINVALUE) TO (2);
    CREATE TABLE item_mid PARTITION OF item FOR VALUES FROM (2) TO (3) PARTITION BY LIST (id);
    CREATE TABLE item_two PARTITION OF item_mid FOR VALUES IN (2);
    CREATE TABLE item_rest PARTITION OF item DEFAULT;
    ALTER TABLE part DROP CONSTRAINT part_item_id_fkey;
    ALTER TABLE part ADD FOREIGN KEY (item_id) REFERENCES item ON DELETE CASCADE ON UPDATE CASCADE;
    DROP TABLE former;
"""
DIRECT: Final = (
    "INSERT INTO item_low (id, note, amount) VALUES ({k}, 'low', {a})",
    "INSERT INTO item_rest (id, note) VALUES ({k}, 'rest') ON CONFLICT (id) DO UPDATE SET note = 'upserted'",
    "UPDATE item_two SET note = note || '!'",
    "UPDATE item_rest SET id = {j} WHERE id = {k}",
    "DELETE FROM item_mid",
    "TRUNCATE item_low CASCADE",
    "TRUNCATE item_rest CASCADE",
)
DIRECT_OPERATIONS: Final = OPERATIONS | st.builds(operation, st.sampled_from(DIRECT), KEYS, KEYS, AMOUNTS)


@pytest.fixture(scope="module")
def items(postgres: Postgres) -> Iterator[str]:
    name = create(postgres, TABLES + PARTITIONED, ENTITIES)
    yield name
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


@pytest.fixture
async def stage(postgres: Postgres, items: str) -> AsyncIterator[Interleaving]:
    opened = [
        await asyncpg.connect(
            postgres.dsn_of(items), server_settings={"deadlock_timeout": "5ms"}, statement_cache_size=0
        )
        for _ in range(4)
    ]
    yield Interleaving(opened[:3], opened[3])
    for connection in opened:
        connection.terminate()


INTO_A_PARTITION: Final = "INSERT INTO item_low (id, note) VALUES (1, 'new')"


@pytest.mark.parametrize(
    "insert", [*INSERTS.values(), INTO_A_PARTITION], ids=[*INSERTS, "insert into a partition"]
)
async def test_row_that_reuses_the_key_of_a_later_delete_draws_a_second_version(
    stage: Interleaving, insert: Operation
) -> None:
    await reset(stage)
    await stage.observer.execute("INSERT INTO item VALUES (3, 'old')")
    witness = await play(stage, overtaken(insert, "READ COMMITTED"), partitioned=True)
    assert stage.commits == 2
    assert witness.faults == []
    assert await stage.observer.fetchval("SELECT note FROM item WHERE id = 1") == "new"
    assert await log_of(stage.observer, 1) == ["upsert", "upsert", "upsert", "delete", "upsert"]


@pytest.mark.filterwarnings("ignore:there is no transaction in progress")
@pytest.mark.parametrize("own_triggers", [None, OWN_TRIGGERS], ids=["", "the table has triggers of its own"])
@settings(max_examples=30, suppress_health_check=list(HealthCheck))
@given(steps=schedules(DIRECT_OPERATIONS))
async def test_log_matches_the_partitions_whatever_concurrent_writers_do(
    stage: Interleaving, own_triggers: str | None, steps: list[tuple[int, Operation]]
) -> None:
    if own_triggers is not None and await stage.observer.fetchval("SELECT to_regproc('meddle') IS NULL"):
        await stage.observer.execute(own_triggers)
    await reset(stage)
    stage = Interleaving([session.connection for session in stage.sessions], stage.observer)
    witness = await play(stage, steps, partitioned=True)
    for number, session in enumerate(stage.sessions):
        for done, outcome in session.outcomes:
            note(f"{number}: {done} -> {outcome}")
    assert witness.faults == []
