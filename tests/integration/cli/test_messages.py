"""The commands' errors on a real PostgreSQL, Redis and Kafka: lines in words, all at once."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import pytest
from typer.testing import CliRunner

from cachesync.cli.main import app
from local.postgres import address, create_role
from tests.integration.conftest import ENTITIES_FILE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from local.postgres import Postgres
    from local.redis import Redis

DECLARED = ENTITIES_FILE.read_text(encoding="utf-8")


@pytest.fixture
def environment(worker_dsn: str, topics: str, redis_sa: Redis) -> dict[str, str]:
    return {
        "CACHESYNC_DSN": worker_dsn,
        "CACHESYNC_ENTITIES": str(ENTITIES_FILE),
        "CACHESYNC_REDIS_URLS": f"sa={redis_sa.url}",
        "KAFKA_BOOTSTRAP_SERVERS": topics,
        "COLUMNS": "60",
    }


@pytest.fixture
def problems_of(environment: dict[str, str]) -> Callable[..., list[str]]:
    """Runs a command that must fail, and returns the lines of its error without their prefix."""

    def problems(*arguments: str, **changed: str) -> list[str]:
        ended = CliRunner().invoke(app, list(arguments), env={**environment, **changed})
        assert ended.exit_code == 1, ended.output
        lines = [line for line in ended.stderr.splitlines() if line.startswith("cachesync: ")]
        assert ended.stdout == ""
        return [line.removeprefix("cachesync: ") for line in lines]

    return problems


@pytest.mark.parametrize("command", [["reconcile"], ["dead-letters", "stats"]])
async def test_login_without_the_role_of_the_worker_is_told_what_to_grant(
    problems_of: Callable[..., list[str]], sample: str, command: list[str]
) -> None:
    create_role(sample, "stranger", "password")
    dsn = address(sample, database=sample.rpartition("/")[2], user="stranger", password="password")
    (line,) = await asyncio.to_thread(problems_of, *command, CACHESYNC_DSN=dsn)
    assert line == (
        "PostgreSQL denied a statement: permission denied for schema cachesync; the login needs the role "
        "cachesync_service for a service, or cachesync_worker for the background work: run GRANT <role> TO "
        "<login>, or `cachesync install` if it has that role"
    )


@pytest.mark.parametrize("command", [["reconcile"], ["dead-letters", "stats"]])
async def test_database_without_an_installation_is_told_what_to_run(
    problems_of: Callable[..., list[str]], postgres: Postgres, command: list[str]
) -> None:
    (line,) = await asyncio.to_thread(problems_of, *command, CACHESYNC_DSN=postgres.dsn_of("postgres"))
    assert line.endswith("; run `cachesync install`")


async def test_unknown_names_are_reported_with_the_nearest_right_ones(
    problems_of: Callable[..., list[str]], sample: str
) -> None:
    unknown = ("--entity", "studnet", "--entity", "curse", "--entity", "x")
    assert await asyncio.to_thread(problems_of, "reconcile", *unknown) == [
        f"{ENTITIES_FILE} does not declare entity 'studnet'; did you mean 'student'?",
        f"{ENTITIES_FILE} does not declare entity 'curse'; did you mean 'course'?",
        f"{ENTITIES_FILE} does not declare entity 'x'",
    ]
    assert await asyncio.to_thread(problems_of, "uninstall", "studnet", "x", CACHESYNC_DSN=sample) == [
        "studnet: not installed; did you mean 'student'?; installed entities: course, grade, student",
        "x: not installed; installed entities: course, grade, student",
    ]


async def test_tables_and_columns_are_reported_together_with_the_nearest_right_names(
    problems_of: Callable[..., list[str]], sample: str, tmp_path: Path
) -> None:
    file = tmp_path / "entities.toml"
    file.write_text(
        '[student]\ntable = "studnet"\nkey = "id"\nttl = "1h"\nabsent_ttl = "1m"\npath = "/students"\n'
        '[course]\ntable = "course"\nkey = "id"\ncolumns = ["id", "titel"]\nttl = "1h"\nabsent_ttl = "1m"\n'
        'path = "/courses"\n'
    )
    first, second = await asyncio.to_thread(
        problems_of, "install", CACHESYNC_DSN=sample, CACHESYNC_ENTITIES=str(file)
    )
    assert first == (
        "entity 'student', table studnet: no such table in this database; did you mean 'student'?"
    )
    assert second.startswith(
        "entity 'course', table course: it has no column 'titel'; did you mean 'title'?; its columns: id, "
    )


async def test_file_for_the_report_is_checked_before_the_run(problems_of: Callable[..., list[str]]) -> None:
    assert await asyncio.to_thread(problems_of, "reconcile", "--json", "/nowhere/report.json") == [
        "--json /nowhere/report.json: /nowhere is not a directory"
    ]
    assert await asyncio.to_thread(problems_of, "install", "--entities", "/") == [
        "cannot read the entities file /: Is a directory"
    ]
