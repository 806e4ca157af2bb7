"""The commands `cachesync init` and `cachesync check` on a real PostgreSQL."""

from __future__ import annotations

import os
import subprocess
import sys
import tomllib
from typing import TYPE_CHECKING, Any

import pytest
from typer.testing import CliRunner

from cachesync.cli.main import app
from cachesync.entity import load_entities
from local.postgres import address, create_role, run_sql

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from typer.testing import Result

    Run = Callable[..., Result]

LONG = "a_table_with_a_name_of_more_than_forty_letters"
TABLES = f"""
CREATE TABLE customer (id int PRIMARY KEY, name text);
CREATE SCHEMA billing;
CREATE TABLE billing.customer (id uuid PRIMARY KEY);
CREATE TABLE billing."HTTPLogLine" (id bigint PRIMARY KEY);
CREATE TABLE "Größe 1" (code text PRIMARY KEY);
CREATE TABLE "7 \\""tab\t" ("a\\""b\x7f" text PRIMARY KEY);
CREATE TABLE "…" (id int PRIMARY KEY);
CREATE TABLE change_log (id int PRIMARY KEY);
CREATE TABLE health (id int PRIMARY KEY);
CREATE TABLE {LONG}_1 (id int PRIMARY KEY);
CREATE TABLE {LONG}_2 (id int PRIMARY KEY);
CREATE TABLE {LONG}_3 (id int PRIMARY KEY);
CREATE TABLE pair (a int, b "char" UNIQUE, c text, PRIMARY KEY (c, a));
CREATE TABLE part (id int PRIMARY KEY, maker text, code text, price int UNIQUE,
    twice int GENERATED ALWAYS AS (price * 2) VIRTUAL, UNIQUE (code, maker));
"""
UNFIT = """
CREATE TABLE keyless (a int);
CREATE UNLOGGED TABLE scratch (id int);
CREATE TABLE secret (id int PRIMARY KEY); ALTER TABLE secret ENABLE ROW LEVEL SECURITY;
CREATE TABLE measure (id int, day date) PARTITION BY RANGE (day);
CREATE TABLE january PARTITION OF measure FOR VALUES FROM ('2026-01-01') TO ('2026-02-01');
CREATE TABLE "with.dot" (id int PRIMARY KEY);
CREATE TABLE "new\nline" (a int);
CREATE TABLE priced (price money PRIMARY KEY);
CREATE TABLE known (id int PRIMARY KEY); ALTER EXTENSION plpgsql ADD TABLE known;
"""


@pytest.fixture
def run(database: str) -> Run:
    """Runs a command on an empty database, and returns the result if it has this status."""

    def run(*arguments: str, status: int = 0, **environment: str) -> Result:
        result = CliRunner().invoke(
            app, list(arguments), env={"CACHESYNC_DSN": database, "COLUMNS": "60", **environment}
        )
        assert result.exit_code == status, result.output
        return result

    return run


def section(name: str, **fields: Any) -> str:
    fields = {"table": name, "key": "id", "ttl": "1h", "absent_ttl": "1m", "path": f"/{name}s", **fields}
    lines = (f"{field} = {value!r}" for field, value in fields.items() if value is not None)
    return "\n".join((f"[{name}]", *lines, ""))


def test_init_writes_a_file_that_check_accepts_and_install_installs(
    run: Run, database: str, tmp_path: Path
) -> None:
    run_sql(database, TABLES)
    file = tmp_path / "entities.toml"
    written = run("init", "--output", str(file))
    assert (written.stdout, written.stderr) == ("", "entities: 13; tables left out: 0\n")
    assert run("init").stdout == file.read_text(encoding="utf-8")
    declared = load_entities(file)
    assert {name: (entity.table, entity.path) for name, entity in declared.items()} == {
        "table_7_tab": ('7 \\"tab\t', "/table-7-tab"),
        "groe_1": ("Größe 1", "/groe-1"),
        "a_table_with_a_name_of_more_than_forty_l": (
            f"{LONG}_1",
            "/a-table-with-a-name-of-more-than-forty-l",
        ),
        "public_a_table_with_a_name_of_more_than": (f"{LONG}_2", "/public-a-table-with-a-name-of-more-than"),
        "public_a_table_with_a_name_of_more_tha_2": (
            f"{LONG}_3",
            "/public-a-table-with-a-name-of-more-tha-2",
        ),
        "public_change_log": ("change_log", "/public-change-log"),
        "customer": ("customer", "/customer"),
        "public_health": ("health", "/public-health"),
        "pair": ("pair", "/pair"),
        "part": ("part", "/part"),
        "table": ("…", "/table"),
        "billing_customer": ("billing.customer", "/billing-customer"),
        "http_log_line": ("billing.HTTPLogLine", "/http-log-line"),
    }
    assert declared["pair"].key == ("c", "a")
    assert declared["part"].columns == ("id", "maker", "code", "price")
    assert '# unique = [["maker", "code"], "price"]\n' in file.read_text(encoding="utf-8")
    assert "# its generated column 'twice' is virtual" in file.read_text(encoding="utf-8")
    assert declared["customer"].columns is None

    assert run_sql(database, "SELECT to_regnamespace('cachesync')") == ""
    checked = run("check", CACHESYNC_ENTITIES=str(file))
    assert checked.stdout == ""
    assert "no schema 'cachesync'; run `cachesync install`" in checked.stderr
    assert "no problems: " in checked.stderr
    run("install", CACHESYNC_ENTITIES=str(file))
    assert "run `cachesync install`" not in run("check", CACHESYNC_ENTITIES=str(file)).output
    assert tomllib.loads(run("init").stdout) == tomllib.loads(file.read_text(encoding="utf-8"))


def test_init_says_which_tables_it_leaves_out_and_why(run: Run, database: str) -> None:
    run_sql(database, UNFIT)
    refused = run("init", status=1)
    assert refused.stdout == ""
    assert "cachesync: no table can be registered\n" in refused.stderr
    run_sql(database, "CREATE TABLE thing (id int PRIMARY KEY)")
    written = run("init")
    assert list(tomllib.loads(written.stdout)) == ["thing"]
    assert "entities: 1; tables left out: 9 (the end of the file says why)" in written.stderr
    reasons = dict(
        line.removeprefix("# ").split(": ", 1)
        for line in written.stdout.partition("# Left out:\n")[2].splitlines()
    )
    assert reasons.keys() == {
        *(
            "keyless",
            "scratch",
            "secret",
            "measure",
            "january",
            "public.with.dot",
            "new\\nline",
            "priced",
            "known",
        )
    }
    assert reasons["keyless"] == "it has no primary key; run ALTER TABLE keyless ADD PRIMARY KEY (...)"
    assert reasons["scratch"].startswith("it is unlogged")
    assert "; it has no primary key; run" in reasons["scratch"]
    assert reasons["priced"].startswith("its key column 'price' has the type money, whose texts depend on")
    assert reasons["secret"].startswith("it has row security, which a cache cannot apply")
    assert reasons["january"] == "it is a partition of public.measure"
    assert reasons["public.with.dot"].startswith("its table must be the name of a table")
    assert reasons["known"] == "it belongs to the extension plpgsql"


def test_output_to_a_closed_pipe_ends_with_one_line(database: str) -> None:
    run_sql(database, "CREATE TABLE thing (id int PRIMARY KEY)")
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(
        [sys.executable, "-m", "cachesync", "init"],
        env={**os.environ, "CACHESYNC_DSN": database},
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (1, "cachesync: Broken pipe\n")


def test_init_can_be_limited_to_schemas(run: Run, database: str) -> None:
    run_sql(database, "CREATE SCHEMA app; CREATE TABLE app.thing (id int PRIMARY KEY)")
    run_sql(database, "CREATE TABLE other (id int PRIMARY KEY)")
    assert list(tomllib.loads(run("init", "--schema", "app").stdout)) == ["thing"]
    assert set(tomllib.loads(run("init", "--schema", "app", "--schema", "public").stdout)) == {
        "thing",
        "other",
    }
    refused = run("init", "--schema", "publik", status=1)
    assert refused.stderr == "cachesync: schema 'publik' has no tables; did you mean 'public'?\n"


def test_init_overwrites_nothing(run: Run, database: str, tmp_path: Path) -> None:
    run_sql(database, "CREATE TABLE thing (id int PRIMARY KEY)")
    file = tmp_path / "entities.toml"
    file.write_text("mine", encoding="utf-8")
    refused = run("init", "--output", str(file), status=1)
    assert refused.stderr == f"cachesync: {file}: File exists\n"
    assert file.read_text(encoding="utf-8") == "mine"


def test_check_lists_all_problems_of_the_file_and_of_every_table_at_once(
    run: Run, database: str, tmp_path: Path
) -> None:
    run_sql(
        database,
        """
        CREATE UNLOGGED TABLE thing (id money, row_version int, twice int GENERATED ALWAYS AS (1) VIRTUAL);
        ALTER TABLE thing ENABLE ROW LEVEL SECURITY, FORCE ROW LEVEL SECURITY;
        CREATE TABLE good (id int PRIMARY KEY)
        """,
    )
    file = tmp_path / "entities.toml"
    file.write_text(
        section("thing") + section("good") + section("godo") + section("bad", ttl="soon", kee="id"),
        encoding="utf-8",
    )
    checked = run("check", CACHESYNC_ENTITIES=str(file), status=3)
    reasons = [
        "bad.ttl must be a duration",
        "bad.kee is unknown",
        "its key column 'id' has the type money",
        "generated column 'twice' is virtual",
        "it is unlogged",
        "row security also applies to its owner",
        "it has no primary key",
        "it has row security",
        "its own column 'row_version'",
        "table godo: no such table in this database; did you mean 'good'?",
    ]
    lines = checked.stdout.splitlines()
    assert len(lines) == len(reasons)
    for line, reason in zip(lines, reasons, strict=True):
        assert reason in line
    # An installation refuses them with the same words.
    file.write_text(section("thing") + section("good") + section("godo"), encoding="utf-8")
    refused = run("install", CACHESYNC_ENTITIES=str(file), status=1)
    assert refused.stderr.splitlines() == [f"cachesync: {line}" for line in lines[2:]]
    assert run_sql(database, "SELECT to_regnamespace('cachesync')") == ""


def test_check_reports_moved_entities_and_what_an_installation_would_change(
    run: Run, database: str, tmp_path: Path
) -> None:
    run_sql(database, "CREATE TABLE thing (id int PRIMARY KEY); CREATE TABLE other (id int PRIMARY KEY)")
    file = tmp_path / "entities.toml"
    file.write_text(section("thing"), encoding="utf-8")
    run("install", CACHESYNC_ENTITIES=str(file))
    run_sql(database, "ALTER TABLE thing DISABLE TRIGGER ALL")
    file.write_text(section("thing") + section("other"), encoding="utf-8")
    checked = run("check", CACHESYNC_ENTITIES=str(file))
    first, second, last = checked.stderr.splitlines()
    assert first.startswith("entity 'thing': trigger ")
    assert second == "entity 'other' is not installed; run `cachesync install`"
    assert last == "no problems: thing, other"
    file.write_text(section("renamed", table="thing") + section("other"), encoding="utf-8")
    checked = run("check", CACHESYNC_ENTITIES=str(file), status=3)
    (line,) = checked.stdout.splitlines()
    assert line.endswith("run `cachesync uninstall thing` first")
    assert "thing is installed but not declared; `cachesync uninstall thing` removes it" in checked.stderr


def test_check_of_a_database_in_which_nothing_can_be_installed_says_so(
    run: Run, database: str, tmp_path: Path
) -> None:
    run_sql(database, "CREATE SCHEMA cachesync CREATE TABLE x (a int); CREATE TABLE thing (id int)")
    file = tmp_path / "entities.toml"
    file.write_text(section("thing"), encoding="utf-8")
    first, second = run("check", CACHESYNC_ENTITIES=str(file), status=3).stdout.splitlines()
    assert "it has no primary key" in first
    assert "a schema 'cachesync' that does not belong to db-cache-sync" in second


def test_tables_that_cannot_get_a_row_version_or_are_the_librarys_own_are_refused(
    run: Run, database: str, tmp_path: Path
) -> None:
    run_sql(
        database,
        """
        CREATE TYPE shape AS (id int, name text); CREATE TABLE thing OF shape (PRIMARY KEY (id));
        CREATE TABLE good (id int PRIMARY KEY)
        """,
    )
    file = tmp_path / "entities.toml"
    file.write_text(section("good"), encoding="utf-8")
    run("install", CACHESYNC_ENTITIES=str(file))
    own = section("log", table="cachesync.change_log", key="version")
    file.write_text(section("good") + section("thing") + own, encoding="utf-8")
    typed, owned = run("check", CACHESYNC_ENTITIES=str(file), status=3).stdout.splitlines()
    assert typed.endswith("run ALTER TABLE thing NOT OF")
    assert "table cachesync.change_log: it is one of db-cache-sync's own tables" in owned
    refused = run("install", CACHESYNC_ENTITIES=str(file), status=1)
    assert refused.stderr.splitlines() == [f"cachesync: {line}" for line in (typed, owned)]
    assert "thing: its columns are those of a type" in run("init").stdout
    run_sql(database, "ALTER TABLE thing NOT OF")
    file.write_text(section("good") + section("thing"), encoding="utf-8")
    run("install", CACHESYNC_ENTITIES=str(file))


def test_check_and_install_say_which_tables_belong_to_another_user(
    run: Run, database: str, tmp_path: Path
) -> None:
    run_sql(database, "CREATE TABLE thing (id int PRIMARY KEY); CREATE TABLE good (id int PRIMARY KEY)")
    create_role(database, "developer", "password")
    run_sql(database, "ALTER TABLE good OWNER TO developer")
    login = address(
        database,
        database=database.rpartition("/")[2],
        user="developer",
        password="password",
    )
    file = tmp_path / "entities.toml"
    file.write_text(section("thing") + section("good"), encoding="utf-8")
    environment = {"CACHESYNC_DSN": login, "CACHESYNC_ENTITIES": str(file)}
    (line,) = run("check", **environment, status=3).stdout.splitlines()
    assert "table thing: its owner is 'postgres'; connect as the owner" in line
    assert run("install", **environment, status=1).stderr == f"cachesync: {line}\n"
    assert "[thing]" in run("init", CACHESYNC_DSN=login).stdout
    run_sql(database, "DROP OWNED BY developer; DROP ROLE developer")


def test_check_and_install_say_what_discards_lines_of_the_change_log(
    run: Run, database: str, tmp_path: Path
) -> None:
    run_sql(database, "CREATE TABLE thing (id int PRIMARY KEY)")
    file = tmp_path / "entities.toml"
    file.write_text(section("thing"), encoding="utf-8")
    run("install", CACHESYNC_ENTITIES=str(file))
    run_sql(database, "CREATE RULE quiet AS ON INSERT TO cachesync.change_log DO INSTEAD NOTHING")
    checked = run("check", CACHESYNC_ENTITIES=str(file), status=3)
    refusal = "rule quiet of cachesync.change_log can discard changes; drop it first"
    assert checked.stdout == f"{refusal}\n"
    assert refusal in run("install", CACHESYNC_ENTITIES=str(file), status=1).stderr
