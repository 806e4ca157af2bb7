"""The wheel: built from a clone of the repository, installed into new environments, used from elsewhere."""

from __future__ import annotations

import json
import os
import re
import secrets
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

import cachesync

if TYPE_CHECKING:
    from collections.abc import Iterator

    from local.postgres import Postgres

REPOSITORY = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
# The folders in the wheel, each with the prefix that it loses there.
PACKAGES = {"cachesync/": "", "serving/": "", "plugins/cachesync_airflow/": "plugins/", "dags/": ""}
# Files that only images and checkouts need.
LEFT_OUT = re.compile(r"(.*/)?(Dockerfile|requirements\.txt|\.env\.example)")
BUNDLE = {"name": "db-cache-sync", "classpath": "cachesync_airflow.bundle.CacheSyncDagBundle", "kwargs": {}}
PARSE_BUNDLE = """
import json
from airflow.dag_processing.bundles.manager import DagBundlesManager
from airflow.dag_processing.dagbag import DagBag
bundle = DagBundlesManager().get_bundle("db-cache-sync")
bundle.initialize()
bag = DagBag(dag_folder=bundle.path, bundle_path=bundle.path, bundle_name=bundle.name)
print(json.dumps([str(bundle.path), bag.import_errors, sorted(bag.dags)]))
"""
ENTITIES = """
[thing]
table = "public.thing"
key = "id"
ttl = "1h"
absent_ttl = "30s"
path = "/things"
"""


def run(*command: str | Path, cwd: Path, **environment: str) -> str:
    """Run a command without this process's settings of Python, Airflow and cachesync; return its output."""
    inherited = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PYTHON", "AIRFLOW", "CACHESYNC", "DB_", "VIRTUAL_ENV"))
    }
    ended = subprocess.run(
        command,
        cwd=cwd,
        env={**inherited, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=240,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    return ended.stdout


class Environment:
    """A virtual environment with the wheel, and an empty folder to use it from."""

    def __init__(self, folder: Path, requirement: str) -> None:
        self.cwd = folder / "elsewhere"
        self.cwd.mkdir(parents=True)
        self.programs = folder / "environment" / "bin"
        run(UV, "venv", "--python", sys.executable, folder / "environment", cwd=folder)
        python = self.programs / "python"
        constraints = folder / "constraints.txt"
        # With hashes in the constraints, pip would require one for the wheel as well.
        pins = (REPOSITORY / "requirements.txt").read_text(encoding="utf-8")
        constraints.write_text(re.sub(r" \\\n +--hash=\S+", "", pins), encoding="utf-8")
        install = ["install", "--quiet", "--constraint", str(constraints), requirement]
        try:
            run(UV, "pip", *install, "--python", python, cwd=folder)
        except AssertionError:
            # As in the Makefile: perhaps only pip is configured to reach an index.
            run(sys.executable, "-m", "pip", "--python", python, *install, cwd=folder)

    def run(self, program: str, *arguments: str, **environment: str) -> str:
        return run(self.programs / program, *arguments, cwd=self.cwd, **environment)


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository as of its last commit, without ignored and uncommitted files."""
    folder = tmp_path_factory.mktemp("clone")
    # In a container, the checkout often belongs to another user, whose repository git refuses to read.
    settings = folder / "gitconfig"
    settings.write_text("[safe]\n\tdirectory = *\n", encoding="utf-8")
    clone = folder / "db-cache-sync"
    run("git", "clone", "--quiet", REPOSITORY, clone, cwd=folder, GIT_CONFIG_GLOBAL=str(settings))
    return clone


@pytest.fixture(scope="module")
def wheel(clone: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder, cwd=clone)
    [built] = folder.iterdir()
    return built


@pytest.fixture(scope="module")
def bare(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment without extras."""
    return Environment(tmp_path_factory.mktemp("bare"), str(wheel))


@pytest.fixture(scope="module")
def full(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with the dependencies of the services and of Airflow."""
    extras = f"db-cache-sync[serving,airflow] @ {wheel.as_uri()}"
    return Environment(tmp_path_factory.mktemp("full"), extras)


@pytest.fixture
def airflow(full: Environment, tmp_path: Path) -> dict[str, str]:
    """The settings of an Airflow whose only DAGs are those of the bundle."""
    entities = tmp_path / "entities.toml"
    entities.write_text(ENTITIES, encoding="utf-8")
    return {
        "AIRFLOW_HOME": str(full.cwd.with_name("airflow-home")),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DAG_PROCESSOR__DAG_BUNDLE_CONFIG_LIST": json.dumps([BUNDLE]),
        "CACHESYNC_CACHES": "sa,sb",
        "CACHESYNC_ENTITIES": str(entities),
    }


@pytest.fixture
def database(postgres: Postgres) -> Iterator[str]:
    """The name of a new database with one table."""
    name = f"distribution_{secrets.token_hex(4)}"
    postgres.create_database(name)
    postgres.sql("CREATE TABLE thing (id bigint PRIMARY KEY, name text)", name)
    yield name
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


def test_the_wheel_contains_every_file_of_the_packages_and_no_other(clone: Path, wheel: Path) -> None:
    expected = set()
    for folder, prefix in PACKAGES.items():
        tracked = run("git", "ls-files", folder, cwd=clone).split()
        expected |= {file.removeprefix(prefix) for file in tracked if not LEFT_OUT.fullmatch(file)}
    expected = {re.sub("^dags/", "cachesync_airflow/dags/", file) for file in expected}
    # The expectation itself must not miss these.
    assert {"cachesync/py.typed", "serving/py.typed", "cachesync_airflow/py.typed"} < expected
    suffixes = {".py", ".sql", ".lua", ".typed", ".html", ".css", ".js", ".LICENSE", ""}
    assert suffixes == {Path(file).suffix for file in expected}
    with zipfile.ZipFile(wheel) as archive:
        contained = {file for file in archive.namelist() if ".dist-info/" not in file}
    assert contained == expected


def test_the_library_and_the_command_work_without_extras(
    bare: Environment, postgres: Postgres, database: str
) -> None:
    assert bare.run("cachesync", "--version") == f"cachesync {cachesync.__version__}\n"
    code = "import cachesync; print(cachesync.__file__, *(getattr(cachesync, n) for n in cachesync.__all__))"
    assert bare.run("python", "-W", "error", "-c", code).startswith(str(bare.programs.parent))
    (bare.cwd / "entities.toml").write_text(ENTITIES, encoding="utf-8")
    bare.run("cachesync", "install", CACHESYNC_DSN=postgres.dsn_of(database))
    postgres.sql("INSERT INTO thing VALUES (7, 'a')", database)
    logged = postgres.sql("SELECT entity || ' ' || key FROM cachesync.change_log", database)
    assert logged.strip() == "thing 7"


def test_the_services_start_with_gunicorns_configuration(full: Environment, airflow: dict[str, str]) -> None:
    full.run(
        "gunicorn",
        "--check-config",
        "--config=python:serving.gunicorn_conf",
        "serving.sa:app",
        CACHESYNC_ENTITIES=airflow["CACHESYNC_ENTITIES"],
        DB_USERNAME="sa",
        DB_PASSWORD="password",
    )


def test_airflow_lists_the_provider(full: Environment, airflow: dict[str, str]) -> None:
    providers = json.loads(full.run("airflow", "providers", "list", "--output=json", **airflow))
    [version] = [one["version"] for one in providers if one["package_name"] == "db-cache-sync"]
    assert version == cachesync.__version__


def test_airflow_lists_the_plugin(full: Environment, airflow: dict[str, str]) -> None:
    plugins: list[dict[str, Any]] = json.loads(full.run("airflow", "plugins", "--output=json", **airflow))
    [source] = [one["source"] for one in plugins if one["name"] == "db_cache_sync"]
    assert source.startswith(f"db-cache-sync=={cachesync.__version__}: EntryPoint")


def test_airflow_parses_the_dags_of_the_bundle(full: Environment, airflow: dict[str, str]) -> None:
    printed = full.run("python", "-c", PARSE_BUNDLE, **airflow)
    path, errors, dags = json.loads(printed.splitlines()[-1])
    assert Path(path).is_relative_to(full.programs.parent)
    assert errors == {}
    assert dags == [
        "cache_sync",
        "dead_letter_retry",
        "live_check",
        "outbox_relay",
        "reconcile",
        "stream_check",
    ]
