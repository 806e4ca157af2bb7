"""Connections of the background work, and the translation of asyncpg errors."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import pytest

from cachesync.errors import DatabaseError, DatabaseUnavailableError, SettingsError
from cachesync.postgres.connect import connect, connected
from tests.integration.pooler import pooler

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager

    from cachesync.service.service import Service
    from local.postgres import Postgres


@pytest.mark.parametrize(
    "statement",
    ["SELECT 1/0", "SELECT * FROM no_such_table", "not SQL", "DO $$ BEGIN RAISE 'refused'; END $$"],
)
async def test_rejected_statement_is_a_database_error(sample: str, statement: str) -> None:
    with pytest.raises(DatabaseError) as refused:
        async with connected(sample, "test") as connection:
            await connection.execute(statement)
    assert not isinstance(refused.value, DatabaseUnavailableError)
    assert isinstance(refused.value.__cause__, asyncpg.PostgresError)
    assert str(refused.value.__cause__) in str(refused.value)


async def test_rejected_setting_is_a_database_error(sample: str) -> None:
    with pytest.raises(DatabaseError) as refused:
        await connect(sample, "test", settings={"timezone": "Nowhere/At_All"})
    assert not isinstance(refused.value, DatabaseUnavailableError)
    assert isinstance(refused.value.__cause__, asyncpg.PostgresError)


@pytest.mark.parametrize("wrong", ["port", "password", "database"])
async def test_unreachable_database_is_unavailable(worker_dsn: str, postgres: Postgres, wrong: str) -> None:
    dsn = {
        "port": worker_dsn.replace(f":{postgres.port}/", ":1/"),
        "password": worker_dsn.replace(":password@", ":another@"),
        "database": worker_dsn.rpartition("/")[0] + "/no_such_database",
    }[wrong]
    assert dsn != worker_dsn
    with pytest.raises(DatabaseUnavailableError) as unavailable:
        await connect(dsn, "test")
    assert isinstance(unavailable.value.__cause__, OSError | asyncpg.PostgresError)


@pytest.mark.parametrize("ignores_settings", [False, True])
async def test_pooler_is_refused_in_one_line(
    postgres: Postgres,
    worker_dsn: str,
    open_service: Callable[..., AbstractAsyncContextManager[Service]],
    *,
    ignores_settings: bool,
) -> None:
    refused = r"^the database address leads to a connection pooler such as PgBouncer; use the address of .*$"
    async with pooler(postgres.host, postgres.port, ignores_settings=ignores_settings) as port:
        with pytest.raises(SettingsError, match=refused):
            await connect(worker_dsn.replace(f":{postgres.port}/", f":{port}/"), "test")
        with pytest.raises(SettingsError, match=refused):
            async with open_service("sa", db_port=port):
                pass


async def test_broken_connection_is_unavailable(sample: str, admin: asyncpg.Connection) -> None:
    async def break_off() -> None:
        async with connected(sample, "test") as connection:
            await admin.execute("SELECT pg_terminate_backend($1)", connection.get_server_pid())
            await connection.execute("SELECT 1")

    with pytest.raises(DatabaseUnavailableError):
        await break_off()


async def test_errors_of_the_caller_pass_through_and_close_the_connection(
    sample: str, admin: asyncpg.Connection
) -> None:
    async def fail() -> None:
        async with connected(sample, "test of an error"):
            assert await sessions(admin) == 1
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        await fail()
    async with asyncio.timeout(5):
        while await sessions(admin):
            await asyncio.sleep(0.02)


async def sessions(admin: asyncpg.Connection) -> int:
    query = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'test of an error'"
    count: int = await admin.fetchval(query)
    return count
