from __future__ import annotations

import asyncio
import secrets
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import asyncpg
import pytest
from hypothesis import HealthCheck, given, note, settings
from hypothesis import strategies as st

from cachesync.entity import Entity
from cachesync.install.installer import install, uninstall
from cachesync.postgres.payload import PAYLOAD_SETTINGS
from local.silent import Silent
from tests.integration.install.interleaving import Copy, Interleaving, Operation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from local.postgres import Postgres

TABLES: Final = """
    CREATE TABLE item (id int PRIMARY KEY, note text NOT NULL, amount int NOT NULL DEFAULT 0);
    CREATE TABLE part (
        id int PRIMARY KEY,
        item_id int REFERENCES item ON DELETE CASCADE ON UPDATE CASCADE,
        above int REFERENCES part ON DELETE CASCADE
    );
"""
# Triggers that a table may already have: they change, move or delete the new row.
OWN_TRIGGERS: Final = """
    CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF NEW.amount = 1 THEN
            UPDATE item SET amount = 2 WHERE id = NEW.id;
        ELSIF NEW.amount = 3 THEN
            DELETE FROM item WHERE id = NEW.id;
        ELSIF NEW.amount = 4 THEN
            DELETE FROM item WHERE id = NEW.id;
            INSERT INTO item VALUES (NEW.id, 'again', 0);
        END IF;
        RETURN NULL;
    END
    $$;
    CREATE TRIGGER meddle AFTER INSERT OR UPDATE ON item FOR EACH ROW EXECUTE FUNCTION meddle();
    CREATE TRIGGER aaa_idle BEFORE UPDATE ON item FOR EACH ROW
    EXECUTE FUNCTION suppress_redundant_updates_trigger();
"""
# Statements that give the items a key of two columns; the others still find them by one.
TWO_COLUMNS: Final = """
    ALTER TABLE item DROP CONSTRAINT item_pkey CASCADE, ADD COLUMN kind text NOT NULL DEFAULT 'a/~b';
    ALTER TABLE item ADD PRIMARY KEY (kind, id), ADD UNIQUE (id);
    ALTER TABLE part ADD FOREIGN KEY (item_id) REFERENCES item (id) ON DELETE CASCADE ON UPDATE CASCADE;
"""
HAS_TWO_COLUMNS: Final = (
    "SELECT EXISTS (SELECT FROM pg_attribute WHERE attrelid = 'item'::regclass AND attname = 'kind')"
)
ENTITIES: Final = {
    name: Entity.model_validate(
        {"name": name, "table": name, "key": "id", "ttl": "1h", "absent_ttl": "1s", "path": f"/{name}"}
    )
    for name in ("item", "part")
}
ISOLATION_LEVELS: Final = ("READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE")
STRANGE_SETTINGS: Final = {
    "timezone": "Asia/Kathmandu",
    "datestyle": "German, DMY",
    "intervalstyle": "sql_standard",
    "bytea_output": "escape",
    "extra_float_digits": "-15",
    "search_path": "public",
    "quote_all_identifiers": "on",
}
BEGIN: Final = "BEGIN ISOLATION LEVEL {}; SET LOCAL cachesync.source = {}"


def create(postgres: Postgres) -> str:
    """Create a database with the tables and the installed database side; return its name."""

    async def work(dsn: str) -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute(TABLES)
        await install(connection, ENTITIES, Silent())
        await connection.close()

    name = f"versions_{secrets.token_hex(4)}"
    asyncio.run(work(postgres.create_database(name)))
    return name


@pytest.fixture(scope="module")
def shared_database(postgres: Postgres) -> Iterator[str]:
    name = create(postgres)
    yield name
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


@pytest.fixture
def own_database(postgres: Postgres) -> Iterator[str]:
    """A database for a test that creates more tables, triggers or functions."""
    name = create(postgres)
    yield name
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


@pytest.fixture
def database(request: pytest.FixtureRequest) -> str:
    name = "own_database" if "own_database" in request.fixturenames else "shared_database"
    return str(request.getfixturevalue(name))


@pytest.fixture
async def connections(postgres: Postgres, database: str) -> AsyncIterator[list[asyncpg.Connection]]:
    """Three sessions with a short deadlock timeout, and an observer."""
    opened = [
        await asyncpg.connect(
            postgres.dsn_of(database), server_settings={"deadlock_timeout": "5ms"}, statement_cache_size=0
        )
        for _ in range(4)
    ]
    yield opened
    for connection in opened:
        connection.terminate()


@pytest.fixture
async def stage(connections: list[asyncpg.Connection]) -> Interleaving:
    stage = Interleaving(connections[:3], connections[3])
    await reset(stage)
    return stage


async def reset(stage: Interleaving) -> None:
    for session in stage.sessions:
        await session.connection.execute("ROLLBACK")
    await stage.observer.execute(
        # Autovacuum gives way, but not always within the few milliseconds that an observation may take.
        "RESET lock_timeout; TRUNCATE cachesync.change_log, item, part;"
        "INSERT INTO item VALUES (1, 'old', 0), (2, 'old', 2);"
        "INSERT INTO part VALUES (1, 1, NULL), (2, 2, 1)"
    )


@dataclass
class Witness:
    """Observes the committed state repeatedly and records violations.

    Attributes:
        observer: the connection that it uses.
        partitioned: whether a truncate can leave rows.
        faults: the violations.
        latest: by entity and key, the version of the newest state observed, be it the row or its deletion.
    """

    observer: asyncpg.Connection
    partitioned: bool = False
    faults: list[str] = field(default_factory=list)
    latest: dict[tuple[str, str], tuple[int, str]] = field(default_factory=dict)

    async def look(self) -> None:
        for entity in ENTITIES:
            # Until a truncate is committed, its lock keeps everyone from reading.
            with suppress(asyncpg.LockNotAvailableError):
                await self._look(entity)

    async def _look(self, entity: str) -> None:
        # One statement, for one snapshot.
        state = await self.observer.fetch(
            f"""
            SELECT 'row' AS kind, version, key::text, 'upsert' AS operation, payload FROM cachesync.{entity}
            UNION ALL
            SELECT 'line', version, key, operation, payload FROM cachesync.change_log WHERE entity = $1
            ORDER BY version
            """,
            entity,
        )
        lines = [tuple(record)[1:] for record in state if record["kind"] == "line"]
        rows = {
            record["key"]: (record["version"], record["payload"]) for record in state if record[0] == "row"
        }
        log = {key: (version, operation, payload) for version, key, operation, payload in lines}
        truncated: int = log.pop(None, (0,))[0]
        for key, (version, payload) in rows.items():
            logged = log.get(key)
            lost = truncated > version and not self.partitioned
            if logged is None or logged[:2] != (version, "upsert") or lost:
                self.faults.append(f"{entity} {key} is at {version}, the log at {logged}, {truncated=}")
            elif logged[2] != payload:
                self.faults.append(f"{entity} {key}: the log holds {logged[2]}, the row is {payload}")
        for key, (version, operation, _) in log.items():
            if key not in rows and operation != "delete" and truncated < version:
                self.faults.append(f"{entity} {key} is gone, the log at {version}, {operation}")
        gone = {key: (max(truncated, line[0]), "") for key, line in log.items() if key not in rows}
        self._follow(entity, rows | gone)

    def _follow(self, entity: str, state: dict[str, tuple[int, str]]) -> None:
        for key, (version, payload) in state.items():
            seen, shown = self.latest.get((entity, key), (0, ""))
            if version < seen or (version == seen and payload != shown):
                self.faults.append(f"{entity} {key} went from {seen} {shown} to {version} {payload}")
            self.latest[entity, key] = (version, payload)


async def sources(observer: asyncpg.Connection) -> set[str]:
    return {
        record["source"]
        for record in await observer.fetch("SELECT DISTINCT source FROM cachesync.change_log")
    }


async def play(
    stage: Interleaving, steps: list[tuple[int, Operation]], *, partitioned: bool = False
) -> Witness:
    """Run the steps of the sessions in this order and observe the state after each commit."""
    await stage.observer.execute("SET lock_timeout = '10ms'")
    witness = Witness(stage.observer, partitioned)
    await witness.look()
    for session, operation in steps:
        commits = stage.commits
        await stage.do(session, operation)
        if stage.commits > commits:
            await witness.look()
    await stage.finish()
    await witness.look()
    return witness


async def log_of(observer: asyncpg.Connection, key: int | str, entity: str = "item") -> list[str]:
    """Return the operations logged for a key in version order."""
    return [
        record["operation"]
        for record in await observer.fetch(
            "SELECT operation FROM cachesync.change_log WHERE entity = $1 AND key = $2 ORDER BY version",
            entity,
            str(key),
        )
    ]


KEYS: Final = st.integers(1, 3)
AMOUNTS: Final = st.integers(0, 4)
KEY_CHANGES: Final = (
    "INSERT INTO item VALUES ({k}, 'new', {a})",
    "UPDATE item SET note = note || '.' WHERE id = {k}",
    "UPDATE item SET id = {j} WHERE id = {k}",
    "DELETE FROM item WHERE id = {k}",
)
SQL: Final = (
    "UPDATE item SET amount = {a} WHERE id = {k}",
    "UPDATE item SET note = note || '+'",
    "UPDATE item SET note = note WHERE id IN ({k}, {j})",
    "DELETE FROM item WHERE id IN ({k}, {j})",
    "DELETE FROM item WHERE note = 'new'",
    "INSERT INTO item SELECT i, 'new', {a} FROM generate_series({k}, {k} + 1) AS i",
    "INSERT INTO item VALUES ({k}, 'new', {a}), ({j}, 'new', {a}) ON CONFLICT DO NOTHING",
    "INSERT INTO item VALUES ({k}, 'new', {a}) ON CONFLICT (id) DO UPDATE SET note = item.note || '*'",
    "INSERT INTO item VALUES ({k}, 'new'), ({j}, 'new') ON CONFLICT (id) DO UPDATE SET note = 'upserted'",
    "INSERT INTO item VALUES ({k}, 'new') ON CONFLICT (id) DO UPDATE SET id = {j}",
    """
    MERGE INTO item AS t USING (VALUES ({k}), ({j})) AS s (id) ON t.id = s.id
    WHEN MATCHED AND t.amount > 1 THEN DELETE
    WHEN MATCHED THEN UPDATE SET note = 'merged'
    WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'new', {a})
    """,
    """
    MERGE INTO item AS t USING (VALUES ({k}, true), ({k}, false)) AS s (id, there) ON t.id = s.id AND s.there
    WHEN MATCHED THEN DELETE
    WHEN NOT MATCHED AND NOT there THEN INSERT VALUES (s.id, 'new')
    """,
    "UPDATE item SET id = {j} WHERE note = 'new'",
    "UPDATE item SET id = id + 1 WHERE id >= {k}",
    "UPDATE item SET id = id - 1 WHERE id > {k}",
    "WITH d AS (DELETE FROM item WHERE id = {k} RETURNING id) INSERT INTO item SELECT id, 'back' FROM d",
    """
    WITH d AS (DELETE FROM item WHERE id = {k} RETURNING id)
    UPDATE item SET id = {k} FROM d WHERE item.id = {j}
    """,
    """
    WITH u AS (UPDATE item SET id = {j} WHERE id = {k} RETURNING id)
    INSERT INTO item SELECT {k}, 'new' FROM u
    """,
    "INSERT INTO part VALUES ({k}, {j}, NULL) ON CONFLICT (id) DO UPDATE SET item_id = excluded.item_id",
    "INSERT INTO part VALUES ({k}, NULL, {j}) ON CONFLICT (id) DO UPDATE SET above = excluded.above",
    "DELETE FROM part WHERE id = {k}",
    "TRUNCATE item CASCADE",
    "COPY",
    "SAVEPOINT here",
    "ROLLBACK TO here",
)


def operation(template: str, k: int, j: int, a: int) -> Operation:
    if template == "COPY":
        return Copy("item", ("id", "note", "amount"), tuple((key, "copied", a) for key in sorted({k, j})))
    return template.format(k=k, j=j, a=a)


# Half of the statements insert, move or delete keys.
OPERATIONS: Final = st.builds(
    operation, st.sampled_from(SQL) | st.sampled_from(KEY_CHANGES), KEYS, KEYS, AMOUNTS
)


@st.composite
def schedules(
    draw: st.DrawFn, operations: st.SearchStrategy[Operation] = OPERATIONS
) -> list[tuple[int, Operation]]:
    scripts: list[list[Operation]] = []
    for session in range(draw(st.integers(2, 3))):
        isolation = draw(st.sampled_from(ISOLATION_LEVELS))
        begin = BEGIN.format(isolation, f"'transaction {session}'")
        end = draw(st.sampled_from(("COMMIT", "COMMIT", "COMMIT", "ROLLBACK")))
        scripts.append([begin, *draw(st.lists(operations, min_size=1, max_size=4)), end])
    turns = draw(st.permutations([s for s, script in enumerate(scripts) for _ in script]))
    rest = [iter(script) for script in scripts]
    return [(session, next(rest[session])) for session in turns]


@pytest.mark.filterwarnings("ignore:there is no transaction in progress")
@pytest.mark.usefixtures("own_database")
@pytest.mark.parametrize("own_triggers", [None, OWN_TRIGGERS], ids=["", "the table has triggers of its own"])
@pytest.mark.parametrize("key", ["id", ["kind", "id"]], ids=["", "the key has two columns"])
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(steps=schedules())
async def test_versions_grow_in_commit_order_and_the_log_matches_the_tables(
    connections: list[asyncpg.Connection],
    own_triggers: str | None,
    key: str | list[str],
    steps: list[tuple[int, Operation]],
) -> None:
    stage = Interleaving(connections[:3], connections[3])
    if key != "id" and not await stage.observer.fetchval(HAS_TWO_COLUMNS):
        await uninstall(stage.observer, ["item"])
        await stage.observer.execute(TWO_COLUMNS)
        item = ENTITIES["item"].model_copy(update={"key": tuple(key)})
        await install(stage.observer, {**ENTITIES, "item": item}, Silent())
    if own_triggers is not None and await stage.observer.fetchval("SELECT to_regproc('meddle') IS NULL"):
        await stage.observer.execute(own_triggers)
    await reset(stage)
    if stage.observer.get_server_version().major < 15:
        steps = [step for step in steps if "MERGE" not in str(step)]
    witness = await play(stage, steps)
    for number, session in enumerate(stage.sessions):
        for done, outcome in session.outcomes:
            note(f"{number}: {done} -> {outcome}")
    assert witness.faults == []
    committed = {
        f"transaction {number}"
        for number, session in enumerate(stage.sessions)
        if session.outcomes and session.outcomes[-1][1] == "COMMIT"
    }
    assert await sources(stage.observer) <= {*committed, "postgres"}


OVERTAKEN: Final[list[tuple[int, Operation]]] = [
    (0, "BEGIN"),
    (0, "UPDATE item SET note = 'held' WHERE id = 1"),
    (1, "{begin}"),
    (1, "{insert}"),
    (0, "DELETE FROM item WHERE id = 1"),
    (0, "COMMIT"),
    (1, "COMMIT"),
]
"""The insert draws a number and waits for the first transaction, whose delete then draws a higher one."""

INSERTS: Final[dict[str, Operation]] = {
    "insert": "INSERT INTO item VALUES (1, 'new')",
    "insert of rows before and after": "INSERT INTO item VALUES (7, 'new'), (1, 'new'), (8, 'new')",
    "on conflict do update": "INSERT INTO item VALUES (1, 'new') ON CONFLICT (id) DO UPDATE SET note = 'no'",
    "on conflict do nothing": "INSERT INTO item VALUES (1, 'new') ON CONFLICT DO NOTHING",
    "move": "UPDATE item SET id = 1, note = 'new' WHERE id = 2",
    "chain of moves": "UPDATE item SET id = id - 1, note = 'new' WHERE id IN (2, 3)",
    "copy": Copy("item", ("id", "note"), ((9, "new"), (1, "new"))),
}


def overtaken(insert: Operation, isolation: str) -> list[tuple[int, Operation]]:
    replaced: dict[Operation, Operation] = {
        "{begin}": f"BEGIN ISOLATION LEVEL {isolation}",
        "{insert}": insert,
    }
    return [(session, replaced.get(operation, operation)) for session, operation in OVERTAKEN]


async def redraw_nothing(observer: asyncpg.Connection) -> None:
    await observer.execute(
        "CREATE OR REPLACE FUNCTION cachesync.item_redraw(keys text [], versions bigint []) RETURNS void "
        "LANGUAGE sql BEGIN ATOMIC END"
    )


@pytest.mark.parametrize("isolation", ISOLATION_LEVELS)
@pytest.mark.parametrize("insert", INSERTS.values(), ids=INSERTS)
async def test_row_that_reuses_the_key_of_a_later_delete_draws_a_second_version(
    stage: Interleaving, insert: Operation, isolation: str
) -> None:
    await stage.observer.execute("INSERT INTO item VALUES (3, 'old')")
    witness = await play(stage, overtaken(insert, isolation))
    assert stage.commits == 2
    assert witness.faults == []
    assert await stage.observer.fetchval("SELECT note FROM item WHERE id = 1") == "new"
    # In version order: the existing row, its update, the insert's first draw, the delete, the second draw.
    assert await log_of(stage.observer, 1) == ["upsert", "upsert", "upsert", "delete", "upsert"]


@pytest.mark.usefixtures("own_database")
@pytest.mark.parametrize("insert", INSERTS.values(), ids=INSERTS)
async def test_without_the_second_draw_the_witness_finds_the_inversion(
    stage: Interleaving, insert: Operation
) -> None:
    await redraw_nothing(stage.observer)
    await reset(stage)
    witness = await play(stage, overtaken(insert, "READ COMMITTED"))
    assert await log_of(stage.observer, 1) == ["upsert", "upsert", "upsert", "delete"]
    (fault, *_) = witness.faults
    assert fault.startswith("item 1 is at ")
    assert "'delete'" in fault


async def test_version_drawn_during_a_bulk_delete_is_overtaken_too(stage: Interleaving) -> None:
    witness = await play(
        stage,
        [
            (2, "BEGIN"),
            (2, "UPDATE item SET note = 'held' WHERE id = 2"),
            (0, "BEGIN"),
            (0, "DELETE FROM item WHERE id IN (1, 2)"),
            (1, "INSERT INTO item VALUES (1, 'new')"),
            (2, "ROLLBACK"),
            (0, "COMMIT"),
        ],
    )
    assert witness.faults == []
    assert await log_of(stage.observer, 1) == ["upsert", "upsert", "delete", "upsert"]


@pytest.mark.parametrize("isolation", ISOLATION_LEVELS)
@pytest.mark.parametrize(
    "leave", ["DELETE FROM item WHERE note = 'new'", "UPDATE item SET id = 9 WHERE note = 'new'"]
)
async def test_row_in_an_old_snapshot_hides_no_delete(
    stage: Interleaving, isolation: str, leave: str
) -> None:
    witness = await play(
        stage,
        [
            (1, f"BEGIN ISOLATION LEVEL {isolation}"),
            (1, "SELECT FROM item"),
            (0, "DELETE FROM item WHERE id = 1"),
            (1, "INSERT INTO item VALUES (1, 'new')"),
            (1, leave),
            (1, "COMMIT"),
        ],
    )
    assert stage.commits == 1
    assert witness.faults == []
    assert (await log_of(stage.observer, 1))[-1] == "delete"


@pytest.mark.parametrize("isolation", ISOLATION_LEVELS)
async def test_concurrent_updates_of_a_row_get_versions_in_commit_order(
    stage: Interleaving, isolation: str
) -> None:
    update = "UPDATE item SET note = note || cachesync.source() WHERE id = 1"
    begin = f"BEGIN ISOLATION LEVEL {isolation}; SET LOCAL cachesync.source = "
    steps: list[tuple[int, Operation]] = [
        (0, begin + "' first'"),
        (1, begin + "' second'"),
        (0, update),
        (1, update),
    ]
    for step in steps:
        await stage.do(*step)
    assert stage.waits(1)
    witness = await play(stage, [(0, "COMMIT"), (1, "COMMIT")])
    assert witness.faults == []
    serialized = isolation != "READ COMMITTED"
    assert await stage.observer.fetchval("SELECT note FROM item WHERE id = 1") == (
        "old first" if serialized else "old first second"
    )
    assert await sources(stage.observer) == {"postgres", " first"} | (set() if serialized else {" second"})


async def test_rolled_back_changes_are_not_logged(stage: Interleaving) -> None:
    witness = await play(
        stage,
        [
            (0, "BEGIN; SET LOCAL cachesync.source = 'kept'"),
            (0, "INSERT INTO item VALUES (5, 'kept')"),
            (0, "SAVEPOINT here; SET LOCAL cachesync.source = 'undone'"),
            (0, "UPDATE item SET note = 'undone'"),
            (0, "DELETE FROM item WHERE id = 5"),
            (0, "TRUNCATE item CASCADE"),
            (0, "ROLLBACK TO here"),
            (0, "DELETE FROM item WHERE id = 1"),
            (0, "COMMIT"),
            (1, "BEGIN; SET LOCAL cachesync.source = 'undone'"),
            (1, "DELETE FROM item"),
            (1, "ROLLBACK"),
        ],
    )
    assert witness.faults == []
    assert await sources(stage.observer) == {"postgres", "kept"}
    assert await log_of(stage.observer, 5) == ["upsert"]


ALONE: Final = {
    "insert": ("INSERT INTO item VALUES (5, 'new')", {"5": "u"}),
    "copy": (Copy("item", ("id", "note"), ((5, "new"), (6, "new"))), {"5": "u", "6": "u"}),
    "bulk update": ("UPDATE item SET amount = 7", {"1": "u", "2": "u", "3": "u"}),
    "update of no row": ("UPDATE item SET amount = 7 WHERE id = 9", {}),
    "upsert": (
        "INSERT INTO item VALUES (1, 'new'), (5, 'new') ON CONFLICT (id) DO UPDATE SET note = 'upserted'",
        {"1": "u", "5": "u"},
    ),
    "insert of what is there": ("INSERT INTO item VALUES (1, 'new') ON CONFLICT DO NOTHING", {}),
    "merge": (
        """
        MERGE INTO item AS t USING (VALUES (1), (2), (5)) AS s (id) ON t.id = s.id
        WHEN MATCHED AND t.id = 1 THEN DELETE
        WHEN MATCHED THEN UPDATE SET note = 'merged'
        WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'new')
        """,
        {"1": "d", "2": "u", "5": "u"},
    ),
    "delete": ("DELETE FROM item WHERE id = 3", {"3": "d"}),
    "changed key": ("UPDATE item SET id = 9 WHERE id = 3", {"3": "d", "9": "u"}),
    "keys shifted up": (
        "UPDATE item SET id = id + 100",
        {**dict.fromkeys("123", "d"), "101": "u", "102": "u", "103": "u"},
    ),
    "keys shifted along": ("UPDATE item SET id = id - 1", {"0": "u", "1": "u", "2": "u", "3": "d"}),
    "delete and insert of a key": (
        "WITH d AS (DELETE FROM item WHERE id = 3 RETURNING id) INSERT INTO item SELECT id, 'new' FROM d",
        {"3": "u"},
    ),
    "delete and insert of a key by merge": (
        """
        MERGE INTO item AS t USING (VALUES (3, true), (3, false)) AS s (id, there) ON t.id = s.id AND there
        WHEN MATCHED THEN DELETE
        WHEN NOT MATCHED THEN INSERT VALUES (s.id, 'new')
        """,
        {"3": "u"},
    ),
    "delete of a key, and another row moved to it": (
        """
        WITH d AS (DELETE FROM item WHERE id = 3 RETURNING id)
        UPDATE item SET id = d.id FROM d WHERE item.id = 2
        """,
        {"2": "d", "3": "u"},
    ),
    "move from a key, and an insert of it": (
        """
        WITH u AS (UPDATE item SET id = 9 WHERE id = 3 RETURNING 3 AS id)
        INSERT INTO item SELECT id, 'new' FROM u
        """,
        {"3": "u", "9": "u"},
    ),
}


@pytest.mark.parametrize(("statement", "changes"), ALONE.values(), ids=ALONE)
async def test_each_kind_of_write_is_logged_by_key(
    stage: Interleaving, statement: Operation, changes: dict[str, str]
) -> None:
    await stage.observer.execute("DELETE FROM part; INSERT INTO item VALUES (3, 'old')")
    before = await stage.observer.fetchval("SELECT max(version) FROM cachesync.change_log")
    witness = await play(stage, [(0, statement)])
    assert witness.faults == []
    logged = await stage.observer.fetch(
        "SELECT key, left(operation, 1) FROM cachesync.change_log WHERE version > $1 ORDER BY key", before
    )
    assert [tuple(line) for line in logged] == sorted(changes.items())


async def test_cascades_within_and_across_tables_are_logged(stage: Interleaving) -> None:
    await stage.observer.execute("INSERT INTO part VALUES (3, NULL, 2), (4, 2, NULL)")
    witness = await play(stage, [(0, "UPDATE item SET id = 9 WHERE id = 2")])
    assert await log_of(stage.observer, 4, "part") == ["upsert", "upsert"]
    await stage.do(0, "DELETE FROM item WHERE id = 1")
    await witness.look()
    assert witness.faults == []
    # Deleting item 1 deletes part 1, which deletes part 2, which deletes part 3.
    assert [(await log_of(stage.observer, part, "part"))[-1] for part in (1, 2, 3, 4)] == [
        "delete",
        "delete",
        "delete",
        "upsert",
    ]


async def test_truncate_is_logged_for_each_table_that_it_empties(stage: Interleaving) -> None:
    witness = await play(stage, [(0, "TRUNCATE item CASCADE"), (0, "INSERT INTO item VALUES (1, 'new')")])
    assert witness.faults == []
    lines = await stage.observer.fetch(
        "SELECT entity, operation, key FROM cachesync.change_log ORDER BY version DESC LIMIT 3"
    )
    assert [tuple(line) for line in lines] == [
        ("item", "upsert", "1"),
        ("part", "truncate", None),
        ("item", "truncate", None),
    ]


async def test_source_is_the_session_setting_or_the_user(stage: Interleaving) -> None:
    await stage.observer.execute("CREATE ROLE somebody; GRANT ALL ON item TO somebody")
    await play(
        stage,
        [
            (0, "SET cachesync.source = 'billing'; INSERT INTO item VALUES (5, 'new')"),
            (0, "SET cachesync.source = ''; INSERT INTO item VALUES (6, 'new')"),
            (1, "SET SESSION AUTHORIZATION somebody; INSERT INTO item VALUES (7, 'new')"),
        ],
    )
    named = await stage.observer.fetch(
        "SELECT key, source FROM cachesync.change_log WHERE key IN ('5', '6', '7') ORDER BY key"
    )
    assert [tuple(line) for line in named] == [("5", "billing"), ("6", "postgres"), ("7", "somebody")]
    await stage.sessions[1].connection.execute("RESET SESSION AUTHORIZATION")
    await stage.observer.execute("DROP OWNED BY somebody; DROP ROLE somebody")


async def test_writes_in_the_replica_role_are_logged(stage: Interleaving) -> None:
    witness = await play(
        stage,
        [
            (0, "SET session_replication_role = replica"),
            (0, "INSERT INTO item VALUES (5, 'new')"),
            (0, "UPDATE item SET id = 6 WHERE id = 5"),
            (0, "DELETE FROM item WHERE id = 1"),
            (0, "TRUNCATE part"),
        ],
    )
    assert witness.faults == []
    assert await log_of(stage.observer, 6) == ["upsert"]


async def test_version_given_by_a_writer_is_replaced(stage: Interleaving) -> None:
    witness = await play(
        stage,
        [
            (0, "INSERT INTO item (id, note, row_version) VALUES (5, 'new', 1)"),
            (0, "UPDATE item SET row_version = 2 WHERE id = 1"),
            (0, Copy("item", ("id", "note", "row_version"), ((6, "new", 3),))),
        ],
    )
    assert witness.faults == []
    assert await stage.observer.fetchval("SELECT min(row_version) FROM item") > 3


@pytest.mark.usefixtures("own_database")
@pytest.mark.parametrize("isolation", ISOLATION_LEVELS)
async def test_second_draw_passes_a_trigger_that_drops_idle_updates(
    stage: Interleaving, isolation: str
) -> None:
    await stage.observer.execute(OWN_TRIGGERS)
    await reset(stage)
    witness = await play(stage, overtaken(INSERTS["insert"], isolation))
    assert witness.faults == []
    assert (await log_of(stage.observer, 1))[-2:] == ["delete", "upsert"]


@pytest.mark.usefixtures("own_database")
async def test_idle_update_that_a_trigger_drops_draws_no_version(stage: Interleaving) -> None:
    await stage.observer.execute(OWN_TRIGGERS)
    await reset(stage)
    await stage.do(0, "UPDATE item SET note = note")
    assert await log_of(stage.observer, 1) == ["upsert"]


@pytest.mark.usefixtures("own_database")
async def test_key_that_a_trigger_changes_is_logged_as_deleted(stage: Interleaving) -> None:
    await stage.observer.execute(
        "CREATE FUNCTION move() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN NEW.id := NEW.id + 100; RETURN NEW; END';"
        "CREATE TRIGGER move BEFORE UPDATE ON item FOR EACH ROW WHEN (new.amount = 7) EXECUTE FUNCTION move()"
    )
    await reset(stage)
    witness = await play(
        stage,
        [
            (0, "BEGIN"),
            (0, "SAVEPOINT s"),
            (0, "UPDATE item SET amount = 7"),
            (0, "ROLLBACK TO s"),
            (0, "UPDATE item SET amount = 7 WHERE id = 1"),
            (0, "COMMIT"),
        ],
    )
    assert witness.faults == []
    assert await log_of(stage.observer, 1) == ["upsert", "delete"]
    assert await log_of(stage.observer, 2) == ["upsert"]
    assert await log_of(stage.observer, 101) == ["upsert"]


async def test_generated_key_that_changes_is_logged_as_deleted(postgres: Postgres, own_database: str) -> None:
    owner = await asyncpg.connect(postgres.dsn_of(own_database))
    await owner.execute(
        "CREATE TABLE word"
        " (spelling text, word text GENERATED ALWAYS AS (lower(spelling)) STORED PRIMARY KEY)"
    )
    entity = Entity(name="word", table="word", key="word", ttl="1h", absent_ttl="1s", path="/word")
    await install(owner, {**ENTITIES, "word": entity}, Silent())
    await owner.execute("INSERT INTO word VALUES ('Old'), ('Other')")
    await owner.execute("UPDATE word SET spelling = 'New' WHERE word = 'old'")
    await owner.execute("UPDATE word SET spelling = 'OTHER' WHERE word = 'other'")
    assert await log_of(owner, "old", "word") == ["upsert", "delete"]
    assert await log_of(owner, "new", "word") == ["upsert"]
    assert await log_of(owner, "other", "word") == ["upsert", "upsert"]
    # Here, every row that may have another key draws again.
    async with owner.transaction(isolation="repeatable_read"):
        await owner.execute("UPDATE word SET spelling = 'Newer' WHERE word = 'new'")
    assert await log_of(owner, "new", "word") == ["upsert", "delete"]
    assert (await log_of(owner, "newer", "word"))[-1] == "upsert"
    await owner.close()


@pytest.mark.usefixtures("own_database")
async def test_trigger_that_restores_the_old_row_fails_no_write(stage: Interleaving) -> None:
    await stage.observer.execute(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN OLD; END';"
        "CREATE TRIGGER keep BEFORE UPDATE ON item FOR EACH ROW EXECUTE FUNCTION keep()"
    )
    await reset(stage)
    witness = await play(stage, [(0, "UPDATE item SET note = 'new'")])
    assert stage.sessions[0].outcomes[-1][1] == "UPDATE 2"
    assert witness.faults == []


@pytest.mark.usefixtures("own_database")
async def test_insert_whose_second_draw_a_trigger_prevents_fails_and_can_be_retried(
    stage: Interleaving,
) -> None:
    await stage.observer.execute(
        "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER keep BEFORE UPDATE ON item FOR EACH ROW WHEN (new.note = 'new') "
        "EXECUTE FUNCTION keep()"
    )
    await reset(stage)
    witness = await play(stage, overtaken(INSERTS["insert"], "READ COMMITTED"))
    assert (INSERTS["insert"], "SerializationError") in stage.sessions[1].outcomes
    await stage.do(1, INSERTS["insert"])
    await witness.look()
    assert witness.faults == []
    assert (await log_of(stage.observer, 1))[-2:] == ["delete", "upsert"]


@pytest.mark.usefixtures("own_database")
@pytest.mark.parametrize("insert", ["insert", "move"])
async def test_second_draw_fires_the_triggers_of_the_table_with_the_search_path_of_the_session(
    stage: Interleaving, insert: str
) -> None:
    await stage.observer.execute(
        "CREATE TABLE audit (entry text);"
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN INSERT INTO audit VALUES (NEW.note); RETURN NULL; END';"
        "CREATE TRIGGER audit AFTER UPDATE ON item FOR EACH ROW EXECUTE FUNCTION audit()"
    )
    await reset(stage)
    witness = await play(stage, overtaken(INSERTS[insert], "READ COMMITTED"))
    assert stage.commits == 2
    assert witness.faults == []


async def test_payload_does_not_depend_on_the_settings_of_the_session(
    postgres: Postgres, own_database: str
) -> None:
    dsn = postgres.dsn_of(own_database)
    types = {
        "at": ("timestamptz", "'2024-02-03 04:05:06.789+00'"),
        "day": ("date", "'2024-02-03'"),
        "clock": ("timetz", "'04:05:06+02'"),
        "long": ("interval", "'1 year 2 months 3 days 04:05:06'"),
        "third": ("double precision", "1.0 / 3"),
        "small": ("real", "0.1"),
        "bytes": ("bytea", r"'\x00ff5c'"),
        "during": ("tstzrange", "'[2024-02-03 04:05+00, 2024-02-04 04:05+00)'"),
        "days": ("date []", "'{2024-02-03, 2024-02-04}'"),
        "longs": ("interval []", "'{1 day}'"),
        "exact": ("numeric", "12345.67890"),
        "words": ("text", "E'\\u00e9 \\n \"'"),
        "document": ("jsonb", """'{"b": [1, 2.50], "a": null}'"""),
        "verbatim": ("json", """'{ "b": 1,\n"b": 2 }'"""),
        "relation": ("regclass", "'public.item'"),
        "relations": ("regclass []", "'{public.item, public.part}'"),
        "routine": ("regprocedure", "'public.plus(integer, integer)'"),
        "operator": ("regoper", "'public.+@'"),
        "kind": ("regtype", "'public.pair'"),
        "owner": ("regrole", "'postgres'"),
        "home": ("regnamespace", "'public'"),
        "search": ("regconfig", "'public.plain'"),
        "inside": ("public.pair", "ROW('public.item', '1 day')"),
        "insides": ("public.pair []", "ARRAY[ROW('public.item', '1 day')]::public.pair []"),
        "named": ("public.named", "'public.item'"),
        "amount": ("money", "'12.50'"),
        "place": ("point", "'(0.1, 0.2)'"),
        "none": ("text", "NULL"),
    }
    objects = """
        CREATE TYPE pair AS (relation regclass, long interval);
        CREATE DOMAIN named AS regclass;
        CREATE TEXT SEARCH CONFIGURATION plain (COPY = pg_catalog.simple);
        CREATE FUNCTION plus(a int, b int) RETURNS int LANGUAGE sql RETURN a + b;
        CREATE OPERATOR +@ (FUNCTION = plus, LEFTARG = int, RIGHTARG = int);
    """
    owner = await asyncpg.connect(dsn, server_settings=dict(PAYLOAD_SETTINGS))
    definitions = ", ".join(f"{name} {declared}" for name, (declared, _) in types.items())
    await owner.execute(f"{objects} CREATE TABLE wide (id int PRIMARY KEY, {definitions})")
    entity = Entity(name="wide", table="wide", key="id", ttl="1h", absent_ttl="1s", path="/wide")
    await install(owner, {**ENTITIES, "wide": entity}, Silent())
    other = await asyncpg.connect(dsn, server_settings=STRANGE_SETTINGS)
    values = ", ".join(literal for _, literal in types.values())
    for key, connection in ((1, owner), (2, other)):
        await connection.execute(f"SET timezone = 'UTC'; INSERT INTO public.wide VALUES ({key}, {values})")
        await connection.execute("RESET timezone")
        await connection.execute("UPDATE public.wide SET id = id WHERE id = $1", key)
    payloads = await owner.fetch("SELECT payload FROM cachesync.change_log WHERE entity = 'wide'")
    shown = await owner.fetch("SELECT payload FROM cachesync.wide")
    # The search_path and the like of another session, with the settings of a service.
    await other.execute("; ".join(f"SET {name} = '{value}'" for name, value in PAYLOAD_SETTINGS.items()))
    shown += await other.fetch("SELECT payload FROM cachesync.wide")
    texts = {record["payload"].partition(",")[2] for record in (*payloads, *shown)}
    assert len(texts) == 1
    assert '"relation":"public.item","relations":["public.item","public.part"]' in texts.pop()
    assert len(payloads) == 4
    await owner.close()
    await other.close()


async def test_settings_that_concern_no_column_are_not_set_and_change_no_payload(
    postgres: Postgres, own_database: str
) -> None:
    plain = {
        "flag": "true",
        "exact": "12345.67890",
        "words": "E'\\u00e9 \\n \"'",
        "fixed": "'ab'",
        "ident": "'0b1d1b0e-6f0b-4c3c-9a8e-0a4c1f4f1d11'",
        "document": """'{"b": [1, 2.50], "at": "2024-02-03T04:05:06+00"}'""",
        "mood": "'happy'",
        "few": "3",
    }
    other_types = (
        "timestamptz",
        "date",
        "interval",
        "bytea",
        "real",
        "float",
        "int []",
        "pair",
        "dates",
        "bit",
    )
    owner = await asyncpg.connect(postgres.dsn_of(own_database))
    await owner.execute(
        "CREATE TYPE mood AS ENUM ('happy'); CREATE DOMAIN few AS int; CREATE TYPE pair AS (a int, b int);"
        "CREATE DOMAIN dates AS date [];"
        "CREATE TABLE plain (id int PRIMARY KEY, flag bool, exact numeric, words varchar(9), fixed char(4),"
        " ident uuid, document jsonb, mood mood, few few);"
        + "".join(f"CREATE TABLE t{n} (id int PRIMARY KEY, c {kind});" for n, kind in enumerate(other_types))
    )
    entities = {
        name: Entity(name=name, table=name, key="id", ttl="1h", absent_ttl="1s", path=f"/{name}")
        for name in ("plain", *(f"t{n}" for n, _ in enumerate(other_types)))
    }
    await install(owner, {**ENTITIES, **entities}, Silent())
    without_settings = await owner.fetchval(
        "SELECT array_agg(f.proname::text ORDER BY f.proname) FROM pg_proc AS f"
        " WHERE f.proname LIKE '%\\_log\\_insert' AND f.proconfig IS NULL"
    )
    assert without_settings == [
        f"{name}_log_insert" for name in ("cachesync_canary", "item", "part", "plain")
    ]
    other = await asyncpg.connect(postgres.dsn_of(own_database), server_settings=STRANGE_SETTINGS)
    await other.execute(f"INSERT INTO public.plain VALUES (1, {', '.join(plain.values())})")
    await other.execute("UPDATE public.plain SET flag = flag")
    logged = await owner.fetch("SELECT payload FROM cachesync.change_log WHERE entity = 'plain'")
    assert len(logged) == 2
    assert {record[0] for record in logged} == {await owner.fetchval("SELECT payload FROM cachesync.plain")}
    await owner.close()
    await other.close()


async def test_bulk_statement_is_not_slower_after_single_row_statements(stage: Interleaving) -> None:
    # A session caches the plans that it made for the first rows.
    session, fresh = stage.sessions[0].connection, stage.sessions[1].connection
    statements = (
        "INSERT INTO item SELECT i, 'new' FROM generate_series({}, {}) AS i",
        "UPDATE item SET note = note || '.' WHERE id BETWEEN {} AND {}",
        "DELETE FROM item WHERE id BETWEEN {} AND {}",
    )
    for statement in statements:
        for key in range(10, 20):
            await session.execute(statement.format(key, key))
    seconds: dict[str, float] = {}
    for name, connection, first in (("after", session, 100_000), ("fresh", fresh, 200_000)):
        began = time.perf_counter()
        for statement in statements:
            await connection.execute(statement.format(first, first + 20_000))
        seconds[name] = time.perf_counter() - began
    assert seconds["after"] < 4 * seconds["fresh"]


async def test_bulk_change_of_keys_takes_time_in_proportion_to_its_rows(stage: Interleaving) -> None:
    session = stage.sessions[0].connection
    seconds = []
    for rows in (2_000, 20_000):
        await session.execute(
            f"INSERT INTO item SELECT {rows} + i, 'new' FROM generate_series(1, {rows}) AS i"
        )
        began = time.perf_counter()
        await session.execute(f"UPDATE item SET id = -id WHERE id > {rows}")
        seconds.append(time.perf_counter() - began)
    # Ten times the rows; quadratic time would be a hundred times as long.
    assert seconds[1] < 40 * seconds[0]


@pytest.mark.parametrize(("rows", "tables"), [(100, ["change_log"]), (20_000, ["change_log", "item"])])
async def test_logging_a_row_scans_neither_the_log_nor_the_table(
    stage: Interleaving, rows: int, tables: list[str]
) -> None:
    session = stage.sessions[0].connection
    scans = "SELECT relname, seq_scan FROM pg_stat_xact_all_tables WHERE relname = ANY($1) ORDER BY relname"
    await session.execute(f"INSERT INTO item SELECT i, 'new' FROM generate_series(10, {rows}) AS i")
    await session.execute("ANALYZE item, cachesync.change_log")
    # The best plan for this one is a full scan: it deletes many rows, or the tables are small.
    await session.execute(f"DELETE FROM item WHERE id > {rows} / 2")
    await session.execute("BEGIN")
    before = await session.fetch(scans, tables)
    for key in range(10, 20):
        await session.execute(f"DELETE FROM item WHERE id = {key}")
        await session.fetchval("SELECT cachesync.latest_version('item', $1)", str(key))
        await session.execute(f"UPDATE item SET id = -{key} WHERE id = 10 + {key}")
        # Draws another version in the meantime.
        await session.execute(
            f"WITH n AS (INSERT INTO item VALUES ({key}, 'new')) SELECT nextval('cachesync.row_version')"
        )
    assert await session.fetch(scans, tables) == before
    await session.execute("COMMIT")
