"""Columns whose names the library's own SQL uses for something else, or whose types look names up."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from cachesync.entity import Entity, load_entities
from cachesync.errors import InvalidValueError
from cachesync.install import install
from tests.integration.conftest import Silent

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import asyncpg

    from cachesync.service import Service


async def test_row_is_whole_whatever_its_columns_are_called(admin: asyncpg.Connection) -> None:
    await admin.execute("CREATE TABLE odd (key int PRIMARY KEY, p text, t text, payload text)")
    entity = Entity.model_validate(
        {"name": "odd", "table": "odd", "key": "key", "ttl": "1h", "absent_ttl": "1m", "path": "/odd"}
    )
    await install(admin, {"odd": entity}, Silent())
    await admin.execute("INSERT INTO odd VALUES (1, 'a', 'b', 'c')")
    payload = await admin.fetchval("SELECT payload FROM cachesync.change_log WHERE entity = 'odd'")
    assert payload == '{"key":1,"p":"a","t":"b","payload":"c"}'


@pytest.mark.parametrize("value", ["no_such_table", "a.b.c.d", '"'])
async def test_value_whose_type_looks_names_up_is_refused_by_its_column(
    admin: asyncpg.Connection,
    open_service: Callable[..., AbstractAsyncContextManager[Service]],
    tmp_path: Path,
    value: str,
) -> None:
    await admin.execute("CREATE TABLE odd (key int PRIMARY KEY, relation regclass)")
    entities = tmp_path / "entities.toml"
    entities.write_text('[odd]\ntable = "odd"\nkey = "key"\nttl = "1h"\nabsent_ttl = "1m"\npath = "/odd"\n')
    await install(admin, load_entities(entities), Silent())
    async with open_service("sa", cachesync_entities=entities) as service:
        body = json.dumps({"key": 1, "relation": value}).encode()
        with pytest.raises(InvalidValueError) as caught:
            await service.caches["odd"].insert(body, ("key", "relation"))
    assert caught.value.column == "relation"
