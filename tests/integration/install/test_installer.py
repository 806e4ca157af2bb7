"""The database side: installed on tables in use, upgraded, rejected and removed."""

from __future__ import annotations

import asyncio
import json
import secrets
import subprocess
from itertools import chain
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from typer.testing import CliRunner

from cachesync.cli.main import app
from cachesync.entity import Entity
from cachesync.errors import InstallError
from cachesync.install.checks import RESERVED_NAMES, check, undeclared
from cachesync.install.installer import install, uninstall
from cachesync.postgres.statements import statement
from local.postgres import client
from local.silent import Silent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Coroutine
    from pathlib import Path

    from local.postgres import Postgres

    Login = Callable[..., Coroutine[Any, Any, asyncpg.Connection]]

CATALOGUE = """
WITH schemas AS (
    SELECT n.oid, n.nspname FROM pg_namespace AS n WHERE n.nspname !~ '^(pg_|information_schema)'
), relations AS (
    SELECT c.oid, c.relkind, coalesce(
        c.relacl, acldefault(CASE c.relkind WHEN 'S' THEN 's' ELSE 'r' END::"char", c.relowner)
    ) AS acl
    FROM pg_class AS c JOIN schemas AS s ON s.oid = c.relnamespace
), lines AS (
    SELECT format('schema %s', s.nspname) AS line FROM schemas AS s
    UNION ALL
    SELECT format('relation %s %s %s', r.oid::regclass, r.relkind, r.acl) FROM relations AS r
    UNION ALL
    SELECT format('column %s.%s %s %s', r.oid::regclass, a.attname, a.attnotnull, a.attacl)
    FROM relations AS r JOIN pg_attribute AS a ON a.attrelid = r.oid AND a.attnum > 0 AND NOT a.attisdropped
    UNION ALL
    SELECT format('trigger %s %s', g.tgrelid::regclass, g.tgname) FROM pg_trigger AS g
    UNION ALL
    -- Without the fingerprint, which contains the number of the installation.
    SELECT format(
        'function %s %s',
        f.oid::regprocedure,
        md5(regexp_replace(pg_get_functiondef(f.oid), '''[0-9a-f]{8}''', '', 'g'))
    )
    FROM pg_proc AS f JOIN schemas AS s ON s.oid = f.pronamespace
)
SELECT string_agg(l.line, E'\\n' ORDER BY l.line) FROM lines AS l
"""

LINES_OF_ROWS = "SELECT count(*) FROM cachesync.change_log WHERE operation <> 'truncate'"


@pytest.fixture
async def owner(database: str) -> AsyncIterator[asyncpg.Connection]:
    connection = await asyncpg.connect(database)
    yield connection
    await connection.close()


def thing(**changed: Any) -> dict[str, Entity]:
    declared = {
        "name": "thing",
        "table": "thing",
        "key": "id",
        "ttl": "1h",
        "absent_ttl": "1m",
        "path": "/things",
    }
    entity = Entity.model_validate(declared | changed)
    return {entity.name: entity}


async def fingerprint(connection: asyncpg.Connection) -> str:
    text: str = await connection.fetchval("SELECT fingerprint FROM cachesync.entity WHERE name = 'thing'")
    return text


async def test_uninstall_removes_everything(owner: asyncpg.Connection) -> None:
    await owner.execute(
        "CREATE TABLE thing (id int PRIMARY KEY, name text); INSERT INTO thing VALUES (1, 'a')"
    )
    before = await owner.fetchval(CATALOGUE)
    await install(owner, thing(), Silent())
    assert await owner.fetchval(CATALOGUE) != before
    assert await uninstall(owner) == ("thing",)
    assert await owner.fetchval(CATALOGUE) == before
    assert await uninstall(owner) == ()


async def test_second_installation_changes_nothing(owner: asyncpg.Connection) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY, name text)")
    await install(owner, thing(), Silent())
    before = (await owner.fetchval(CATALOGUE), await fingerprint(owner))
    await owner.execute("INSERT INTO thing VALUES (1, 'a')")
    await install(owner, thing(), Silent())
    assert (await owner.fetchval(CATALOGUE), await fingerprint(owner)) == before
    assert await owner.fetchval("SELECT count(*) FROM cachesync.change_log") == 1


async def test_existing_rows_get_a_version_below_all_later_ones(owner: asyncpg.Connection) -> None:
    await owner.execute(
        "CREATE TABLE thing (id int PRIMARY KEY, name text);"
        "INSERT INTO thing SELECT g, 'x' FROM generate_series(1, 1000) AS g"
    )
    await install(owner, thing(), Silent())
    assert await owner.fetchval("SELECT count(row_version) FROM thing") == 1000
    old = await owner.fetchval("SELECT row_version FROM thing WHERE id = 1")
    new = await owner.fetchval("UPDATE thing SET name = 'y' WHERE id = 1 RETURNING row_version")
    assert new > old
    with pytest.raises(asyncpg.NotNullViolationError):
        await owner.execute("ALTER TABLE thing DISABLE TRIGGER ALL; INSERT INTO thing VALUES (0, 'x', NULL)")


async def test_installation_under_load_fails_no_write_and_misses_no_version(
    owner: asyncpg.Connection, database: str
) -> None:
    await owner.execute(
        "CREATE TABLE thing (id int PRIMARY KEY, name text);"
        "INSERT INTO thing SELECT g, 'x' FROM generate_series(1, 50000) AS g"
    )
    stop = asyncio.Event()

    async def write(number: int) -> int:
        connection = await asyncpg.connect(database)
        written = 0
        while not stop.is_set():
            await connection.execute("UPDATE thing SET name = $1 WHERE id = $2", str(written), number + 1)
            await connection.execute(
                "INSERT INTO thing VALUES ($1, 'new')", 100_000 * number + 100_000 + written
            )
            written += 1
        await connection.close()
        return written

    writers = [asyncio.create_task(write(number)) for number in range(3)]
    await asyncio.sleep(0.3)
    await install(owner, thing(), Silent())
    await asyncio.sleep(0.3)
    stop.set()
    assert all(count > 10 for count in await asyncio.gather(*writers))
    assert await owner.fetchval("SELECT count(*) FROM thing WHERE row_version IS NULL") == 0
    unlogged = await owner.fetchval(
        "SELECT count(*) FROM thing AS t"
        " WHERE t.row_version > (SELECT min(version) FROM cachesync.change_log)"
        " AND NOT EXISTS (SELECT FROM cachesync.change_log AS l WHERE l.version = t.row_version)"
    )
    assert unlogged == 0


async def test_error_names_a_long_transaction_and_writers_do_not_queue_behind_the_installation(
    owner: asyncpg.Connection, database: str
) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY, name text)")
    holder, writer = await asyncpg.connect(database), await asyncpg.connect(database)
    await holder.execute("BEGIN; INSERT INTO thing VALUES (1, 'a')")
    installing = asyncio.create_task(install(owner, thing(), Silent(), lock_attempts=1))
    await asyncio.sleep(0.5)
    # It queues behind the installation's lock request until that gives up.
    await writer.execute("INSERT INTO thing VALUES (2, 'b')", timeout=10)
    with pytest.raises(InstallError, match=r"was in use .* session .*run the same command again"):
        await installing
    await holder.execute("COMMIT")
    await install(owner, thing(), Silent())
    await holder.close()
    await writer.close()


async def test_changed_declaration_upgrades_in_place(owner: asyncpg.Connection) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY, name text, price numeric(8, 2))")
    await install(owner, thing(columns=("id", "name")), Silent())
    await owner.execute("INSERT INTO thing VALUES (1, 'a', 2.5)")
    first = await fingerprint(owner)
    await install(owner, thing(), Silent())
    await owner.execute("UPDATE thing SET name = 'b'")
    payloads = await owner.fetch("SELECT payload, fingerprint FROM cachesync.change_log ORDER BY version")
    assert [record["payload"] for record in payloads] == [
        '{"id":1,"name":"a"}',
        '{"id":1,"name":"b","price":2.50}',
    ]
    assert payloads[0]["fingerprint"] == first != payloads[1]["fingerprint"] == await fingerprint(owner)


@pytest.mark.parametrize("names", [None, ("thing",)])
async def test_reinstallation_has_another_fingerprint(
    owner: asyncpg.Connection, names: tuple[str, ...] | None
) -> None:
    """Values that caches still hold from the earlier installation must be misses."""
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY, name text)")
    await install(owner, thing(), Silent())
    first = await fingerprint(owner)
    highest = await owner.fetchval("SELECT nextval('cachesync.row_version')")
    await uninstall(owner, names)
    await asyncio.sleep(0.01)
    await install(owner, thing(), Silent())
    assert await fingerprint(owner) != first
    assert await owner.fetchval("SELECT nextval('cachesync.row_version')") > highest


async def test_rows_of_the_live_check_are_no_other_installations(owner: asyncpg.Connection) -> None:
    """Databases that share a Kafka cluster share the topic of the hidden entity."""
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY, name text)")
    found = []
    for _ in range(2):
        for _ in range(2):
            await install(owner, thing(), Silent())
            found.append(set(await owner.fetchval("SELECT array_agg(id) FROM cachesync.canary")))
        await uninstall(owner)
    first, again, other, _ = found
    assert first == again
    assert len(first | other) == len(first) + len(other) == 16


async def test_columns_can_be_added_and_served_ones_are_protected(owner: asyncpg.Connection) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY, name text, old text)")
    await install(owner, thing(), Silent())
    await owner.execute("ALTER TABLE thing ADD COLUMN added int; INSERT INTO thing VALUES (1, 'a')")
    for change in ("DROP COLUMN old", "ALTER COLUMN old TYPE int USING 1"):
        with pytest.raises(asyncpg.PostgresError, match=r"view cachesync.thing|used by a view"):
            await owner.execute(f"ALTER TABLE thing {change}")
    await install(owner, thing(columns=("id", "name")), Silent())
    await owner.execute("ALTER TABLE thing DROP COLUMN old; UPDATE thing SET name = 'b'")
    await install(owner, thing(), Silent())
    assert await owner.fetchval("SELECT payload FROM cachesync.thing") == '{"id":1,"name":"b","added":null}'


async def test_uninstall_looks_once_at_what_each_table_uses(owner: asyncpg.Connection) -> None:
    """With hundreds of entities, looking at all of them for each would take minutes."""
    names = ("thing", "other", "third")
    entities: dict[str, Entity] = {}
    for name in names:
        await owner.execute(f"CREATE TABLE {name} (id int PRIMARY KEY)")
        entities |= thing(name=name, table=name, path=f"/{name}")
    await install(owner, entities, Silent())
    queries: list[str] = []
    with owner.query_logger(lambda record: queries.append(record.query)):
        await uninstall(owner)
    assert queries.count(statement("install/uses")) == len(names)


async def test_one_entity_can_be_uninstalled_alone(owner: asyncpg.Connection) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)")
    await install(owner, thing() | thing(name="other", table="other", path="/o"), Silent())
    assert await install(owner, thing(), Silent()) == ("other",)
    assert await uninstall(owner, ["other", "other"]) == ("other",)
    await owner.execute("INSERT INTO other VALUES (1); INSERT INTO thing VALUES (1)")
    assert await owner.fetchval("SELECT array_agg(entity) FROM cachesync.change_log") == ["thing"]
    with pytest.raises(InstallError, match="other: not installed; installed entities: thing"):
        await uninstall(owner, ["other"])


@pytest.mark.parametrize(
    ("tables", "declared", "reason"),
    [
        ("SELECT 1", {}, "no such table"),
        ("CREATE TABLE thing (id int)", {}, "no primary key; run ALTER TABLE thing ADD PRIMARY KEY"),
        ("CREATE TABLE thing (id int, b int, PRIMARY KEY (id, b))", {}, r"primary key is \(id, b\)"),
        ("CREATE TABLE thing (id int UNIQUE, b int PRIMARY KEY)", {}, r"primary key is \(b\)"),
        ("CREATE TABLE thing (id int PRIMARY KEY DEFERRABLE)", {}, "DEFERRABLE"),
        ("CREATE TABLE thing (id float8 PRIMARY KEY)", {}, "key column 'id' has the type double precision"),
        (
            "CREATE TABLE thing (id int PRIMARY KEY)",
            {"columns": ("id", "x")},
            "no column 'x'; its columns: id",
        ),
        ("CREATE TABLE thing (id int PRIMARY KEY, row_version int)", {}, "its own column 'row_version'"),
        (
            "CREATE TABLE a (id int PRIMARY KEY); CREATE TABLE thing (PRIMARY KEY (id)) INHERITS (a)",
            {},
            "has inheritance",
        ),
        ("CREATE VIEW thing AS SELECT 1 AS id", {}, "it is a view"),
        ("CREATE MATERIALIZED VIEW thing AS SELECT 1 AS id", {}, "it is a materialized view"),
        (
            """
            CREATE FOREIGN DATA WRAPPER w; CREATE SERVER s FOREIGN DATA WRAPPER w;
            CREATE FOREIGN TABLE thing (id int) SERVER s
            """,
            {},
            "it is a foreign table",
        ),
        (
            # Only ICU collations can be nondeterministic, and not every build has ICU.
            """
            CREATE COLLATION loose (LOCALE = 'C');
            UPDATE pg_collation SET collisdeterministic = false WHERE collname = 'loose';
            CREATE TABLE thing (id text COLLATE loose PRIMARY KEY)
            """,
            {},
            "nondeterministic collation",
        ),
        (
            "CREATE TABLE thing (id int PRIMARY KEY, twice int GENERATED ALWAYS AS (id * 2) VIRTUAL)",
            {},
            "generated column 'twice' is virtual",
        ),
        (
            # As parts of an array of a composite type, behind a domain.
            """
            CREATE TYPE mood AS ENUM ('sad'); CREATE DOMAIN feeling AS mood;
            CREATE TYPE day AS (at date, feeling feeling);
            CREATE TABLE thing (id int PRIMARY KEY, days day []);
            CREATE FUNCTION as_json(mood) RETURNS json LANGUAGE sql RETURN '1'::json;
            CREATE CAST (mood AS json) WITH FUNCTION as_json(mood)
            """,
            {},
            "its column 'days' is converted to JSON by public.as_json.*drop the cast",
        ),
        ("CREATE UNLOGGED TABLE thing (id int PRIMARY KEY)", {}, "unlogged"),
        (
            """
            CREATE TABLE thing (id int PRIMARY KEY);
            CREATE FUNCTION f() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';
            CREATE TRIGGER "zzzäh" BEFORE INSERT ON thing FOR EACH ROW EXECUTE FUNCTION f();
            CREATE TRIGGER zzz_b BEFORE UPDATE ON thing FOR EACH ROW EXECUTE FUNCTION f();
            CREATE TRIGGER zzzz BEFORE DELETE ON thing FOR EACH ROW EXECUTE FUNCTION f()
            """,
            {},
            "its trigger 'zzzäh' fires after those of db-cache-sync.*rename it",
        ),
        (
            "CREATE TABLE thing (id int PRIMARY KEY); ALTER TABLE thing FORCE ROW LEVEL SECURITY",
            {},
            "row security also applies to its owner",
        ),
        (
            "CREATE TABLE thing (id int PRIMARY KEY); ALTER TABLE thing ENABLE ROW LEVEL SECURITY",
            {},
            'every client of a service would see every row.*declare row_security = "bypass"',
        ),
        (
            """
            CREATE TABLE thing (id int PRIMARY KEY, tenant text); ALTER TABLE thing ENABLE ROW LEVEL SECURITY;
            CREATE POLICY own ON thing USING (tenant = current_user)
            """,
            {},
            'declare row_security = "bypass"',
        ),
        (
            """
            CREATE TABLE thing (id int PRIMARY KEY, tenant text); ALTER TABLE thing ENABLE ROW LEVEL SECURITY;
            CREATE POLICY own ON thing AS RESTRICTIVE USING (tenant = current_user)
            """,
            {"row_security": "bypass"},
            "its restrictive policy 'own' would hide rows from the services",
        ),
        (
            """
            CREATE TABLE thing (id int PRIMARY KEY);
            ALTER TABLE thing ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY
            """,
            {"row_security": "bypass"},
            "row security also applies to its owner",
        ),
        (
            "CREATE SCHEMA cachesync CREATE TABLE x (a int); CREATE TABLE thing (id int PRIMARY KEY)",
            {},
            "a schema 'cachesync' that does not belong to db-cache-sync",
        ),
        (
            "CREATE TABLE change_log (id int PRIMARY KEY)",
            {"name": "change_log", "table": "change_log"},
            "is reserved",
        ),
    ],
)
async def test_unsupported_table_is_rejected_and_left_unchanged(
    owner: asyncpg.Connection, tables: str, declared: dict[str, Any], reason: str
) -> None:
    await owner.execute(tables)
    before = await owner.fetchval(CATALOGUE)
    with pytest.raises(InstallError, match=reason):
        await install(owner, thing(**declared), Silent())
    assert await owner.fetchval(CATALOGUE) == before


async def test_subscribed_table_is_rejected(owner: asyncpg.Connection) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY)")
    await owner.execute(
        "CREATE SUBSCRIPTION feed CONNECTION '' PUBLICATION feed"
        " WITH (connect = false, enabled = false, slot_name = NONE)"
    )
    # As REFRESH PUBLICATION does, which would require a second server.
    await owner.execute(
        "INSERT INTO pg_subscription_rel (srsubid, srrelid, srsubstate)"
        " SELECT oid, 'thing'::regclass, 'r' FROM pg_subscription WHERE subname = 'feed'"
    )
    with pytest.raises(InstallError, match="a subscription writes to it"):
        await install(owner, thing(), Silent())
    await owner.execute("DROP SUBSCRIPTION feed")
    await install(owner, thing(), Silent())


async def test_entity_is_not_moved_to_another_table_silently(owner: asyncpg.Connection) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)")
    await install(owner, thing(), Silent())
    with pytest.raises(InstallError, match=r"run `cachesync uninstall thing` first"):
        await install(owner, thing(table="other"), Silent())
    with pytest.raises(InstallError, match=r"run `cachesync uninstall thing` first"):
        await install(owner, thing(name="renamed"), Silent())


@pytest.mark.parametrize("key_type", ["smallint", "integer", "bigint", "uuid", "text", "varchar(40)", "code"])
async def test_awkward_names_and_every_key_type_are_supported(
    owner: asyncpg.Connection, key_type: str
) -> None:
    table, column = '"Odd Schema"."select ""x"""', "ordér $$ '\\" + "y" * 51
    assert len(column.encode()) == 63
    await owner.execute(
        'CREATE SCHEMA "Odd Schema"; CREATE DOMAIN code AS text CHECK (length(VALUE) < 40);'
        f'CREATE TABLE {table} ("Key" {key_type} PRIMARY KEY, dropped int, "{column}" text, "order" text,'
        " doubled int GENERATED ALWAYS AS (7) STORED, n int GENERATED BY DEFAULT AS IDENTITY);"
        f"ALTER TABLE {table} DROP COLUMN dropped"
    )
    await install(owner, thing(table='Odd Schema.select "x"', key="Key"), Silent())
    value = "'00000000-0000-0000-0000-000000000001'" if key_type == "uuid" else "'1'"
    await owner.execute(f"INSERT INTO {table} VALUES ({value}, '$$', 'a')")
    logged = await owner.fetchrow("SELECT key, payload FROM cachesync.change_log")
    assert logged is not None
    assert logged["key"] == value.strip("'")
    assert json.loads(logged["payload"]).items() >= {column: "$$", "order": "a", "doubled": 7, "n": 1}.items()
    await uninstall(owner)


async def test_service_role_has_only_the_rights_that_services_need(
    owner: asyncpg.Connection, database: str
) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY, name text, secret text)")
    await install(owner, thing(columns=("id", "name")), Silent())
    role = f"service_{secrets.token_hex(4)}"
    await owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x' IN ROLE cachesync_service")
    service = await asyncpg.connect(database, user=role, password="x")
    await service.execute("INSERT INTO thing (id, name) VALUES (1, 'a')")
    async with service.transaction():
        version = await service.fetchval("UPDATE thing SET name = 'b' WHERE id = 1 RETURNING row_version")
        assert await service.fetchval("SELECT cachesync.latest_version('thing', '1')") == version
    assert await service.fetchval("SELECT cachesync.latest_version('thing', '1')") is None
    await service.execute("SELECT cachesync.mark_published($1)", [version])
    assert await service.fetchval("SELECT cachesync.merge_patch('{\"a\": 1}', '{\"a\": null}')") == "{}"
    await service.execute("SELECT name FROM cachesync.entity")
    await service.execute("DELETE FROM thing WHERE id = 1")
    for forbidden in (
        "SELECT secret FROM thing",
        "UPDATE thing SET secret = 'x'",
        "INSERT INTO thing (id, row_version) VALUES (2, 1)",
        "TRUNCATE thing",
        "SELECT * FROM cachesync.change_log",
        "DELETE FROM cachesync.change_log",
        "UPDATE cachesync.entity SET name = 'x'",
        "SELECT nextval('cachesync.row_version')",
        "SELECT setval('cachesync.row_version', 1)",
        "ALTER TABLE thing DISABLE TRIGGER ALL",
        "CREATE TABLE cachesync.mine (id int)",
        "DROP TABLE thing",
        # With a trigger of the library on its own table, a service could write anything to the change log.
        (
            "CREATE TEMP TABLE own (id int, name text, row_version bigint); CREATE TRIGGER forge AFTER INSERT"
            " ON own REFERENCING NEW TABLE AS new_rows EXECUTE FUNCTION cachesync.thing_log_insert()"
        ),
        (
            "CREATE TEMP TABLE own (id int, row_version bigint); CREATE TRIGGER draw BEFORE INSERT"
            " ON own FOR EACH ROW EXECUTE FUNCTION cachesync.draw_version()"
        ),
        "SELECT cachesync.thing_redraw('{1}', '{1}')",
        "SELECT cachesync.overtaken('thing', '{1}', '{1}')",
    ):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await service.execute(forbidden)
    await service.close()
    await owner.execute(f"DROP ROLE {role}")


async def test_service_marks_only_its_own_changes_and_the_worker_marks_all(
    owner: asyncpg.Connection, database: str
) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY, name text)")
    await install(owner, thing(), Silent())
    logins = {name: f"{name}_{secrets.token_hex(4)}" for name in ("service", "other", "worker")}
    sessions = {}
    for name, login in logins.items():
        role = "cachesync_worker" if name == "worker" else "cachesync_service"
        await owner.execute(f"CREATE ROLE {login} LOGIN PASSWORD 'x' IN ROLE {role}")
        sessions[name] = await asyncpg.connect(database, user=login, password="x")
    await owner.execute("INSERT INTO thing VALUES (1)")
    await sessions["other"].execute("INSERT INTO thing VALUES (2)")
    await sessions["service"].execute("INSERT INTO thing VALUES (3)")
    versions = await owner.fetchval("SELECT array_agg(version) FROM cachesync.change_log")
    marked = (
        "SELECT coalesce(array_agg(key ORDER BY key), '{}') FROM cachesync.change_log"
        " WHERE published_at IS NOT NULL"
    )
    # Another current role changes nothing: the login is the session's.
    await sessions["service"].execute("SET ROLE cachesync_service")
    await sessions["service"].execute("SELECT cachesync.mark_published($1)", versions)
    assert await owner.fetchval(marked) == ["3"]
    await sessions["worker"].execute("SELECT cachesync.mark_published($1)", versions)
    assert await owner.fetchval(marked) == ["1", "2", "3"]
    for name, login in logins.items():
        await sessions[name].close()
        await owner.execute(f"DROP ROLE {login}")


async def test_lines_of_an_earlier_version_are_not_rewritten_and_belong_to_no_login(
    owner: asyncpg.Connection,
) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY, name text)")
    await install(owner, thing(), Silent())
    await owner.execute(
        "ALTER TABLE cachesync.change_log DROP COLUMN transaction CASCADE, DROP COLUMN login CASCADE"
    )
    await owner.execute("INSERT INTO thing VALUES (1)")
    file = await owner.fetchval("SELECT pg_relation_filenode('cachesync.change_log')")
    await install(owner, thing(), Silent())
    assert await owner.fetchval("SELECT pg_relation_filenode('cachesync.change_log')") == file
    transaction = await owner.fetchval(
        "WITH inserted AS (INSERT INTO thing VALUES (2)) SELECT pg_current_xact_id()::text"
    )
    lines = await owner.fetch("SELECT transaction::text, login FROM cachesync.change_log ORDER BY version")
    login = await owner.fetchval("SELECT session_user::text")
    assert [tuple(line) for line in lines] == [("0", ""), (transaction, login)]


async def test_upgrade_replaces_how_an_earlier_version_logged_changed_keys(owner: asyncpg.Connection) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY, name text)")
    await install(owner, thing(), Silent())
    installed = await owner.fetchval(CATALOGUE)
    await owner.execute(
        "INSERT INTO thing SELECT i FROM generate_series(1, 3) AS i;"
        "DROP FUNCTION cachesync.transaction_changes;"
        "ALTER TABLE cachesync.change_log DROP COLUMN keys, DROP COLUMN payloads;"
        "CREATE OR REPLACE TRIGGER cachesync_log_update AFTER UPDATE ON thing"
        " REFERENCING OLD TABLE AS old_rows NEW TABLE AS new_rows"
        " FOR EACH STATEMENT EXECUTE FUNCTION cachesync.thing_log_update();"
        "ALTER TABLE thing ENABLE ALWAYS TRIGGER cachesync_log_update;"
        "DROP FUNCTION cachesync.thing_keep_moved;"
        "CREATE FUNCTION cachesync.thing_log_moves(keys text [], versions bigint []) RETURNS void"
        " LANGUAGE sql AS '';"
        "UPDATE cachesync.entity SET definition = ''"
    )
    await install(owner, thing(), Silent())
    assert await owner.fetchval(CATALOGUE) == installed
    await owner.execute("UPDATE thing SET id = id + 10")
    changes = "SELECT key, operation FROM cachesync.change_log WHERE operation <> 'truncate' ORDER BY version"
    assert [tuple(change) for change in await owner.fetch(changes)] == [
        *((str(key), "upsert") for key in (1, 2, 3)),
        *chain.from_iterable(((str(key + 10), "upsert"), (str(key), "delete")) for key in (1, 2, 3)),
    ]


async def test_writers_need_only_rights_on_the_table(owner: asyncpg.Connection, database: str) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY, name text)")
    await install(owner, thing(), Silent())
    role = f"writer_{secrets.token_hex(4)}"
    await owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'; GRANT ALL ON thing TO {role}")
    writer = await asyncpg.connect(database, user=role, password="x")
    await writer.execute("INSERT INTO thing VALUES (1, 'a'); UPDATE thing SET id = 2; TRUNCATE thing")
    await writer.close()
    operations = await owner.fetchval(
        "SELECT array_agg(operation ORDER BY version) FROM cachesync.change_log"
    )
    assert sorted(operations) == ["delete", "truncate", "upsert", "upsert"]
    assert await owner.fetchval("SELECT array_agg(DISTINCT source) FROM cachesync.change_log") == [role]
    await owner.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_error_names_the_missing_right(owner: asyncpg.Connection, database: str) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY)")
    role = f"nobody_{secrets.token_hex(4)}"
    await owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x'")
    nobody = await asyncpg.connect(database, user=role, password="x")
    with pytest.raises(InstallError, match=r"connect as the owner of the tables"):
        await install(nobody, thing(), Silent())
    await nobody.close()
    await owner.execute(f"DROP ROLE {role}")


async def test_databases_of_one_server_are_installed_independently(
    owner: asyncpg.Connection, postgres: Postgres
) -> None:
    name = f"install_{secrets.token_hex(4)}"
    other = await asyncpg.connect(postgres.create_database(name))
    for connection in (owner, other):
        await connection.execute("CREATE TABLE thing (id int PRIMARY KEY)")
        await install(connection, thing(), Silent())
    await uninstall(other)
    await other.close()
    await owner.execute("INSERT INTO thing VALUES (1)")
    assert await owner.fetchval("SELECT count(*) FROM cachesync.change_log") == 1
    assert await owner.fetchval("SELECT count(*) FROM pg_roles WHERE rolname = 'cachesync_service'") == 1
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


async def test_installation_writes_no_row_and_fires_no_trigger(owner: asyncpg.Connection) -> None:
    await owner.execute(
        "CREATE TABLE thing (id int PRIMARY KEY, name text); INSERT INTO thing VALUES (1, 'a'), (2, 'b');"
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RAISE ''no''; END';"
        "CREATE TRIGGER refuse BEFORE INSERT OR UPDATE OR DELETE ON thing EXECUTE FUNCTION refuse()"
    )
    written = "SELECT xmin::text, ctid::text, pg_relation_filenode('thing') FROM thing"
    before = await owner.fetch(written)
    await install(owner, thing(), Silent())
    assert await owner.fetch(written) == before


async def test_unchanged_installation_blocks_nobody(owner: asyncpg.Connection, database: str) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY)")
    await install(owner, thing(), Silent())
    holder = await asyncpg.connect(database)
    await holder.execute("BEGIN; INSERT INTO thing VALUES (1); SELECT FROM cachesync.thing")
    await owner.execute("SET statement_timeout = '1s'")
    await install(owner, thing(ttl="2h", on_change="invalidate", path="/other"), Silent(), lock_attempts=1)
    await holder.close()


@pytest.mark.parametrize(
    "damage",
    [
        "DROP TRIGGER cachesync_log_update ON thing",
        "ALTER TABLE thing DISABLE TRIGGER ALL",
        "DROP VIEW cachesync.thing",
        "DROP TRIGGER zzz_cachesync_version ON thing",
        "REVOKE ALL ON thing FROM cachesync_service",
    ],
)
async def test_installation_repairs_damage(owner: asyncpg.Connection, damage: str) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY, name text)")
    await install(owner, thing(), Silent())
    before = await owner.fetchval(CATALOGUE)
    await owner.execute(damage)
    await install(owner, thing(), Silent())
    assert await owner.fetchval(CATALOGUE) == before
    await owner.execute("INSERT INTO thing VALUES (1, 'a'); UPDATE thing SET name = 'b'")
    assert await owner.fetchval(LINES_OF_ROWS) == 2


async def test_dependent_view_survives_an_upgrade_and_is_not_dropped_silently(
    owner: asyncpg.Connection,
) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY, name text)")
    await install(owner, thing(columns=("id",)), Silent())
    await owner.execute("CREATE VIEW mine AS SELECT payload FROM cachesync.thing")
    await install(owner, thing(), Silent())
    await owner.execute("INSERT INTO thing VALUES (1, 'a')")
    assert await owner.fetchval("SELECT payload FROM mine") == '{"id":1,"name":"a"}'
    with pytest.raises(
        InstallError, match=r"view public.mine depends on view cachesync.thing; drop them first"
    ):
        await uninstall(owner)
    await owner.execute("UPDATE thing SET name = 'b'")
    assert await owner.fetchval("SELECT payload FROM mine") == '{"id":1,"name":"b"}'
    await owner.execute("DROP VIEW mine; CREATE VIEW mine AS SELECT version FROM cachesync.change_log")
    with pytest.raises(InstallError, match=r"view public.mine depends on table cachesync.change_log"):
        await uninstall(owner)
    await owner.execute("DROP VIEW mine")
    await uninstall(owner)


async def test_renamed_table_is_found(owner: asyncpg.Connection) -> None:
    await owner.execute("CREATE TABLE old (id int PRIMARY KEY)")
    before = await owner.fetchval(CATALOGUE)
    await install(owner, thing(table="old"), Silent())
    await owner.execute("INSERT INTO old VALUES (1); ALTER TABLE old RENAME TO thing")
    await install(owner, thing(), Silent())
    await owner.execute("DELETE FROM thing")
    assert await owner.fetchval(LINES_OF_ROWS) == 2
    # Renamed again, with another table under its former name.
    await owner.execute("ALTER TABLE thing RENAME TO old; CREATE TABLE thing (id int PRIMARY KEY)")
    with pytest.raises(InstallError, match=r"'thing' is installed on public.old .*uninstall thing` first"):
        await install(owner, thing(), Silent())
    await uninstall(owner, ["thing"])
    await install(owner, thing(), Silent())
    await uninstall(owner)
    await owner.execute("DROP TABLE thing")
    assert await owner.fetchval(CATALOGUE) == before


async def test_dropped_table_does_not_block_installations(owner: asyncpg.Connection) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)")
    await install(owner, thing() | thing(name="other", table="other", path="/o"), Silent())
    with pytest.raises(asyncpg.DependentObjectsStillExistError):
        await owner.execute("DROP TABLE thing")
    await owner.execute("DROP TABLE thing, other CASCADE")
    assert await uninstall(owner, ["other"]) == ("other",)
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY, name text)")
    await install(owner, thing(), Silent())
    await owner.execute("INSERT INTO thing VALUES (1, 'a')")
    assert await owner.fetchval("SELECT payload FROM cachesync.thing") == '{"id":1,"name":"a"}'
    assert await owner.fetchval(LINES_OF_ROWS) == 1
    await owner.execute("DROP TABLE thing CASCADE")
    assert await uninstall(owner) == ("thing",)
    assert await owner.fetchval("SELECT to_regnamespace('cachesync')") is None


async def test_foreign_schema_of_that_name_is_not_dropped(owner: asyncpg.Connection) -> None:
    await owner.execute("CREATE SCHEMA cachesync CREATE TABLE entity (name text)")
    with pytest.raises(InstallError, match="does not belong to db-cache-sync"):
        await uninstall(owner)
    assert await owner.fetchval("SELECT count(*) FROM cachesync.entity") == 0


async def test_fingerprint_does_not_depend_on_the_search_path(
    owner: asyncpg.Connection, database: str
) -> None:
    await owner.execute(
        "CREATE SCHEMA app; CREATE TYPE app.mood AS ENUM ('good', 'bad');"
        "CREATE TABLE app.thing (id int PRIMARY KEY, mood app.mood, moods app.mood [])"
    )
    declared = thing(table="app.thing")
    await install(owner, declared, Silent())
    first = await fingerprint(owner)
    other = await asyncpg.connect(database, server_settings={"search_path": "app"})
    await install(other, declared, Silent())
    assert await fingerprint(owner) == first
    await other.close()


@pytest.fixture
async def login(owner: asyncpg.Connection, database: str) -> AsyncIterator[Login]:
    """Creates a role with the given attributes and connects as it."""
    opened: list[tuple[str, asyncpg.Connection]] = []

    async def made(attributes: str = "", dsn: str = database) -> asyncpg.Connection:
        role = f"role_{secrets.token_hex(4)}"
        await owner.execute(f"CREATE ROLE {role} LOGIN PASSWORD 'x' {attributes}")
        connection = await asyncpg.connect(dsn, user=role, password="x")
        opened.append((role, connection))
        return connection

    yield made
    for _, connection in opened:
        await connection.close()
    for role, _ in opened:
        await owner.execute(f"DROP OWNED BY {role} CASCADE; DROP ROLE {role}")


async def test_service_can_use_the_types_and_functions_of_a_tables_columns(
    owner: asyncpg.Connection, login: Login
) -> None:
    await owner.execute(
        "CREATE SCHEMA app; CREATE SCHEMA types; CREATE TYPE types.mood AS ENUM ('good', 'bad');"
        "CREATE DOMAIN types.age AS int CHECK (VALUE >= 0);"
        "CREATE TABLE app.thing (id serial PRIMARY KEY, mood types.mood, age types.age, hidden serial);"
        "CREATE TABLE app.other (id int PRIMARY KEY, mood types.mood)"
    )
    before = await owner.fetchval(CATALOGUE)
    schemas = "SELECT nspacl FROM pg_namespace WHERE nspname IN ('app', 'types') ORDER BY nspname"
    other = thing(name="other", table="app.other", path="/o")
    await install(owner, other, Silent())
    of_other = (await owner.fetchval(CATALOGUE), await owner.fetch(schemas))
    await install(owner, other | thing(table="app.thing", columns=("id", "mood", "age")), Silent())
    service = await login("IN ROLE cachesync_service")
    await service.execute(
        "INSERT INTO app.thing (mood, age)"
        ' SELECT mood, age FROM jsonb_to_record(\'{"mood": "bad", "age": 3}\')'
        " AS p (mood types.mood, age types.age)"
    )
    assert await service.fetchval("SELECT id FROM app.thing") == 1
    await uninstall(owner, ["thing"])
    assert (await owner.fetchval(CATALOGUE), await owner.fetch(schemas)) == of_other
    await uninstall(owner)
    assert await owner.fetchval(CATALOGUE) == before
    assert not any("cachesync_service" in str(record["nspacl"]) for record in await owner.fetch(schemas))


async def test_error_names_rights_that_only_another_user_can_grant(
    owner: asyncpg.Connection, login: Login
) -> None:
    maker = await login("CREATEROLE")
    name = await maker.fetchval("SELECT current_user")
    database = await maker.fetchval("SELECT current_database()")
    await owner.execute(
        f"CREATE SCHEMA app; GRANT ALL ON SCHEMA app TO {name}; GRANT CREATE ON DATABASE {database} TO {name}"
    )
    await maker.execute("CREATE TABLE app.thing (id int PRIMARY KEY)")
    message = "cannot grant USAGE on SCHEMA app to the role cachesync_service; have the owner run GRANT USAGE"
    with pytest.raises(InstallError, match=message):
        await install(maker, thing(table="app.thing"), Silent())
    await owner.execute("GRANT USAGE ON SCHEMA app TO cachesync_service")
    await install(maker, thing(table="app.thing"), Silent())
    await uninstall(maker)
    await owner.execute("DROP SCHEMA app CASCADE")


async def test_table_owner_can_install_if_an_administrator_made_the_roles_and_the_schema(
    owner: asyncpg.Connection, login: Login
) -> None:
    modest = await login()
    name = await modest.fetchval("SELECT current_user")
    await owner.execute(
        f"CREATE SCHEMA app AUTHORIZATION {name}; CREATE SCHEMA cachesync AUTHORIZATION {name};"
        "DO $$BEGIN CREATE ROLE cachesync_service; EXCEPTION WHEN duplicate_object THEN END$$;"
        "DO $$BEGIN CREATE ROLE cachesync_worker; EXCEPTION WHEN duplicate_object THEN END$$"
    )
    await modest.execute("CREATE TABLE app.thing (id int PRIMARY KEY)")
    for _ in range(2):
        await install(modest, thing(table="app.thing"), Silent())
    service = await login("IN ROLE cachesync_service")
    await service.execute("INSERT INTO app.thing VALUES (1)")
    await uninstall(modest)
    assert await owner.fetchval("SELECT to_regnamespace('cachesync')") is None
    await owner.execute("DROP SCHEMA app CASCADE")


async def test_concurrent_installations_in_two_databases_create_the_role_once(
    owner: asyncpg.Connection, postgres: Postgres
) -> None:
    name = f"install_{secrets.token_hex(4)}"
    other = await asyncpg.connect(postgres.create_database(name))
    for connection in (owner, other):
        await connection.execute("CREATE TABLE thing (id int PRIMARY KEY)")
    for _ in range(5):
        await asyncio.gather(*(install(connection, thing(), Silent()) for connection in (owner, other)))
        await asyncio.gather(*(uninstall(connection) for connection in (owner, other)))
    await other.close()
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


@pytest.fixture
def entities_file(tmp_path: Path) -> Path:
    file = tmp_path / "entities.toml"
    file.write_text('[thing]\ntable = "thing"\nkey = "id"\nttl = "1h"\nabsent_ttl = "1m"\npath = "/things"\n')
    return file


def run(*arguments: object) -> tuple[int, str]:
    """Return the exit status and the output of the command."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})
    return result.exit_code, result.output


def test_command_installs_and_uninstalls(postgres: Postgres, database: str, entities_file: Path) -> None:
    dsn = postgres.dsn_of(database.rpartition("/")[2])
    install = ("install", "--dsn", dsn, "--entities", entities_file)
    assert run(*install) == (1, "cachesync: entity 'thing', table thing: no such table in this database\n")
    postgres.sql("CREATE TABLE thing (id int PRIMARY KEY)", database.rpartition("/")[2])
    done = (0, "schema cachesync\nentity thing, table thing\ninstalled: thing\n")
    assert run(*install) == done
    assert run(*install) == done
    assert run("uninstall", "--dsn", dsn, "other") == (
        1,
        "cachesync: other: not installed; installed entities: thing\n",
    )
    denied = (0, "schema cachesync\nentity thing, table thing\ntemporary objects\ninstalled: thing\n")
    assert run(*install, "--revoke-temporary") == denied
    entities_file.write_text(entities_file.read_text().replace("thing", "other"))
    postgres.sql("CREATE TABLE other (id int PRIMARY KEY)", database.rpartition("/")[2])
    assert "thing is installed but not declared; `cachesync uninstall thing` removes it\n" in run(*install)[1]
    assert run("uninstall", "--dsn", dsn) == (0, "uninstalled: other, thing\n")
    assert run("uninstall", "--dsn", dsn) == (0, "uninstalled: nothing was installed\n")


@pytest.mark.parametrize(
    ("dsn", "reason"),
    [("postgresql://localhost:1/none", "Connect call failed"), ("nonsense", "invalid DSN")],
)
def test_command_reports_why_it_cannot_connect(dsn: str, reason: str, entities_file: Path) -> None:
    code, output = run("install", "--dsn", dsn, "--entities", entities_file)
    assert code == 1
    assert output.startswith("cachesync: ")
    assert reason in output


def run_client(program: str, dsn: str, *arguments: str) -> str:
    command, environment = client(program, dsn, *arguments)
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout


def restore(dsn: str, script: str) -> str:
    """Run a script as psql does, which continues after errors, and return these errors."""
    command, environment = client("psql", dsn, "--quiet", "--file=-")
    finished = subprocess.run(
        command, env=environment, input=script, capture_output=True, text=True, check=True
    )
    return finished.stderr


async def test_restored_dump_needs_no_installation(
    owner: asyncpg.Connection, postgres: Postgres, database: str
) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY, name text)")
    await install(owner, thing(), Silent())
    await owner.execute("INSERT INTO thing VALUES (1, 'a'), (2, 'b'); DELETE FROM thing WHERE id = 2")
    name = f"install_{secrets.token_hex(4)}"
    restored = await asyncpg.connect(postgres.create_database(name))
    postgres.sql(run_client("pg_dump", database), name)
    everything = "SELECT version, operation, payload FROM cachesync.change_log ORDER BY version"
    assert await restored.fetch(everything) == await owner.fetch(everything)
    assert await restored.fetchval(CATALOGUE) == await owner.fetchval(CATALOGUE)
    highest = await owner.fetchval("SELECT last_value FROM cachesync.row_version")
    await install(restored, thing(), Silent(), lock_attempts=1)
    assert await restored.fetchval("UPDATE thing SET name = 'c' RETURNING row_version") > highest
    assert await restored.fetchval("SELECT fingerprint FROM cachesync.entity") == await fingerprint(owner)
    await restored.close()
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


async def test_services_see_and_write_every_row_if_row_security_is_bypassed(
    owner: asyncpg.Connection, login: Login
) -> None:
    await owner.execute(
        "CREATE TABLE thing (id int PRIMARY KEY, tenant text); INSERT INTO thing VALUES (1, 'a');"
        "ALTER TABLE thing ENABLE ROW LEVEL SECURITY;"
        "CREATE POLICY own ON thing USING (tenant = current_user)"
    )
    before = await owner.fetchval(CATALOGUE)
    await install(owner, thing(row_security="bypass"), Silent())
    service = await login("IN ROLE cachesync_service")
    await service.execute("INSERT INTO thing VALUES (2, 'b'); UPDATE thing SET tenant = 'c'; SELECT 1")
    assert await service.fetchval("SELECT array_agg(tenant) FROM thing") == ["c", "c"]
    stranger = await login()
    name = await stranger.fetchval("SELECT current_user")
    await owner.execute(f"GRANT SELECT ON thing TO {name}")
    assert await stranger.fetchval("SELECT count(*) FROM thing") == 0
    await owner.execute(f"REVOKE SELECT ON thing FROM {name}")
    await owner.execute("ALTER TABLE thing DISABLE ROW LEVEL SECURITY")
    await install(owner, thing(), Silent())
    assert await owner.fetchval("SELECT array_agg(polname::text) FROM pg_policy") == ["own"]
    await owner.execute("ALTER TABLE thing ENABLE ROW LEVEL SECURITY")
    await install(owner, thing(row_security="bypass"), Silent())
    await uninstall(owner)
    assert await owner.fetchval(CATALOGUE) == before
    assert await owner.fetchval("SELECT array_agg(polname::text) FROM pg_policy") == ["own"]


async def test_policies_without_row_security_hide_nothing_and_are_accepted(owner: asyncpg.Connection) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY); CREATE POLICY own ON thing USING (false)")
    await install(owner, thing(), Silent())


@pytest.mark.parametrize("again", ["", "CREATE TABLE other (id bigint PRIMARY KEY)"])
async def test_entities_are_installed_after_the_table_of_another_was_dropped(
    owner: asyncpg.Connection, again: str
) -> None:
    entities = thing() | {"other": thing(name="other", table="other", path="/others")["other"]}
    await owner.execute(
        "CREATE TABLE thing (id bigint PRIMARY KEY); CREATE TABLE other (id bigint PRIMARY KEY)"
    )
    await install(owner, entities, Silent())
    await owner.execute(f"DROP TABLE other CASCADE; {again}")
    assert await check(owner, thing()) == ([], [undeclared("other")])
    assert await install(owner, thing() if not again else entities, Silent()) == (() if again else ("other",))


async def test_no_entity_can_have_the_name_of_an_own_relation(owner: asyncpg.Connection) -> None:
    await owner.execute("CREATE TABLE thing (id bigint PRIMARY KEY)")
    await install(owner, thing(), Silent())
    relations = await owner.fetch(
        "SELECT relname FROM pg_class WHERE relnamespace = 'cachesync'::regnamespace AND relkind <> 'v'"
    )
    assert {record["relname"] for record in relations} == RESERVED_NAMES


async def test_temporary_objects_can_be_denied_to_all_users(owner: asyncpg.Connection, login: Login) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY)")
    service = await login()
    name = await service.fetchval("SELECT current_user")
    await install(owner, thing(), Silent())
    await owner.execute(f"GRANT cachesync_service TO {name}")
    await service.execute("CREATE TEMP TABLE a ()")
    await install(owner, thing(), Silent(), revoke_temporary=True)
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await service.execute("CREATE TEMP TABLE b ()")
    database = await owner.fetchval("SELECT current_database()")
    await owner.execute(f"GRANT TEMPORARY ON DATABASE {database} TO {name}")
    with pytest.raises(InstallError, match=f"{name} can still create temporary objects"):
        await install(owner, thing(), Silent(), revoke_temporary=True)


async def test_only_the_owner_of_the_database_can_deny_temporary_objects(
    owner: asyncpg.Connection, login: Login
) -> None:
    maker = await login("CREATEROLE")
    database = await maker.fetchval("SELECT current_database()")
    name = await maker.fetchval("SELECT current_user")
    await owner.execute(
        f"GRANT CREATE ON DATABASE {database} TO {name}; GRANT ALL ON SCHEMA public TO {name}"
    )
    await maker.execute("CREATE TABLE thing (id int PRIMARY KEY)")
    with pytest.raises(
        InstallError, match=r"cannot revoke TEMPORARY .* connect as the owner of the database"
    ):
        await install(maker, thing(), Silent(), revoke_temporary=True)
    await uninstall(maker)


async def test_database_of_unknown_encoding_is_rejected(postgres: Postgres) -> None:
    name = f"install_{secrets.token_hex(4)}"
    postgres.sql(
        f"CREATE DATABASE {name} TEMPLATE template0 ENCODING SQL_ASCII LOCALE 'C' LOCALE_PROVIDER libc",
        "postgres",
    )
    connection = await asyncpg.connect(postgres.dsn_of(name))
    await connection.execute("CREATE TABLE thing (id int PRIMARY KEY)")
    with pytest.raises(InstallError, match=r"encoding SQL_ASCII.*UTF8"):
        await install(connection, thing(), Silent())
    assert await connection.fetchval("SELECT to_regnamespace('cachesync')") is None
    await connection.close()
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


async def test_transaction_can_be_prepared_where_notifications_are_off(
    owner: asyncpg.Connection, database: str
) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY)")
    await install(owner, thing(), Silent())
    relay = await asyncpg.connect(database)
    await relay.execute("SELECT cachesync.fall_asleep()")
    with pytest.raises(asyncpg.FeatureNotSupportedError, match="PREPARE a transaction that has executed"):
        await owner.execute("BEGIN; INSERT INTO thing VALUES (1); PREPARE TRANSACTION 'first'")
    name = database.rpartition("/")[2]
    await owner.execute(f"ALTER DATABASE {name} SET cachesync.notify = off")
    other = await asyncpg.connect(database)
    await other.execute("BEGIN; INSERT INTO thing VALUES (1), (2); UPDATE thing SET id = 3 WHERE id = 1")
    await other.execute(f"DELETE FROM thing WHERE id = 2; PREPARE TRANSACTION '{name}'")
    await other.close()
    await relay.close()
    await owner.execute(f"COMMIT PREPARED '{name}'")
    logged = "SELECT array_agg(key ORDER BY version) FROM cachesync.change_log WHERE relay_at <= now()"
    assert await owner.fetchval(logged) == ["1", "2", "3", "1", "2"]


async def test_table_restored_without_the_library_accepts_rows_and_can_be_installed(
    owner: asyncpg.Connection, postgres: Postgres, database: str
) -> None:
    await owner.execute("CREATE SCHEMA app; CREATE TABLE app.thing (id int PRIMARY KEY, name text)")
    declared = thing(table="app.thing")
    await install(owner, declared, Silent())
    # As if this server had drawn versions faster than one per millisecond.
    await owner.execute("SELECT setval('cachesync.row_version', 9000000000000)")
    await owner.execute("INSERT INTO app.thing VALUES (1, 'a')")
    script = run_client("pg_dump", database, "--schema=app")
    name = f"install_{secrets.token_hex(4)}"
    restored = await asyncpg.connect(postgres.create_database(name))
    # The functions of the triggers are missing.
    errors = restore(postgres.dsn_of(name), script)
    assert errors
    assert all("cachesync" in line for line in errors.splitlines() if "ERROR" in line)
    await restored.execute("INSERT INTO app.thing VALUES (2, 'b'); INSERT INTO app.thing (id) VALUES (3)")
    versions = await restored.fetch("SELECT row_version FROM app.thing ORDER BY id")
    assert [record["row_version"] for record in versions] == [9000000000001, 0, 0]
    await install(restored, declared, Silent())
    version = await restored.fetchval("UPDATE app.thing SET name = 'c' WHERE id = 1 RETURNING row_version")
    assert version > 9000000000001
    await restored.close()
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


async def test_table_can_be_restored_without_its_triggers(
    owner: asyncpg.Connection, postgres: Postgres, database: str, tmp_path: Path
) -> None:
    """The commands in docs/database.md."""
    await owner.execute("CREATE SCHEMA app; CREATE TABLE app.thing (id int PRIMARY KEY, name text)")
    await install(owner, thing(table="app.thing"), Silent())
    await owner.execute("INSERT INTO app.thing VALUES (1, 'a')")
    file, contents = tmp_path / "app.dump", tmp_path / "contents"
    run_client("pg_dump", database, "--format=custom", "--schema=app", f"--file={file}")
    listed = run_client("pg_restore", database, "--list", str(file))
    contents.write_text("".join(one for one in listed.splitlines(keepends=True) if "cachesync" not in one))
    name = f"install_{secrets.token_hex(4)}"
    restored = await asyncpg.connect(postgres.create_database(name))
    target = postgres.dsn_of(name)
    run_client("pg_restore", target, f"--use-list={contents}", "--exit-on-error", str(file))
    await restored.execute("INSERT INTO app.thing VALUES (2, 'b')")
    await restored.close()
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


async def test_upgrade_gives_the_row_version_a_default(owner: asyncpg.Connection) -> None:
    await owner.execute("CREATE TABLE thing (id int PRIMARY KEY)")
    await install(owner, thing(), Silent())
    await owner.execute(
        "ALTER TABLE thing ALTER COLUMN row_version DROP DEFAULT;"
        "UPDATE cachesync.entity SET definition = 'old'"
    )
    await install(owner, thing(), Silent())
    default = "SELECT pg_get_expr(adbin, adrelid) FROM pg_attrdef WHERE adrelid = 'thing'::regclass"
    assert await owner.fetchval(default) == "0"
