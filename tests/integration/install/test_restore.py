"""The page on restoring a backup: after its steps, nothing that was lost is read."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import asyncpg

from cachesync import AsyncCaches
from cachesync.change import Change, Operation
from cachesync.install.installer import install
from cachesync.slots.batch import Applier
from cachesync.slots.clients import blocking_client
from cachesync.value import encode_value
from local.postgres import address
from local.silent import Silent
from tests.integration.conftest import ENTITIES_FILE, REPOSITORY, copied_database

if TYPE_CHECKING:
    import psycopg

    from cachesync.entity import Entity
    from local.postgres import Postgres
    from local.redis import Redis

PAGE = REPOSITORY / "docs" / "restore.md"
STATEMENTS = re.compile(r"^ *```sql\n(.*?)^ *```$", re.MULTILINE | re.DOTALL)
CHANGES = """
SELECT entity, key, version, operation, fingerprint, payload, source, changed_at
FROM cachesync.change_log WHERE version > $1
"""


async def changes_since(owner: asyncpg.Connection, version: int) -> list[Change]:
    """Return what the change log has above a version."""
    return [
        Change(
            record["entity"],
            record["key"],
            record["version"],
            Operation(record["operation"]),
            None
            if record["payload"] is None
            else encode_value(record["version"], record["fingerprint"].encode(), record["payload"].encode()),
            record["source"],
            record["changed_at"],
        )
        for record in await owner.fetch(CHANGES, version)
    ]


async def test_lost_rows_are_not_read_after_the_steps_of_the_page(
    sample_template: str,
    postgres: Postgres,
    administrator: psycopg.Connection,
    redis_sa: Redis,
    entities: dict[str, Entity],
) -> None:
    before = "INSERT INTO student VALUES (1, 'Ann', 20), (2, 'Bob', 30), (3, 'Cid', 40)"

    def caches(dsn: str) -> AsyncCaches:
        login = address(dsn, database=dsn.rpartition("/")[2], user="sa", password="sa-password")
        return AsyncCaches("sa", redis=redis_sa.url, database=login, entities=ENTITIES_FILE)

    async def names(dsn: str) -> list[object]:
        async with caches(dsn) as opened:
            rows = await opened["student"].get_many([1, 2, 3, 4])
        return [row and row["name"] for row in rows.values()]

    with (
        copied_database(postgres, administrator, sample_template) as former,
        copied_database(postgres, administrator, sample_template) as restored,
        blocking_client(redis_sa.url, 5) as redis,
    ):
        stream = Applier(redis, "sa", entities)
        owner = await asyncpg.connect(former)
        await owner.execute(before)
        backed_up = await owner.fetchval("SELECT last_value FROM cachesync.row_version")
        await owner.execute(
            "UPDATE student SET name = 'lost' WHERE id <> 2; DELETE FROM student WHERE id = 2;"
            "INSERT INTO student VALUES (4, 'lost', 50)"
        )
        lost = await changes_since(owner, backed_up)
        await owner.close()
        assert await names(former) == ["lost", None, "lost", "lost"]

        owner = await asyncpg.connect(restored)
        await owner.execute(before)
        highest = await owner.fetchval("SELECT last_value FROM cachesync.row_version")
        for statements in STATEMENTS.findall(PAGE.read_text(encoding="utf-8")):
            await owner.execute(statements)
        await install(owner, entities, Silent())
        stream.apply(await changes_since(owner, highest))
        await owner.close()
        expected = ["Ann", "Bob", "Cid", None]
        assert await names(restored) == expected
        # What a stream had not applied yet, or what that of a new service finds in the topics.
        stream.apply(lost)
        assert await names(restored) == expected
        assert await names(restored) == expected
