"""Keys of several columns, and of every type: their text in SQL and in Python, and what the triggers log."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import asynccontextmanager
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cachesync.entity import Entity
from cachesync.errors import InstallError
from cachesync.install.installer import install, uninstall
from cachesync.postgres.catalog import describe_relation
from cachesync.postgres.key import Key
from cachesync.postgres.payload import PAYLOAD_SETTINGS
from cachesync.postgres.registry import read_registry
from cachesync.postgres.rows import Rows
from local.silent import Silent
from tests.change_log import CHANGES
from tests.integration.install.test_row_versions import STRANGE_SETTINGS

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from local.postgres import Postgres

# For each type, the columns of a table, and what a key can hold.
COLUMNS: Final = {
    "word": "text",
    "form": "varchar(60)",
    "code": "char(4)",
    "mood": '"Odd".mood',
    "humour": "humour",
    "title": "title",
    "amount": "numeric",
    "fee": "numeric(12, 3)",
    "day": "date",
    "since": "since",
    "at": "timestamptz",
    "clock": "time",
    "flag": "boolean",
    "ref": "uuid",
    "line": "bigint",
}
TYPES: Final = """
    CREATE SCHEMA "Odd"; CREATE TYPE "Odd".mood AS ENUM ('so/so', '~', 'happy');
    CREATE DOMAIN title AS char(3); CREATE DOMAIN since AS timestamp;
    CREATE DOMAIN humour AS "Odd".mood;
"""
MOMENTS: Final = st.datetimes(datetime(2, 1, 1), datetime(9998, 1, 1))  # noqa: DTZ001 - naive on purpose
TEXTS: Final = st.text(st.sampled_from("/~01a\\\"' \n\t{},ß😀"), max_size=20)
CODES: Final = st.text(st.sampled_from("a/~ "), max_size=3)
VALUES: Final = st.tuples(
    TEXTS,
    TEXTS,
    CODES,
    st.sampled_from(["so/so", "~", "happy"]),
    st.sampled_from(["so/so", "~", "happy"]),
    CODES,
    st.decimals(-(10**20), 10**20, allow_nan=False, places=6)
    | st.sampled_from([Decimal("1E+3"), Decimal("0.0")]),
    st.decimals(-(10**8), 10**8, allow_nan=False, places=3),
    # asyncpg sends the first and the last date of Python as infinity.
    st.dates(date.min + timedelta(1), date.max - timedelta(1)),
    MOMENTS,
    MOMENTS.map(lambda moment: moment.replace(tzinfo=UTC)),
    st.times(),
    st.booleans(),
    st.uuids(),
    st.integers(-(2**63), 2**63 - 1),
)
EVERYTHING: Final = Entity.model_validate(
    {
        "name": "everything",
        "table": "everything",
        "key": list(COLUMNS),
        "ttl": "1h",
        "absent_ttl": "1s",
        "path": "/everything",
    }
)


def entity(key: str | list[str], **more: Any) -> dict[str, Entity]:
    declared = {"table": "thing", "key": key, "ttl": "1h", "absent_ttl": "1s", "path": "/things", **more}
    return {"thing": Entity.model_validate({"name": "thing", **declared})}


@pytest.fixture
async def owner(postgres: Postgres) -> AsyncIterator[asyncpg.Connection]:
    """A connection to a new database, with settings that change how values are written."""
    name = f"keys_{secrets.token_hex(4)}"
    connection = await asyncpg.connect(
        postgres.create_database(name), server_settings=STRANGE_SETTINGS, statement_cache_size=0
    )
    yield connection
    await connection.close()
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


@pytest.fixture
async def dsn(owner: asyncpg.Connection, postgres: Postgres) -> str:
    return postgres.dsn_of(await owner.fetchval("SELECT current_database()"))


@asynccontextmanager
async def connected(dsn: str, **server_settings: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(dsn, server_settings=server_settings)
    yield connection
    await connection.close()


async def log_of(owner: asyncpg.Connection) -> list[tuple[str | None, str]]:
    """Return the keys and the operations in the change log."""
    records = await owner.fetch(f"SELECT key, operation FROM {CHANGES} AS c ORDER BY version")
    return [(record["key"], record["operation"]) for record in records]


def spelled(value: object) -> str:
    """Return a value as a client could write it."""
    if isinstance(value, bool):
        return str(value).lower()
    return value.isoformat() if hasattr(value, "isoformat") else str(value)


@settings(max_examples=100, suppress_health_check=list(HealthCheck))
@given(values=VALUES)
async def test_sql_and_python_make_the_same_text_in_every_session(
    owner: asyncpg.Connection, dsn: str, values: tuple[Any, ...]
) -> None:
    if await owner.fetchval("SELECT to_regclass('everything')") is None:
        columns = ", ".join(f"{name} {kind}" for name, kind in COLUMNS.items())
        await owner.execute(
            f"{TYPES} CREATE TABLE everything ({columns}, PRIMARY KEY ({', '.join(COLUMNS)}), note text)"
        )
        await install(owner, {"everything": EVERYTHING}, Silent())
    await owner.execute("DELETE FROM everything; TRUNCATE cachesync.change_log")
    relation = await describe_relation(owner, EVERYTHING)
    assert relation is not None
    key = Key.of(EVERYTHING, relation.columns)
    parameters = ", ".join(f"${number}" for number in range(1, len(COLUMNS) + 1))
    await owner.execute(f"INSERT INTO everything VALUES ({parameters})", *values)
    text = key.canonical(tuple(map(spelled, values)))
    assert await log_of(owner) == [(text, "upsert")]
    async with connected(dsn, **PAYLOAD_SETTINGS) as other:
        await other.execute("UPDATE everything SET note = 'changed'")
        for connection in (owner, other):
            assert await connection.fetchval("SELECT key FROM cachesync.everything") == text
            rows = await (await Rows.open(connection, EVERYTHING)).read([text])
            assert list(rows) == [text]
            found = f"SELECT count(*) FROM everything AS t WHERE {key.matches('t', '$1::text')}"
            assert await connection.fetchval(found, text) == 1
            following = f"SELECT count(*) FROM everything AS t WHERE {key.follows('t', '$1::text')}"
            assert await connection.fetchval(following, text) == 0
    assert await log_of(owner) == [(text, "upsert"), (text, "upsert")]
    # Another row takes the key, which the triggers then find by its text. The row that has it moves first.
    await owner.execute("TRUNCATE everything")
    await owner.execute(f"INSERT INTO everything VALUES ({parameters})", *values)
    second, third = (key.canonical((*map(spelled, values[:-1]), str(values[-1] ^ bit))) for bit in (1, 2))
    await owner.execute(f"INSERT INTO everything VALUES ({parameters})", *values[:-1], values[-1] ^ 1)
    await owner.execute("TRUNCATE cachesync.change_log")
    await owner.execute(
        "UPDATE everything SET line = CASE line WHEN $1 THEN $1 # 2 ELSE line # 1 END", values[-1]
    )
    assert await log_of(owner) == [(third, "upsert"), (text, "upsert"), (second, "delete")]


SINGLE: Final = {
    "boolean": {"true": "true"},
    "char(4)": {"ab": "ab", "ab ": "ab", "": ""},
    "char": {"": ""},
    "bpchar": {"long/er  ": "long/er"},
    "numeric": {"1.50": "1.5", "100": "100", "-0.0": "0", "NaN": "NaN", "-Infinity": "-Infinity"},
    "numeric(3, -2)": {"149": "100"},
    "date": {"2026-02-03": "2026-02-03", "infinity": "infinity", "0044-03-15 BC": "0044-03-15 BC"},
    "time": {"12:30:00.50": "12:30:00.5", "24:00": "24:00:00"},
    "timestamp": {
        "2026-02-03 12:30": "2026-02-03T12:30:00",
        "-infinity": "-infinity",
        "12026-02-03": "12026-02-03T00:00:00",
    },
    "timestamptz": {
        "2026-02-03 12:30:00.250+05:45": "2026-02-03T06:45:00.25Z",
        "infinity": "infinity",
        "-infinity": "-infinity",
        "0044-03-15 00:00+00 BC": "0044-03-15T00:00:00Z BC",
        "12026-02-03 00:00+00": "12026-02-03T00:00:00Z",
    },
    '"Odd".mood': {"so/so": "so/so", "~": "~"},
    "humour": {"so/so": "so/so", "~": "~"},
    "title": {"a/": "a/"},
}


@pytest.mark.parametrize("key_type", SINGLE)
async def test_a_key_of_one_column_is_logged_as_the_canonical_text_of_its_value(
    owner: asyncpg.Connection, key_type: str
) -> None:
    await owner.execute(f"{TYPES} CREATE TABLE thing (id {key_type} PRIMARY KEY, note text)")
    await install(owner, entity("id"), Silent())
    for value, text in SINGLE[key_type].items():
        await owner.execute(f"TRUNCATE cachesync.change_log; INSERT INTO thing VALUES ('{value}')")
        # The row draws a second time, for which the triggers find it by the text.
        async with owner.transaction(isolation="repeatable_read"):
            await owner.execute("SET LOCAL cachesync.moved = 'on'; UPDATE thing SET note = 'new'")
        await owner.execute("DELETE FROM thing")
        assert await log_of(owner) == [*[(text, "upsert")] * 3, (text, "delete")]


@pytest.mark.parametrize(
    ("key_type", "zone", "last", "step"),
    [
        ("date", "", "5874897-12-31", "1"),
        ("timestamp", "", "294276-12-31 23:59:59.999999", "interval '7123.100001 s'"),
        ("timestamptz", "Z", "294276-12-31 23:59:59.999999Z", "interval '7123.1 s'"),
    ],
)
async def test_python_knows_the_text_of_every_day_that_postgresql_has(
    owner: asyncpg.Connection, key_type: str, zone: str, last: str, step: str
) -> None:
    time = "" if key_type == "date" else f" 00:00{zone}"
    days = [f"4714-11-24{time} BC", f"0001-12-31{time} BC", f"0001-02-29{time} BC", f"0005-02-29{time} BC"]
    days += [f"0001-01-01{time}", f"9999-12-31{time}", f"10000-01-01{time}", "infinity", "-infinity", last]
    declared = entity("id")["thing"]
    await owner.execute(f"CREATE TABLE thing (id {key_type} PRIMARY KEY)")
    await owner.execute(
        f"INSERT INTO thing SELECT u.day::{key_type} FROM unnest($1::text []) AS u (day)"
        f" UNION SELECT u.day::{key_type} + (random() * 2e6)::int * {step}"
        "  FROM unnest($2::text []) AS u (day), generate_series(1, 3000)",
        days,
        [days[0], f"9999-01-01{time}", f"200000-01-01{time}"],
    )
    relation = await describe_relation(owner, declared)
    assert relation is not None
    key = Key.of(declared, relation.columns)
    texts = [record[0] for record in await owner.fetch(f"SELECT {key.text('t')} FROM thing AS t")]
    assert len(set(texts)) > 8000
    assert [text for text in texts if key.canonical(text) != text] == []
    has_key = key.matches("t", "u.key")
    found = f"SELECT count(*) FROM unnest($1::text []) AS u (key) JOIN thing AS t ON {has_key}"
    assert await owner.fetchval(found, texts) == len(texts)


@pytest.mark.parametrize(
    ("key_type", "before", "after"),
    [
        ("numeric", "1.0", "1.00"),
        ("bpchar", "a", "a  "),
        ("timestamptz", "2026-01-01 00:00Z", "2026-01-01 02:00+02"),
    ],
)
async def test_another_spelling_of_the_same_key_is_no_move(
    owner: asyncpg.Connection, key_type: str, before: str, after: str
) -> None:
    await owner.execute(f"CREATE TABLE thing (id {key_type}, line int, PRIMARY KEY (id, line))")
    await install(owner, entity(["id", "line"]), Silent())
    await owner.execute(f"INSERT INTO thing VALUES ('{before}', 1); UPDATE thing SET id = '{after}'")
    ((first, _), (second, _)) = await log_of(owner)
    assert first == second


LINES: Final = "CREATE TABLE thing (place text, line int, note text, PRIMARY KEY (place, line))"
CHANGES_OF_LINES: Final[dict[str, list[tuple[str | None, str]]]] = {
    "UPDATE thing SET note = 'new' WHERE line = 1": [("a~1b/1", "upsert")],
    "UPDATE thing SET line = 3 WHERE line = 1": [("a~1b/1", "delete"), ("a~1b/3", "upsert")],
    "UPDATE thing SET place = '~' WHERE line = 1": [("a~1b/1", "delete"), ("~0/1", "upsert")],
    "UPDATE thing SET place = 'x', line = 9 WHERE line = 1": [("a~1b/1", "delete"), ("x/9", "upsert")],
    "DELETE FROM thing": [("a~1b/1", "delete"), ("a~1b/2", "delete")],
    "TRUNCATE thing": [(None, "truncate")],
    # The second row takes the key of the first, which then is no delete.
    "UPDATE thing SET line = line - 1": [("a~1b/2", "delete"), ("a~1b/0", "upsert"), ("a~1b/1", "upsert")],
    "WITH d AS (DELETE FROM thing WHERE line = 1 RETURNING *) INSERT INTO thing SELECT place, line FROM d": [
        ("a~1b/1", "upsert")
    ],
    "INSERT INTO thing SELECT 'a/b', i FROM generate_series(1, 3) AS i ON CONFLICT (place, line) DO UPDATE"
    " SET note = 'conflict'": [("a~1b/3", "upsert"), ("a~1b/1", "upsert"), ("a~1b/2", "upsert")],
}


@pytest.mark.parametrize("change", CHANGES_OF_LINES)
async def test_triggers_log_each_change_under_the_text_of_its_key(
    owner: asyncpg.Connection, change: str
) -> None:
    await owner.execute(LINES)
    await install(owner, entity(["place", "line"]), Silent())
    await owner.execute("INSERT INTO thing VALUES ('a/b', 1), ('a/b', 2); TRUNCATE cachesync.change_log")
    await owner.execute(change)
    assert sorted(await log_of(owner), key=str) == sorted(CHANGES_OF_LINES[change], key=str)
    rows = await owner.fetch("SELECT key, version FROM cachesync.thing")
    newest = "SELECT max(version) FROM {} AS c WHERE key = $1 AND operation = 'upsert'"
    for row in rows:
        logged = await owner.fetchval(newest.format(CHANGES), row["key"])
        assert logged in {None, row["version"]}


async def test_a_generated_part_of_a_key_moves_the_row_when_it_changes(owner: asyncpg.Connection) -> None:
    await owner.execute(
        "CREATE TABLE thing (place text, line text GENERATED ALWAYS AS (lower(title)) STORED, title text,"
        " note text, PRIMARY KEY (place, line))"
    )
    await install(owner, entity(["place", "line"]), Silent())
    for statement in ("INSERT INTO thing VALUES ('a', DEFAULT, 'X/')", "UPDATE thing SET note = 'new'"):
        await owner.execute(statement)
        assert await log_of(owner) == [("a/x~1", "upsert")]
        await owner.execute("TRUNCATE cachesync.change_log")
    await owner.execute("UPDATE thing SET title = 'Y'")
    assert await log_of(owner) == [("a/y", "upsert"), ("a/x~1", "delete")]


async def test_rows_are_found_by_an_enum_of_another_schema(owner: asyncpg.Connection) -> None:
    await owner.execute(
        f'{TYPES} CREATE SCHEMA domains; CREATE DOMAIN domains.mood AS "Odd".mood;'
        "CREATE TABLE thing (id domains.mood PRIMARY KEY); INSERT INTO thing VALUES ('so/so');"
        "CREATE TABLE pair (a int, id domains.mood, PRIMARY KEY (a, id));"
        "INSERT INTO pair VALUES (1, 'so/so')"
    )
    pair = entity(["a", "id"], table="pair", path="/pairs")["thing"].model_copy(update={"name": "pair"})
    declared = entity("id") | {"pair": pair}
    await install(owner, declared, Silent())
    of_worker, of_service = (f"login_{secrets.token_hex(4)}" for _ in range(2))
    await owner.execute(
        f"CREATE ROLE {of_worker} IN ROLE cachesync_worker;CREATE ROLE {of_service} IN ROLE cachesync_service"
    )
    try:
        await owner.execute(f"SET SESSION AUTHORIZATION {of_worker}")
        for name, text in (("thing", "so/so"), ("pair", "1/so~1so")):
            assert list(await (await Rows.open(owner, declared[name])).read([text])) == [text]
        await owner.execute(f"SET SESSION AUTHORIZATION {of_service}")
        for name, text in (("thing", "so/so"), ("pair", "1/so~1so")):
            relation = await describe_relation(owner, declared[name])
            assert relation is not None
            has_key = Key.of(declared[name], relation.columns).matches("t", "$1::text")
            assert await owner.fetchval(f"SELECT count(*) FROM {name} AS t WHERE {has_key}", text) == 1
        registry = await read_registry(owner, of_service=True)
        assert {one.problem for one in registry.values()} == {None}
        await owner.execute(
            'RESET SESSION AUTHORIZATION; REVOKE USAGE ON SCHEMA "Odd" FROM cachesync_service'
        )
        await owner.execute(f"SET SESSION AUTHORIZATION {of_service}")
        registry = await read_registry(owner, of_service=True)
        assert all('USAGE on schema "Odd"' in str(registry[name].problem) for name in declared)
    finally:
        await owner.execute(f"RESET SESSION AUTHORIZATION; DROP ROLE {of_worker}, {of_service}")
    await uninstall(owner, ["thing", "pair"])
    granted = await owner.fetch("SELECT nspacl::text FROM pg_namespace WHERE nspname IN ('Odd', 'domains')")
    assert not any("cachesync" in str(record["nspacl"]) for record in granted)


async def test_rows_of_a_bulk_statement_share_lines(owner: asyncpg.Connection) -> None:
    await owner.execute(LINES)
    await install(owner, entity(["place", "line"]), Silent())
    await owner.execute("INSERT INTO thing SELECT '~' || i % 7, i FROM generate_series(1, 450) AS i")
    assert await owner.fetchval("SELECT count(*) FROM cachesync.change_log") < 110
    expected = {(f"~0{number % 7}/{number}", "upsert") for number in range(1, 451)}
    assert set(await log_of(owner)) == expected
    # A part of every key changes, and the rows that take a key from another row are no deletes.
    await owner.execute("DELETE FROM thing WHERE line <= 7; TRUNCATE cachesync.change_log")
    await owner.execute("UPDATE thing SET line = line - 7")
    deleted = {(f"~0{number % 7}/{number}", "delete") for number in range(444, 451)}
    log = await log_of(owner)
    assert {line for line in log if line[1] == "delete"} == deleted
    assert len(log) == 450


@pytest.mark.parametrize(
    ("table", "key", "reason"),
    [
        ("(a int, b int, PRIMARY KEY (b, a))", ["a", "b"], r"is \(b, a\); .*key \(a, b\), with .* same"),
        ("(a int, b int, PRIMARY KEY (a, b))", ["a"], r"is \(a, b\); it must be the declared key \(a\)"),
        ("(a int PRIMARY KEY, b int)", ["a", "b"], r"is \(a\); it must be the declared key \(a, b\)"),
        ("(a int, b int)", ["a", "b"], r"ADD PRIMARY KEY \(a, b\)"),
        (
            "(a int, b float8, PRIMARY KEY (a, b))",
            ["a", "b"],
            "column 'b' has the type double precision, whose",
        ),
        ("(a interval PRIMARY KEY)", ["a"], "1 day and 24 hours"),
        ("(a money PRIMARY KEY)", ["a"], "locale of the session"),
        ("(a bytea PRIMARY KEY)", ["a"], "settings of the session"),
        (
            "(a jsonb PRIMARY KEY)",
            ["a"],
            "jsonb, for which there is no canonical text; supported types: bool",
        ),
        ('(a "Odd".own PRIMARY KEY)', ["a"], "an enum with casts of its own"),
        ('(a "Odd"."numeric" PRIMARY KEY)', ["a"], "for which there is no canonical text"),
    ],
)
async def test_what_cannot_be_a_key_is_refused_with_the_reason(
    owner: asyncpg.Connection, table: str, key: list[str], reason: str
) -> None:
    await owner.execute(
        f"""
        {TYPES} CREATE TYPE "Odd".own AS ENUM ('a');
        CREATE FUNCTION own(text) RETURNS "Odd".own LANGUAGE sql RETURN NULL::"Odd".own;
        CREATE CAST (text AS "Odd".own) WITH FUNCTION own(text);
        CREATE TYPE "Odd"."numeric" AS RANGE (subtype = int);
        CREATE TABLE thing {table}
        """
    )
    with pytest.raises(InstallError, match=reason):
        await install(owner, entity(key), Silent())


async def test_another_key_needs_an_uninstallation(owner: asyncpg.Connection) -> None:
    await owner.execute(LINES)
    await install(owner, entity(["place", "line"]), Silent())
    await owner.execute("ALTER TABLE thing DROP CONSTRAINT thing_pkey, ADD PRIMARY KEY (line, place)")
    with pytest.raises(InstallError, match=r"installed on public\.thing with key 'place', 'line'; run"):
        await install(owner, entity(["line", "place"]), Silent())


async def test_an_installation_of_an_earlier_version_is_upgraded_and_keeps_its_fingerprint(
    owner: asyncpg.Connection,
) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY); INSERT INTO thing VALUES (1)")
    await install(owner, entity("id"), Silent())
    before = (await read_registry(owner))["thing"]
    await owner.execute("ALTER TABLE cachesync.entity DROP COLUMN key_columns")
    await install(owner, entity("id"), Silent())
    after = (await read_registry(owner))["thing"]
    assert after.key == ("id",)
    assert (after.fingerprint, after.installation) == (before.fingerprint, before.installation)
    assert await log_of(owner) == []


async def test_names_can_have_any_character_in_a_session_with_any_settings(
    owner: asyncpg.Connection, dsn: str
) -> None:
    table, first = "a%s\\b'\"$1", "k\\'"
    await owner.execute(
        """
        CREATE TABLE "a%s\\b'""$1" ("k\\'" int, line int, PRIMARY KEY ("k\\'", line));
        CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
        CREATE TRIGGER nothing AFTER INSERT ON "a%s\\b'""$1" EXECUTE FUNCTION nothing()
        """
    )
    await install(owner, entity([first, "line"], table=table), Silent())
    # The bodies of functions are read with the settings of the session that calls them.
    settings = {
        "standard_conforming_strings": "off",
        "backslash_quote": "off",
        "escape_string_warning": "off",
    }
    async with connected(dsn, **settings) as other, connected(dsn, **settings) as deleting:
        await deleting.execute("""INSERT INTO "a%s\\b'""$1" VALUES (1, 1)""")
        transaction = deleting.transaction()
        await transaction.start()
        await deleting.execute("""DELETE FROM "a%s\\b'""$1" """)
        # It waits for the delete, and must then draw again.
        inserting = asyncio.create_task(other.execute("""INSERT INTO "a%s\\b'""$1" VALUES (1, 1)"""))
        await asyncio.sleep(0.3)
        await transaction.commit()
        await inserting
        await other.execute("""UPDATE "a%s\\b'""$1" SET line = 2""")
    version = await owner.fetchval("SELECT version FROM cachesync.thing WHERE key = '1/2'")
    assert version == await owner.fetchval("SELECT max(version) FROM cachesync.change_log WHERE key = '1/2'")
    assert [line for line in await log_of(owner) if line[0] == "1/2"] == [("1/2", "upsert")]
