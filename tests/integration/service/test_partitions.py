"""A service's reads and writes of a partitioned table."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from cachesync import AsyncCaches
from cachesync.errors import DuplicateRowError
from cachesync.service.row_input import RowInput
from tests.integration.entities_file import install_tables

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Mapping
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import asyncpg

    from cachesync.service.cache import EntityCache
    from cachesync.service.service import Service
    from local.redis import Redis

TABLES = """
CREATE TABLE account (id int PRIMARY KEY, code int, n int NOT NULL DEFAULT 0) PARTITION BY RANGE (id);
CREATE TABLE account_high PARTITION OF account FOR VALUES FROM (100) TO (MAXVALUE);
CREATE TABLE account_low (n int NOT NULL DEFAULT 0, id int NOT NULL, code int CONSTRAINT one_code UNIQUE);
ALTER TABLE account ATTACH PARTITION account_low FOR VALUES FROM (MINVALUE) TO (100);
CREATE TABLE total (id int PRIMARY KEY, n int NOT NULL);
INSERT INTO account VALUES (100, 1), (1, 1), (200, 2), (2, 2);
INSERT INTO total VALUES (1, 0);
CREATE FUNCTION count_writes() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    UPDATE total SET n = n + 1;
    RETURN NULL;
END
$$;
CREATE TRIGGER count_writes AFTER INSERT OR UPDATE OR DELETE ON account_low
FOR EACH ROW EXECUTE FUNCTION count_writes();
"""


@pytest.fixture
async def caches(
    open_service: Callable[..., AbstractAsyncContextManager[Service]],
    admin: asyncpg.Connection,
    tmp_path: Path,
) -> AsyncIterator[Mapping[str, EntityCache]]:
    file, _ = await install_tables(admin, TABLES, ("account", "total"), tmp_path)
    async with open_service("sa", cachesync_entities=file) as service:
        yield service.caches


def row(**values: Any) -> RowInput:
    return RowInput.from_mapping(values)


async def total(caches: Mapping[str, EntityCache]) -> int:
    found = (await caches["total"].read("1")).row
    assert found is not None
    count: int = json.loads(found.payload)["n"]
    return count


async def test_write_also_reaches_the_rows_that_a_trigger_of_its_partition_changes(
    caches: Mapping[str, EntityCache], admin: asyncpg.Connection
) -> None:
    accounts = caches["account"]
    assert await total(caches) == 0
    await accounts.insert(row(id=3, code=3))
    assert await total(caches) == 1
    await accounts.replace("3", row(code=4, n=4), None)
    assert await total(caches) == 2
    await accounts.merge("3", row(n=5), None)
    assert await total(caches) == 3
    found = (await accounts.read("3")).row
    assert found is not None
    assert found.version == await admin.fetchval("SELECT row_version FROM account WHERE id = 3")
    await accounts.delete("3", None)
    assert await total(caches) == 4
    assert (await accounts.read("3")).row is None


async def test_violations_name_the_columns_of_the_partition(caches: Mapping[str, EntityCache]) -> None:
    with pytest.raises(DuplicateRowError) as violated:
        await caches["account"].insert(row(id=3, code=1))
    assert violated.value.columns == ("code",)
    with pytest.raises(DuplicateRowError) as violated:
        await caches["account"].insert(row(id=100))
    assert violated.value.columns == ("id",)


async def test_pages_are_in_key_order_across_partitions(caches: Mapping[str, EntityCache]) -> None:
    page = await caches["account"].page(None, 3)
    assert [found.key for found in page] == ["1", "2", "100"]
    assert [found.key for found in await caches["account"].page("100", 3)] == ["200"]


async def test_own_transaction_that_names_a_table_or_its_partitions_is_in_the_slots(
    admin: asyncpg.Connection, sa_dsn: str, redis_sa: Redis, tmp_path: Path
) -> None:
    file, _ = await install_tables(admin, TABLES, ("account", "total"), tmp_path)
    url = f"{redis_sa.url}?socket_timeout=10"
    async with AsyncCaches("sa", redis=url, database=sa_dsn, entities=file) as caches:
        keys = [1, 2, 3, 100, 102, 200]
        await caches["account"].get_many(keys)
        await caches["total"].get(1)
        async with caches.following(admin) as followed:
            await admin.execute(
                "UPDATE account_low SET n = 7 WHERE id = 1;"
                "UPDATE account SET n = 7 WHERE id = 100;"
                "UPDATE account SET id = 102 WHERE id = 2;"
                "DELETE FROM account_high WHERE id = 200;"
                "INSERT INTO account VALUES (3, 3, 7)"
            )
        assert followed.cached
        assert await caches["account"].get_many(keys) == {
            1: {"id": 1, "code": 1, "n": 7},
            2: None,
            3: {"id": 3, "code": 3, "n": 7},
            100: {"id": 100, "code": 1, "n": 7},
            102: {"id": 102, "code": 2, "n": 0},
            200: None,
        }
        assert await caches["total"].get(1) == {"id": 1, "n": await admin.fetchval("SELECT n FROM total")}
