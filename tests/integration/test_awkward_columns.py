"""Names of columns that the library's own SQL uses for something else."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachesync.entity import Entity
from cachesync.install import install
from tests.integration.conftest import Silent

if TYPE_CHECKING:
    import asyncpg


async def test_row_is_whole_whatever_its_columns_are_called(admin: asyncpg.Connection) -> None:
    await admin.execute("CREATE TABLE odd (key int PRIMARY KEY, p text, t text, payload text)")
    entity = Entity.model_validate(
        {"name": "odd", "table": "odd", "key": "key", "ttl": "1h", "absent_ttl": "1m", "path": "/odd"}
    )
    await install(admin, {"odd": entity}, Silent())
    await admin.execute("INSERT INTO odd VALUES (1, 'a', 'b', 'c')")
    payload = await admin.fetchval("SELECT payload FROM cachesync.change_log WHERE entity = 'odd'")
    assert payload == '{"key":1,"p":"a","t":"b","payload":"c"}'
