"""Nothing that a writer creates or sets runs with the privileges of another user."""

from __future__ import annotations

import asyncio
import re
import secrets
from typing import TYPE_CHECKING, Final

import asyncpg
import pytest

from cachesync.entity import Entity
from cachesync.install.installer import install
from local.postgres import address
from local.silent import Silent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.postgres import Postgres

ENTITIES: Final = {
    name: Entity.model_validate(
        {"name": name, "table": name, "key": "id", "ttl": "1h", "absent_ttl": "1s", "path": f"/{name}"}
    )
    for name in ("item", "note")
} | {
    "pair": Entity.model_validate(
        {
            "name": "pair",
            "table": "pair",
            "key": ["word", "amount", "day", "at", "code"],
            "ttl": "1h",
            "absent_ttl": "1s",
            "path": "/pair",
        }
    ),
    "visit": Entity.model_validate(
        {
            "name": "visit",
            "table": "visit",
            "key": ["word", "day"],
            "ttl": "1h",
            "absent_ttl": "1s",
            "path": "/visit",
        }
    ),
}
TABLES: Final = """
    CREATE TABLE item (id text PRIMARY KEY, note text);
    CREATE TABLE note (
        id uuid PRIMARY KEY DEFAULT gen_random_uuid(), item_id text REFERENCES item ON DELETE CASCADE
    );
    CREATE TABLE pair (
        word text, amount numeric, day date, at timestamptz, code char(3), note text,
        PRIMARY KEY (word, amount, day, at, code)
    );
    CREATE TABLE visit (word text, day date, note text, PRIMARY KEY (word, day)) PARTITION BY RANGE (day);
    CREATE TABLE visit_past PARTITION OF visit FOR VALUES FROM (MINVALUE) TO ('2026-01-01');
    CREATE TABLE visit_rest PARTITION OF visit DEFAULT;
    CREATE TABLE audit (entry text);
"""
FINE: Final = """
    CREATE FUNCTION fine(note text) RETURNS boolean LANGUAGE plpgsql SET search_path = public AS $$
    DECLARE
        copy text := note;
    BEGIN
        RETURN copy IS NOT NULL;
    END
    $$
"""
# What the owner of a table can have attached to it, with each way in which a function finds names.
OWN_CODE: Final = {
    "nothing": "",
    **{
        f"{kind} with {path or 'the search_path of the writer'}": f"""
        CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql {path} AS $$
        DECLARE
            entry text := 'changed';
        BEGIN
            INSERT INTO public.audit VALUES (entry);
            RETURN NULL;
        END
        $$;
        CREATE {kind} EXECUTE FUNCTION audit();
        """
        for kind in (
            "TRIGGER audit AFTER UPDATE ON item FOR EACH ROW",
            "CONSTRAINT TRIGGER audit AFTER UPDATE ON item DEFERRABLE INITIALLY DEFERRED FOR EACH ROW",
        )
        for path in ("", "SET search_path = public", "SET search_path = ''")
    },
    "rule": "CREATE RULE audit AS ON UPDATE TO item DO ALSO INSERT INTO audit VALUES (NEW.note);",
    "check": f"{FINE}; ALTER TABLE item ADD CHECK (fine(note));",
    "domain of a generated column": f"""
        {FINE};
        CREATE DOMAIN title AS text CHECK (fine(value));
        ALTER TABLE item ADD COLUMN title title GENERATED ALWAYS AS (note) STORED;
    """,
    "index of a range": """
        CREATE FUNCTION distance(a integer, b integer) RETURNS double precision
        LANGUAGE plpgsql IMMUTABLE SET search_path = public AS $$
        DECLARE
            copy text := 'x';
        BEGIN
            RETURN a - b;
        END
        $$;
        CREATE TYPE span AS RANGE (subtype = integer, subtype_diff = distance);
        ALTER TABLE item ADD COLUMN span span;
        INSERT INTO item (id, span) SELECT g, span(g, g + 9) FROM generate_series(1, 999) AS g;
        CREATE INDEX ON item USING gist (span);
    """,
}
# The names that the library's functions use: tables and aliases, types, functions and operators.
RELATIONS: Final = (
    *(
        "entity",
        "change_log",
        "item",
        "note",
        "pair",
        "visit",
        "new_rows",
        "old_rows",
        "n",
        "o",
        "l",
        "t",
        "u",
        "p",
    ),
    *("pg_class", "pg_depend", "pg_trigger", "pg_proc", "pg_rewrite", "pg_constraint", "pg_index"),
    *("pg_attrdef", "pg_inherits"),
)
TYPES: Final = """
    SELECT t.typname FROM pg_catalog.pg_type AS t
    WHERE
        t.typnamespace = 'pg_catalog'::pg_catalog.regnamespace AND t.typtype = 'b' AND t.typcategory <> 'A'
        AND t.typname !~ '^pg_'
"""
FUNCTIONS: Final = """
    WITH library AS MATERIALIZED (
        SELECT string_agg(pg_get_functiondef(f.oid), ' ') AS source
        FROM pg_proc AS f WHERE f.pronamespace = 'cachesync'::regnamespace
    )
    SELECT
        f.proname AS name,
        pg_get_function_identity_arguments(f.oid) AS arguments,
        pg_get_function_result(f.oid) AS result
    FROM pg_proc AS f
    CROSS JOIN library AS l
    WHERE
        f.pronamespace = 'pg_catalog'::regnamespace AND f.prokind IN ('f', 'a') AND NOT f.proretset
        AND (pg_get_function_identity_arguments(f.oid), pg_get_function_result(f.oid))::text
        !~ 'internal|any|VARIADIC|ORDER BY|trigger|cstring|TABLE|OUT|void'
        AND strpos(l.source, f.proname || '(') > 0
"""
OPERATORS: Final = """
    SELECT o.oprname AS name, format_type(o.oprleft, NULL) AS type, format_type(o.oprresult, NULL) AS result
    FROM pg_operator AS o
    WHERE
        o.oprname IN ('=', '<>', '<', '<=', '>', '>=', '+', '-', '||', '~') AND o.oprleft = o.oprright
        AND o.oprleft::regtype::text
        IN ('text', 'bigint', 'integer', 'uuid', 'name', 'oid', 'interval', 'text[]')
"""

# The functions that run with the privileges of the owner, including the one that only the others call.
OF_THE_OWNER: Final = """
    FROM pg_proc AS f
    WHERE
        f.pronamespace = 'cachesync'::regnamespace
        AND (f.prosecdef OR f.proname = 'log_upserts')
"""


@pytest.fixture
async def owner(postgres: Postgres) -> AsyncIterator[asyncpg.Connection]:
    """A connection of a superuser to a new database."""
    name = f"definer_{secrets.token_hex(4)}"
    connection = await asyncpg.connect(postgres.create_database(name), statement_cache_size=0)
    yield connection
    await connection.close()
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


@pytest.fixture
async def attacker(owner: asyncpg.Connection, postgres: Postgres) -> AsyncIterator[asyncpg.Connection]:
    """A login that may create objects in the schema `trap`, in which every function notices who runs it."""
    role = f"attacker_{secrets.token_hex(4)}"
    await owner.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'x'; ALTER ROLE {role} SET track_functions = 'all';"
        f"CREATE SCHEMA trap AUTHORIZATION {role}"
    )
    database = await owner.fetchval("SELECT current_database()")
    connection = await asyncpg.connect(
        address(postgres.dsn, database=database, user=role, password="x"), statement_cache_size=0
    )
    await connection.execute(
        f"""
        CREATE FUNCTION trap.reached() RETURNS boolean LANGUAGE plpgsql AS $$
        BEGIN
            IF current_user OPERATOR(pg_catalog.<>) '{role}' THEN
                RAISE 'the code of {role} ran as %', current_user;
            END IF;
            RETURN true;
        END
        $$
        """
    )
    yield connection
    await connection.close()
    await owner.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


async def shadow(attacker: asyncpg.Connection, owner: asyncpg.Connection) -> None:
    """Create an object with each of the names, and put the schemas of these objects first."""
    for (name,) in await attacker.fetch(TYPES):
        await attacker.execute(
            f'CREATE DOMAIN pg_temp."{name}" AS pg_catalog."{name}" CHECK (trap.reached());'
            f'CREATE DOMAIN trap."{name}" AS pg_catalog."{name}" CHECK (trap.reached())'
        )
    for name in RELATIONS:
        source = f"pg_catalog.{name}" if name.startswith("pg_") else "pg_catalog.pg_class"
        for schema in ("pg_temp", "trap"):
            await attacker.execute(
                f"CREATE VIEW {schema}.{name} AS SELECT * FROM {source} WHERE trap.reached()"
            )
    for name, arguments, result in await owner.fetch(FUNCTIONS):
        await attacker.execute(
            f'CREATE FUNCTION trap."{name}" ({arguments}) RETURNS {result} LANGUAGE plpgsql AS '
            "'BEGIN PERFORM trap.reached(); RETURN NULL; END'"
        )
    for number, (name, operand, result) in enumerate(await owner.fetch(OPERATORS)):
        await attacker.execute(
            f"CREATE FUNCTION trap.o{number} ({operand}, {operand}) RETURNS {result} LANGUAGE plpgsql AS "
            "'BEGIN PERFORM trap.reached(); RETURN NULL; END';"
            f"CREATE OPERATOR trap.{name}"
            f" (FUNCTION = trap.o{number}, LEFTARG = {operand}, RIGHTARG = {operand})"
        )
    await attacker.execute("SET search_path = pg_temp, trap, pg_catalog, public")


@pytest.mark.parametrize("own_code", OWN_CODE.values(), ids=OWN_CODE)
async def test_no_definer_function_runs_code_of_a_writer_as_its_owner(
    owner: asyncpg.Connection, attacker: asyncpg.Connection, own_code: str
) -> None:
    await owner.execute(TABLES)
    await install(owner, ENTITIES, Silent())
    role = await attacker.fetchval("SELECT session_user")
    await owner.execute(
        f"INSERT INTO item VALUES ('a', 'old'), ('b', 'old'); {own_code}"
        f"GRANT cachesync_service, cachesync_worker TO {role};"
        f"GRANT TRUNCATE ON item, note, pair, visit TO {role}; GRANT INSERT ON audit TO {role}"
    )
    await shadow(attacker, owner)
    for level in ("READ COMMITTED", "REPEATABLE READ"):
        await attacker.execute(
            f"BEGIN ISOLATION LEVEL {level}; SELECT pg_catalog.set_config('cachesync.moved', 'on', true);"
            "UPDATE public.item SET note = 'new'"
        )
        # Others draw versions, so that the next statement must draw again.
        await owner.execute("INSERT INTO note DEFAULT VALUES")
        await attacker.execute(
            "INSERT INTO public.item VALUES ('c', 'new'); INSERT INTO public.note DEFAULT VALUES;"
            "INSERT INTO public.item SELECT pg_catalog.format('bulk %s', i), 'new'"
            " FROM pg_catalog.generate_series(1, 250) AS i;"
            "DELETE FROM public.item WHERE pg_catalog.starts_with(id, 'bulk');"
            "INSERT INTO public.pair VALUES ('a/', '1.0', '2026-01-01', '2026-01-01', 'c');"
            "INSERT INTO public.visit VALUES ('a/', '2025-01-01')"
        )
        await owner.execute("INSERT INTO note DEFAULT VALUES")
        await attacker.execute(
            "UPDATE public.item SET id = 'd' WHERE id OPERATOR(pg_catalog.=) 'c';"
            "UPDATE public.note SET id = pg_catalog.gen_random_uuid();"
            "UPDATE public.pair SET word = '~'; UPDATE public.pair SET note = 'new'; DELETE FROM public.pair;"
            "UPDATE public.visit SET day = '2026-01-01'; UPDATE public.visit SET note = 'new';"
            "DELETE FROM public.visit; SELECT cachesync.follow_partitions('visit');"
            "SELECT cachesync.latest_version('item', 'c'); SELECT cachesync.mark_published('{1}');"
            "SELECT cachesync.unpublish('{1}');"
            "SELECT cachesync.transaction_changes(pg_catalog.pg_current_xact_id(), '-infinity', true, 9, 9);"
            "SELECT cachesync.final_changes(10, 1000);"
            "DELETE FROM public.item WHERE id OPERATOR(pg_catalog.=) 'd'; DELETE FROM public.note; COMMIT"
        )
    await attacker.execute("TRUNCATE public.item, public.note, public.pair, public.visit")
    assert await owner.fetchval("SELECT count(*) FROM cachesync.change_log WHERE key = 'd'") >= 4
    if attacker.get_server_version().major < 15:
        return  # PostgreSQL 14 cannot be told to publish its statistics.
    await attacker.execute("SELECT pg_catalog.pg_stat_force_next_flush()")
    await attacker.execute("BEGIN; COMMIT")
    not_run = await owner.fetchval(
        f"SELECT array_agg(f.proname ORDER BY f.proname) {OF_THE_OWNER}"
        # Only the background work writes the table of the live check.
        " AND NOT starts_with(f.proname, 'cachesync_canary')"
        " AND NOT EXISTS (SELECT FROM pg_stat_user_functions AS s WHERE s.funcid = f.oid AND s.calls > 0)"
    )
    assert not_run is None


async def insert_while_another_draws(writer: asyncpg.Connection, owner: asyncpg.Connection) -> None:
    """Insert two rows in an old snapshot; the other session draws a version after the first row."""
    await owner.execute("SELECT pg_advisory_lock(1)")
    await writer.execute("BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT 1")
    inserting = asyncio.create_task(
        writer.execute(
            "INSERT INTO item SELECT g, CASE g WHEN 'b' THEN pg_advisory_xact_lock(1)::text END"
            " FROM unnest('{a, b}'::text []) AS g"
        )
    )
    waiting = "SELECT cardinality(pg_blocking_pids($1)) > 0"
    async with asyncio.timeout(30):
        while not await owner.fetchval(waiting, writer.get_server_pid()):
            await asyncio.sleep(0.01)
    await owner.execute("INSERT INTO note DEFAULT VALUES; SELECT pg_advisory_unlock(1)")
    try:
        await inserting
    except asyncpg.PostgresError:
        await writer.execute("ROLLBACK")
        raise
    await writer.execute("COMMIT")


def unqualified(source: str) -> list[str]:
    """Return the operators, types and functions in the body of a PL/pgSQL function that have no schema."""
    code = re.sub(r"--[^\n]*|'(?:[^']|'')*'", "", source)
    declared = "".join(re.findall(r"\bDECLARE\b(.*?)\bBEGIN\b", code, re.DOTALL))
    body = re.sub(r"\bDECLARE\b.*?\bBEGIN\b|\bFOR \S+ IN\b", " ", code, flags=re.DOTALL)
    types = re.findall(r"^ *\w+ ((?!pg_catalog\.)\w+)", declared, re.MULTILINE)
    casts = re.findall(r"::\s*((?!\"?pg_catalog\"?\.)\"?\w+)", body)
    body = re.sub(r"::|:=|\.\*|\(\*\)|OPERATOR\(pg_catalog\.[^)]+\)", " ", body)
    operators = re.findall(r"[-+*/<>=~!@#%^&|`?]+|\b(?:I?LIKE|IN|BETWEEN|SIMILAR|DISTINCT)\b", body)
    calls = re.findall(r"(?<![.\w\"])(?!(?:LATERAL|FROM|coalesce|AND|OR)\b)(\w+) ?\(", body)
    tables = re.findall(r"\b(?:FROM|JOIN|INTO) (?!new_rows|old_rows|LATERAL|lowest)(\w+)\b(?!\.)", body)
    return types + casts + operators + calls + tables


def test_names_without_a_schema_are_recognized() -> None:
    found = unqualified(
        "DECLARE\n a text;\nBEGIN b := a = min(a::int) FROM t;"
        " DECLARE\n c date;\nBEGIN FOR c IN SELECT max(d) FROM (SELECT FROM u) AS d LOOP END LOOP; END; END"
    )
    assert found == ["text", "date", "int", "=", "min", "max", "t", "u"]


async def test_every_function_of_the_owner_qualifies_names_or_finds_temporary_objects_last(
    owner: asyncpg.Connection,
) -> None:
    await owner.execute(TABLES)
    await install(owner, ENTITIES, Silent())
    found = await owner.fetch(f"SELECT f.proname, f.proconfig, f.prosrc {OF_THE_OWNER}")
    assert len(found) > 10
    for name, settings, source in found:
        if any(setting.startswith("search_path=") for setting in settings or ()):
            assert "search_path=pg_catalog, pg_temp" in settings, name
        else:
            assert unqualified(source) == [], name


async def test_second_draw_runs_the_code_of_the_table_as_the_writer(
    owner: asyncpg.Connection, attacker: asyncpg.Connection
) -> None:
    await owner.execute(TABLES)
    await install(owner, ENTITIES, Silent())
    role = await attacker.fetchval("SELECT session_user")
    await owner.execute(
        "CREATE FUNCTION audit() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN INSERT INTO audit VALUES (current_user); RETURN NULL; END';"
        "CREATE TRIGGER audit AFTER UPDATE ON item FOR EACH ROW EXECUTE FUNCTION audit();"
        f"GRANT INSERT ON item, audit TO {role}"
    )
    with pytest.raises(asyncpg.InsufficientPrivilegeError) as caught:
        await insert_while_another_draws(attacker, owner)
    hint = 'Grant the role SELECT ("id", row_version) and UPDATE (row_version) on "public"."item".'
    assert caught.value.hint == hint
    await owner.execute(f"GRANT SELECT (id, row_version), UPDATE (row_version) ON item TO {role}")
    await insert_while_another_draws(attacker, owner)
    assert await owner.fetchval("SELECT array_agg(entry) FROM audit") == [role, role]
    assert await owner.fetchval("SELECT count(*) FROM cachesync.change_log WHERE key = 'a'") == 2


async def test_writer_who_may_only_insert_needs_no_more_privileges_if_no_own_code_runs(
    owner: asyncpg.Connection, attacker: asyncpg.Connection
) -> None:
    await owner.execute(TABLES)
    await install(owner, ENTITIES, Silent())
    await owner.execute(f"GRANT INSERT ON item TO {await attacker.fetchval('SELECT session_user')}")
    await insert_while_another_draws(attacker, owner)
    assert await owner.fetchval("SELECT count(*) FROM cachesync.change_log WHERE key = 'a'") == 2


async def test_installation_runs_no_code_from_the_search_path(
    owner: asyncpg.Connection, attacker: asyncpg.Connection
) -> None:
    await owner.execute(TABLES)
    await install(owner, ENTITIES, Silent())
    await shadow(attacker, owner)
    await owner.execute("SET search_path = trap, pg_catalog, public")
    changed = {"item": ENTITIES["item"].model_copy(update={"columns": ("id",)})}
    await install(owner, changed, Silent())
    search_path = await owner.fetchval("SELECT pg_catalog.current_setting('search_path')")
    assert search_path == "trap, pg_catalog, public"
