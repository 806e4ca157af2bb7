"""The registry compared with the catalog: what can cost a capture or changes a payload is found."""

from __future__ import annotations

import re
import secrets
import subprocess
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from cachesync.entity import CANARY, Entity
from cachesync.errors import DatabaseError, InstallError, NotInstalledError
from cachesync.install.installer import install, uninstall
from cachesync.postgres.registry import Registration, read_registry
from cachesync.postgres.statements import statement
from local.postgres import programs
from local.silent import Silent
from tests.integration.conftest import copied_database, installed_database

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import psycopg

    from local.postgres import Postgres

TABLES = """
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE DOMAIN moods AS mood [];
CREATE DOMAIN word AS text;
CREATE TYPE point3 AS (x int, y int, felt moods);
CREATE TYPE span AS RANGE (SUBTYPE = mood);
CREATE TABLE thing (
    id int PRIMARY KEY, name text, other text, word word, mood mood, many mood [], domain moods, place point3,
    places point3 [], span span, twice int GENERATED ALWAYS AS (id * 2) STORED
);
CREATE TABLE parent (id int NOT NULL, name text) PARTITION BY LIST (id);
"""
THING = {
    "thing": Entity.model_validate(
        {"name": "thing", "table": "thing", "key": "id", "ttl": "1h", "absent_ttl": "1m", "path": "/things"}
    )
}


@pytest.fixture(scope="module")
def installed(postgres: Postgres) -> Iterator[str]:
    """The name of a database with the table and the installed database side, to copy."""
    with installed_database(postgres, TABLES, THING) as name:
        yield name


@pytest.fixture
def database(postgres: Postgres, administrator: psycopg.Connection, installed: str) -> Iterator[str]:
    """The DSN of a copy of it."""
    with copied_database(postgres, administrator, installed) as dsn:
        yield dsn


@pytest.fixture
async def owner(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


async def registered(connection: asyncpg.Connection) -> Registration:
    return (await read_registry(connection))["thing"]


async def test_installed_entity_has_no_findings(owner: asyncpg.Connection) -> None:
    thing = await registered(owner)
    assert thing.findings == ()
    assert thing.problem is None


async def test_what_all_entities_share_is_looked_at_once(owner: asyncpg.Connection) -> None:
    """With hundreds of entities, the checks of all processes would keep PostgreSQL busy."""
    await owner.execute("CREATE TABLE other (id int PRIMARY KEY)")
    other = THING["thing"].model_copy(update={"name": "other", "table": "other", "path": "/others"})
    await install(owner, THING | {"other": other}, Silent())
    async with owner.transaction():
        await owner.execute("SET LOCAL track_functions = 'all'")
        assert {*await read_registry(owner)} == {"thing", "other", CANARY.name}
        calls = "SELECT pg_stat_get_xact_function_calls('cachesync.shared_objects()'::regprocedure)"
        assert await owner.fetchval(calls) == 1


async def test_privileges_that_return_while_they_are_compared_are_not_reported(
    owner: asyncpg.Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As if `install` had replaced them: the catalog's functions do not use the statement's snapshot."""
    administrator = await asyncpg.connect(database)
    fetch, denied = asyncpg.Connection.fetch, statement("postgres/denied")
    looks: list[Any] = []

    async def fetch_between(connection: asyncpg.Connection, query: str, *arguments: Any) -> Any:
        if query != denied:
            return await fetch(connection, query, *arguments)
        if not looks:
            await administrator.execute("REVOKE DELETE ON thing FROM cachesync_service")
        looks.append(await fetch(connection, query, *arguments))
        await administrator.execute("GRANT DELETE ON thing TO cachesync_service")
        return looks[-1]

    await owner.execute("SET ROLE cachesync_service")
    monkeypatch.setattr(asyncpg.Connection, "fetch", fetch_between)
    registry = await read_registry(owner, of_service=True)
    assert [bool(look) for look in looks] == [True, False]
    assert registry["thing"].problem is None
    await administrator.close()


CHANGES = {
    "DROP TRIGGER cachesync_log_update ON thing": "trigger cachesync_log_update is missing",
    "DROP TRIGGER zzz_cachesync_version ON thing": "trigger zzz_cachesync_version is missing",
    "ALTER TABLE thing DISABLE TRIGGER ALL": "and 5 more is disabled",
    "ALTER TABLE thing DISABLE TRIGGER cachesync_log_delete": "trigger cachesync_log_delete is disabled",
    "ALTER TABLE thing DISABLE TRIGGER ALL; ALTER TABLE thing ENABLE TRIGGER ALL": "enabled without ALWAYS",
    "ALTER TABLE thing ENABLE REPLICA TRIGGER cachesync_log_insert": "fires only if session_replication_role",
    """
    CREATE OR REPLACE TRIGGER cachesync_log_update AFTER UPDATE ON thing REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT WHEN (false) EXECUTE FUNCTION cachesync.thing_log_update();
    ALTER TABLE thing ENABLE ALWAYS TRIGGER cachesync_log_update
    """: "trigger cachesync_log_update was changed",
    """
    CREATE OR REPLACE FUNCTION cachesync.thing_log_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER
    AS 'BEGIN RETURN NULL; END'
    """: "function thing_log_update was changed",
    "ALTER FUNCTION cachesync.thing_log_update() SECURITY INVOKER": "function thing_log_update was changed",
    "ALTER FUNCTION cachesync.thing_log_update() RESET ALL": "function thing_log_update was changed",
    "DROP FUNCTION cachesync.thing_redraw(text [], bigint [])": "function thing_redraw is missing",
    """
    CREATE OR REPLACE FUNCTION cachesync.draw_version() RETURNS trigger LANGUAGE plpgsql
    AS 'BEGIN RETURN NEW; END'
    """: "function draw_version was changed",
    "ALTER SEQUENCE cachesync.row_version CACHE 10": "sequence row_version was changed",
    "ALTER SEQUENCE cachesync.row_version CYCLE": "sequence row_version was changed",
    "ALTER SEQUENCE cachesync.row_version INCREMENT -1": "sequence row_version was changed",
    "ALTER SEQUENCE cachesync.row_version SET UNLOGGED": "sequence row_version was changed",
    "ALTER TABLE cachesync.change_log SET UNLOGGED": "table change_log was changed",
    "CREATE RULE lost AS ON INSERT TO cachesync.change_log DO INSTEAD NOTHING": "change_log was changed",
    """
    CREATE FUNCTION lose() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    CREATE TRIGGER lost BEFORE INSERT ON cachesync.change_log FOR EACH ROW EXECUTE FUNCTION lose()
    """: "table change_log was changed",
    "ALTER TRIGGER cachesync_log_update ON thing RENAME TO other": (
        "trigger cachesync_log_update is missing.*trigger other was added"
    ),
    """
    CREATE TRIGGER twice AFTER INSERT ON thing REFERENCING NEW TABLE AS new_rows
    FOR EACH STATEMENT EXECUTE FUNCTION cachesync.thing_log_insert()
    """: "trigger twice was added",
    "CREATE OR REPLACE FUNCTION cachesync.announce_change() RETURNS boolean LANGUAGE sql RETURN false": (
        "function announce_change was changed"
    ),
    """
    CREATE FUNCTION move() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN NEW.id := NEW.id + 1; RETURN NEW; END';
    CREATE TRIGGER zzzz BEFORE UPDATE OF name ON thing FOR EACH ROW EXECUTE FUNCTION move()
    """: "its trigger 'zzzz' fires after those of db-cache-sync",
    "ALTER TABLE thing RENAME TO old; CREATE TABLE thing (LIKE old INCLUDING ALL)": (
        "another table is now named public.thing, and the installed one public.old"
    ),
    "ALTER TABLE thing RENAME TO old": "table public.thing was renamed to public.old",
    "CREATE SCHEMA app; ALTER TABLE thing SET SCHEMA app": "table public.thing was renamed to app.thing",
    "DROP TABLE thing CASCADE": "table public.thing was dropped",
    "DROP TABLE thing CASCADE; CREATE TABLE thing (id int PRIMARY KEY)": "another table has its name",
    """
    CREATE TABLE whole (LIKE thing INCLUDING GENERATED) PARTITION BY LIST (id);
    ALTER TABLE whole ATTACH PARTITION thing FOR VALUES IN (1)
    """: "table public.thing: it became a partition",
    "CREATE TABLE child () INHERITS (thing)": "it has inheritance",
    "CREATE TABLE above (id int NOT NULL); ALTER TABLE thing INHERIT above": "has inheritance",
    "ALTER TABLE thing SET UNLOGGED": "it is unlogged",
    "ALTER TABLE thing ENABLE ROW LEVEL SECURITY": "row security was enabled",
    "ALTER TABLE thing FORCE ROW LEVEL SECURITY": "row security also applies to its owner",
    "ALTER TABLE thing DROP CONSTRAINT thing_pkey": "it has no primary key",
    "ALTER TABLE thing DROP CONSTRAINT thing_pkey, ADD PRIMARY KEY (id) DEFERRABLE": "is DEFERRABLE",
    "ALTER TABLE thing DROP CONSTRAINT thing_pkey, ADD PRIMARY KEY (id, name)": r"key is \(id, name\)",
    "ALTER TABLE thing DROP COLUMN row_version CASCADE": "column row_version is missing",
    "ALTER TABLE thing ALTER COLUMN row_version SET DEFAULT 7": "column row_version was changed",
    "ALTER TABLE thing ALTER COLUMN row_version DROP NOT NULL": "column row_version was changed",
    "ALTER TABLE thing DROP COLUMN name CASCADE": "column 'name' no longer exists",
    "ALTER TABLE thing RENAME name TO renamed": "column 'name' no longer exists",
    """
    ALTER TABLE thing RENAME name TO x; ALTER TABLE thing RENAME other TO name;
    ALTER TABLE thing RENAME x TO other
    """: "its columns exchanged their names",
    "DROP VIEW cachesync.thing; ALTER TABLE thing ALTER name TYPE varchar(9)": "column 'name' has changed",
    "DROP VIEW cachesync.thing": "view thing is missing",
    "ALTER TYPE mood RENAME VALUE 'sad' TO 'gloomy'": "column 'mood' has changed.*'span' has changed",
    """
    ALTER TYPE mood RENAME VALUE 'sad' TO 'x'; ALTER TYPE mood RENAME VALUE 'happy' TO 'sad';
    ALTER TYPE mood RENAME VALUE 'x' TO 'happy'
    """: "the type of column 'mood' has changed",
    "ALTER TYPE mood RENAME TO feeling": "the type of column 'mood' has changed",
    "ALTER TYPE point3 RENAME ATTRIBUTE x TO z": "column 'place' has changed.*'places' has changed",
    "ALTER TYPE point3 ADD ATTRIBUTE z int": "the type of column 'place' has changed",
    "CREATE FUNCTION as_json(mood) RETURNS json LANGUAGE sql AS 'SELECT ''1''::json';"
    "CREATE CAST (mood AS json) WITH FUNCTION as_json(mood)": "the type of column 'mood' has changed",
    "ALTER TABLE thing ALTER twice DROP EXPRESSION": "the generated column 'twice' has changed",
}


# By finding: what must precede the installation that mends it.
REPAIRS = {
    "another table is now named": "DROP TABLE thing; ALTER TABLE old RENAME TO thing",
    "renamed to public.old": "ALTER TABLE old RENAME TO thing",
    "renamed to app.thing": "ALTER TABLE app.thing SET SCHEMA public",
    "thing was dropped": "CREATE TABLE IF NOT EXISTS thing (id int PRIMARY KEY)",
    "writes to a part of it": (
        "DROP TABLE IF EXISTS child; ALTER TABLE IF EXISTS whole DETACH PARTITION thing;"
        "DO $$ BEGIN ALTER TABLE thing NO INHERIT above; EXCEPTION WHEN OTHERS THEN NULL; END $$"
    ),
    "it is unlogged": "ALTER TABLE thing SET LOGGED",
    "its trigger 'zzzz'": "ALTER TRIGGER zzzz ON thing RENAME TO move",
    "the type of column 'mood' has changed": "DROP CAST IF EXISTS (mood AS json)",
    "row security was enabled": "ALTER TABLE thing DISABLE ROW LEVEL SECURITY",
    "row security also": "ALTER TABLE thing NO FORCE ROW LEVEL SECURITY",
    "it has no primary key": "ALTER TABLE thing ADD PRIMARY KEY (id)",
    "it must be the declared key": (
        "ALTER TABLE thing DROP CONSTRAINT thing_pkey, ADD PRIMARY KEY (id), ALTER name DROP NOT NULL"
    ),
    "DEFERRABLE": "ALTER TABLE thing DROP CONSTRAINT thing_pkey, ADD PRIMARY KEY (id)",
    "table change_log": """
    DROP TRIGGER IF EXISTS lost ON cachesync.change_log; DROP RULE IF EXISTS lost ON cachesync.change_log
    """,
    "column row_version was changed": (
        "ALTER TABLE thing ALTER row_version SET NOT NULL, ALTER row_version SET DEFAULT 0"
    ),
}


@pytest.mark.parametrize("change", CHANGES)
async def test_every_change_that_may_cost_a_capture_is_found_and_an_installation_makes_caches_start_over(
    owner: asyncpg.Connection, change: str
) -> None:
    before = await registered(owner)
    await owner.execute(change)
    damaged = await registered(owner)
    findings = "; ".join(damaged.findings)
    assert re.search(CHANGES[change], findings), findings
    for finding, repair in REPAIRS.items():
        if finding in findings:
            await owner.execute(repair)
    # The repair does not cover what happened before it. The relay has noticed that.
    await owner.execute("UPDATE cachesync.entity SET lost_at = now()")
    assert (await registered(owner)).findings
    await install(owner, THING, Silent())
    mended = await registered(owner)
    assert mended.findings == ()
    assert mended.fingerprint != before.fingerprint
    operations = "SELECT operation FROM cachesync.change_log WHERE entity = 'thing' ORDER BY version"
    assert [record[0] for record in await owner.fetch(operations)] == ["truncate"]
    await owner.execute("INSERT INTO thing (id) VALUES (1); UPDATE thing SET id = id")
    assert [record[0] for record in await owner.fetch(operations)] == ["truncate", "upsert", "upsert"]


@pytest.mark.parametrize(
    "harmless",
    [
        "ALTER TYPE mood ADD VALUE 'calm' BEFORE 'happy'",
        "ALTER TABLE thing ADD COLUMN added int",
        "ALTER TABLE thing ALTER COLUMN name SET DEFAULT 'x', ALTER COLUMN name SET NOT NULL",
        "CREATE UNIQUE INDEX ON thing (name)",
        """
        CREATE TRIGGER mine BEFORE UPDATE ON thing
        FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger()
        """,
        "CLUSTER thing USING thing_pkey",
        "VACUUM FULL thing",
        "REINDEX TABLE thing",
        "ANALYZE thing",
    ],
)
async def test_changes_that_cost_no_capture_are_no_findings(owner: asyncpg.Connection, harmless: str) -> None:
    await owner.execute(harmless)
    assert (await registered(owner)).findings == ()


async def test_details_change_with_what_decides_which_values_are_valid(owner: asyncpg.Connection) -> None:
    seen = {(await registered(owner)).details}
    for number, change in enumerate(
        (
            "ALTER TYPE mood ADD VALUE 'calm'",
            "ALTER TABLE thing ALTER COLUMN name SET NOT NULL",
            "ALTER TABLE thing ALTER COLUMN name SET DEFAULT 'x'",
            "ALTER DOMAIN word SET NOT NULL",
            "ALTER TABLE thing ADD CONSTRAINT short CHECK (length(name) < 9)",
            "CREATE UNIQUE INDEX ON thing (name)",
        ),
        2,
    ):
        await owner.execute(change)
        seen.add((await registered(owner)).details)
        assert len(seen) == number, change


def dump(dsn: str) -> str:
    command = [str(programs() / "pg_dump"), dsn]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


async def test_dumped_and_restored_registry_has_no_findings(
    owner: asyncpg.Connection, postgres: Postgres, database: str
) -> None:
    """Dropped columns make the numbers of the restored columns different."""
    await owner.execute("ALTER TABLE thing ADD COLUMN gone int, ADD COLUMN last int")
    await install(owner, {"thing": THING["thing"].model_copy(update={"columns": ("id", "last")})}, Silent())
    await owner.execute("ALTER TABLE thing DROP COLUMN gone")
    dumped = dump(database)
    name = f"registry_{secrets.token_hex(4)}"
    restored = await asyncpg.connect(postgres.create_database(name))
    postgres.sql(dumped, name)
    assert (await registered(restored)).findings == ()
    await restored.close()
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


async def test_rows_that_policies_hide_from_the_services_are_found(owner: asyncpg.Connection) -> None:
    await owner.execute("ALTER TABLE thing ENABLE ROW LEVEL SECURITY")
    await install(owner, {"thing": THING["thing"].model_copy(update={"row_security": "bypass"})}, Silent())
    assert (await registered(owner)).findings == ()
    await owner.execute("CREATE POLICY mine ON thing AS RESTRICTIVE USING (false)")
    assert (await registered(owner)).findings == ("policy mine can hide rows from the services",)
    await owner.execute("DROP POLICY mine ON thing; DROP POLICY cachesync_bypass ON thing")
    assert (await registered(owner)).findings == ("policy cachesync_bypass is missing",)


async def test_log_that_can_lose_lines_is_not_installed_over(owner: asyncpg.Connection) -> None:
    await owner.execute("CREATE RULE lost AS ON INSERT TO cachesync.change_log DO INSTEAD NOTHING")
    with pytest.raises(DatabaseError, match=r"rule lost of .* can discard changes; drop it"):
        await install(owner, THING, Silent())
    assert (await registered(owner)).findings


async def test_owner_without_privileges_is_found(owner: asyncpg.Connection) -> None:
    role = f"role_{secrets.token_hex(4)}"
    await owner.execute(f"CREATE ROLE {role}; ALTER FUNCTION cachesync.thing_log_delete() OWNER TO {role}")
    assert "function thing_log_delete belongs to a role without" in str((await registered(owner)).problem)
    await owner.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


async def test_swapped_table_is_mended_as_its_finding_says(owner: asyncpg.Connection) -> None:
    await owner.execute("ALTER TABLE thing RENAME TO old; CREATE TABLE thing (LIKE old INCLUDING ALL)")
    assert "run `cachesync uninstall thing` first; run `cachesync install`" in str(
        (await registered(owner)).problem
    )
    with pytest.raises(InstallError, match="run `cachesync uninstall thing` first"):
        await install(owner, THING, Silent())
    await uninstall(owner, ["thing"])
    await install(owner, THING, Silent())
    assert (await registered(owner)).findings == ()


async def test_registry_of_an_earlier_version_is_a_clear_error(owner: asyncpg.Connection) -> None:
    await owner.execute("ALTER TABLE cachesync.entity DROP COLUMN relation")
    with pytest.raises(NotInstalledError, match="earlier version; run `cachesync install`"):
        await read_registry(owner)
    await owner.execute("DROP SCHEMA cachesync CASCADE")
    with pytest.raises(NotInstalledError, match="no schema 'cachesync'; run `cachesync install`"):
        await read_registry(owner)
