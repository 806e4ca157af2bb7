"""Columns whose names the library's SQL uses itself, or whose types reject values in unusual ways."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cachesync.entity import load_entities
from cachesync.errors import ConstraintViolatedError, InstallError, InvalidValueError
from cachesync.install.installer import install, uninstall
from cachesync.postgres.rows import Rows
from cachesync.reconcile.rows import connect_for_rows
from cachesync.service.row_input import RowInput
from local.silent import Silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import asyncpg

    from cachesync.service.service import Service


def declare_odd(folder: Path) -> Path:
    file = folder / "entities.toml"
    file.write_text('[odd]\ntable = "odd"\nkey = "key"\nttl = "1h"\nabsent_ttl = "1m"\npath = "/odd"\n')
    return file


async def test_columns_may_have_names_that_the_sql_uses(admin: asyncpg.Connection, tmp_path: Path) -> None:
    await admin.execute("CREATE TABLE odd (key int PRIMARY KEY, p text, t text, payload text)")
    await install(admin, load_entities(declare_odd(tmp_path)), Silent())
    await admin.execute("INSERT INTO odd VALUES (1, 'a', 'b', 'c')")
    payload = await admin.fetchval("SELECT payload FROM cachesync.change_log WHERE entity = 'odd'")
    assert payload == '{"key":1,"p":"a","t":"b","payload":"c"}'


@pytest.mark.parametrize(
    "table", ["odd (key int PRIMARY KEY, {} text)", "odd ({} int PRIMARY KEY)", "{} (key int)"]
)
async def test_name_that_would_end_the_body_of_a_function_is_refused(
    admin: asyncpg.Connection, tmp_path: Path, table: str
) -> None:
    """The rest of the name would be executed with the privileges of whoever installs."""
    name = "x$cachesync$; ALTER ROLE sa SUPERUSER; SELECT $cachesync$"
    await admin.execute("SET check_function_bodies = off; CREATE TABLE " + table.format(f'"{name}"'))
    odd = load_entities(declare_odd(tmp_path))["odd"]
    changed = {"table": name} if table.startswith("{}") else {}
    with pytest.raises(InstallError, match=r"the name 'x\$cachesync\$.* could end a function's body"):
        await install(admin, {"odd": odd.model_copy(update=changed)}, Silent())
    assert not await admin.fetchval("SELECT rolsuper FROM pg_roles WHERE rolname = 'sa'")


async def test_table_that_got_such_a_name_is_not_uninstalled(
    admin: asyncpg.Connection, tmp_path: Path
) -> None:
    await admin.execute("CREATE TABLE odd (key int PRIMARY KEY)")
    await install(admin, load_entities(declare_odd(tmp_path)), Silent())
    await admin.execute('ALTER TABLE odd RENAME TO "x$cachesync$"')
    with pytest.raises(InstallError, match=r"contains \$cachesync\$; rename it"):
        await uninstall(admin, ["odd"])
    await admin.execute('ALTER TABLE "x$cachesync$" RENAME TO odd')
    assert await uninstall(admin, ["odd"]) == ("odd",)


async def test_value_that_a_domain_rejects_is_reported_with_its_column(
    admin: asyncpg.Connection,
    open_service: Callable[..., AbstractAsyncContextManager[Service]],
    tmp_path: Path,
) -> None:
    await admin.execute("CREATE DOMAIN positive AS int CHECK (VALUE > 0)")
    await admin.execute("CREATE TABLE odd (key int PRIMARY KEY, amount positive, bits bit(2))")
    entities = declare_odd(tmp_path)
    await install(admin, load_entities(entities), Silent())
    async with open_service("sa", cachesync_entities=entities) as service:
        for body in ({"key": 1, "amount": -1}, {"key": 1, "bits": "111", "amount": -1}):
            with pytest.raises(ConstraintViolatedError) as caught:
                await service.caches["odd"].insert(RowInput.from_mapping(body))
            assert caught.value.columns == ("amount",)


@pytest.mark.parametrize("value", ["no_such_table", "a.b.c.d", '"'])
async def test_unknown_name_in_a_regclass_column_is_reported_with_its_column(
    admin: asyncpg.Connection,
    open_service: Callable[..., AbstractAsyncContextManager[Service]],
    tmp_path: Path,
    value: str,
) -> None:
    await admin.execute("CREATE TABLE odd (key int PRIMARY KEY, relation regclass)")
    entities = declare_odd(tmp_path)
    await install(admin, load_entities(entities), Silent())
    async with open_service("sa", cachesync_entities=entities) as service:
        body = json.dumps({"key": 1, "relation": value}).encode()
        with pytest.raises(InvalidValueError) as caught:
            await service.caches["odd"].insert(RowInput.from_json(body))
    assert caught.value.column == "relation"


async def test_services_triggers_and_the_reconciliation_make_the_same_text_of_every_type(
    admin: asyncpg.Connection,
    worker_dsn: str,
    open_service: Callable[..., AbstractAsyncContextManager[Service]],
    tmp_path: Path,
) -> None:
    await admin.execute(
        "CREATE TABLE odd (key int PRIMARY KEY, relation regclass, kinds regtype [], amount money, day date)"
    )
    database = await admin.fetchval("SELECT current_database()")
    await admin.execute(
        f"ALTER DATABASE {database} SET search_path = public;"
        f"ALTER DATABASE {database} SET datestyle = 'SQL, DMY';"
        f"ALTER DATABASE {database} SET quote_all_identifiers = on"
    )
    entities = declare_odd(tmp_path)
    declared = load_entities(entities)
    await install(admin, declared, Silent())
    body = {"key": 1, "relation": "odd", "kinds": "{odd}", "amount": "12.50", "day": "2024-02-03"}
    texts = set()
    async with open_service("sa", cachesync_entities=entities) as service:
        written = await service.caches["odd"].insert(RowInput.from_mapping(body))
        read = await service.caches["odd"].read("1")
        page = await service.caches["odd"].page(None, 1)
        merged = await service.caches["odd"].merge(
            "1", RowInput.from_mapping({"amount": "12.50"}), expected=None
        )
        for row in (written.row, read.row, *page, merged.row):
            assert row is not None
            texts.add(row.payload)
    worker = await connect_for_rows(worker_dsn)
    texts.add((await (await Rows.open(worker, declared["odd"])).read(["1"]))["1"].payload)
    await worker.close()
    logged = await admin.fetch("SELECT payload FROM cachesync.change_log WHERE entity = 'odd'")
    texts.update(record["payload"].encode() for record in logged)
    assert len(texts) == 1
    assert b'"relation":"public.odd","kinds":["public.odd"]' in texts.pop()
