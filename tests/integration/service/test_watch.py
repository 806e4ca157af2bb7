"""A service follows its tables: it refuses writes that could be missed until they are installed again."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import asyncpg
import pytest
from redis.asyncio import Redis as RedisClient
from structlog.testing import capture_logs

from cachesync.entity import load_entities
from cachesync.errors import CaptureLostError, DatabaseError, InvalidValueError, NotInstalledError
from cachesync.install.installer import install
from cachesync.postgres.registry import read_registry
from cachesync.service import table, watch
from cachesync.service.cache import Outcome
from cachesync.service.row_input import RowInput
from cachesync.service.service import Service
from local.silent import Silent
from serving.schema import row_schema
from tests.integration.entities_file import install_tables

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from cachesync.change import Row
    from cachesync.entity import Entity
    from cachesync.postgres.connect import Connection
    from cachesync.postgres.registry import Registration
    from cachesync.service.cache import EntityCache
    from cachesync.service.settings import ServiceSettings
    from local.postgres import Postgres
    from local.redis import Redis

    OpenService = Callable[..., AbstractAsyncContextManager[Service]]

TABLE = """
CREATE TYPE mood AS ENUM ('sad', 'happy');
CREATE TABLE word (
    id int PRIMARY KEY, mood mood, moods mood [], letters int,
    twice int GENERATED ALWAYS AS (letters * 2) STORED
);
INSERT INTO word (id, mood, moods, letters) VALUES (1, 'sad', '{sad,happy}', 4)
"""
REGISTERED = "SELECT fingerprint, lost_at FROM cachesync.entity WHERE name = 'word'"
SOON = 200
NEVER = 60_000


@pytest.fixture
async def declared(admin: asyncpg.Connection, tmp_path: Path) -> Path:
    """The entities file of the installed entity `word`."""
    file = tmp_path / "entities.toml"
    file.write_text('[word]\ntable = "word"\nkey = "id"\nttl = "1h"\nabsent_ttl = "1h"\npath = "/words"\n')
    await admin.execute(TABLE)
    await install(admin, load_entities(file), Silent())
    return file


@pytest.fixture
async def service(open_service: OpenService, declared: Path) -> AsyncIterator[Service]:
    """A service that looks at the catalog often."""
    async with open_service("sa", cachesync_entities=declared, schema_check_ms=SOON) as service:
        yield service


@pytest.fixture
async def unaware(open_service: OpenService, declared: Path) -> AsyncIterator[EntityCache]:
    """The cache of a service that looks at the catalog only if a statement fails."""
    async with open_service("sa", cachesync_entities=declared, schema_check_ms=NEVER) as service:
        yield service.caches["word"]


async def until_suspended(cache: EntityCache) -> str:
    async with asyncio.timeout(20):
        while cache.problem is None:
            await asyncio.sleep(0.02)
    return cache.problem


async def until_resumed(cache: EntityCache) -> None:
    async with asyncio.timeout(20):
        while cache.problem is not None:
            await asyncio.sleep(0.02)


def payload(row: Row | None) -> bytes:
    assert row is not None
    return row.payload


async def test_service_refuses_writes_and_goes_past_the_cache_while_triggers_are_off(
    admin: asyncpg.Connection, service: Service, declared: Path
) -> None:
    cache = service.caches["word"]
    await cache.read("1")
    assert (await cache.read("1")).outcome is Outcome.HIT
    assert (await cache.read("2")).row is None
    assert service.problems() == {}
    await admin.execute("ALTER TABLE word DISABLE TRIGGER ALL")
    problem = await until_suspended(cache)
    assert "trigger" in problem
    assert "is disabled; run `cachesync install`" in problem
    assert service.problems() == {"word": problem}
    await admin.execute("UPDATE word SET letters = 5; INSERT INTO word (id, letters) VALUES (2, 6)")
    read = await cache.read("1")
    assert read.outcome is Outcome.BYPASS
    assert b'"letters":5' in payload(read.row)
    for write in (
        cache.insert(RowInput.from_json(b'{"id": 3}')),
        cache.replace("1", RowInput.from_json(b'{"letters": 7}'), None),
        cache.merge("1", RowInput.from_json(b'{"letters": 7}'), None),
        cache.delete("1", None),
    ):
        with pytest.raises(CaptureLostError, match="run `cachesync install`"):
            await write
    assert await admin.fetchval("SELECT letters FROM word WHERE id = 1") == 5
    await install(admin, load_entities(declared), Silent())
    await until_resumed(cache)
    for outcome in (Outcome.MISS, Outcome.HIT):
        read = await cache.read("1")
        assert (read.outcome, b'"letters":5' in payload(read.row)) == (outcome, True)
    written = await cache.merge("1", RowInput.from_json(b'{"letters": 8}'), None)
    assert written.version == await admin.fetchval("SELECT max(version) FROM cachesync.change_log")


@pytest.mark.parametrize(
    ("revoked", "lacking"),
    [
        ("UPDATE ON word", "UPDATE on table public.word"),
        ("SELECT (mood), INSERT (letters) ON word", "INSERT and SELECT on table public.word"),
        ("ALL ON word", "DELETE and INSERT and SELECT and UPDATE on table public.word"),
        ("EXECUTE ON FUNCTION cachesync.latest_version", "EXECUTE on function cachesync.latest_version"),
        ("SELECT ON cachesync.entity", "permission denied for table entity"),
        ("USAGE ON SCHEMA cachesync", "permission denied for schema cachesync"),
    ],
)
async def test_login_that_loses_a_privilege_is_told_what_to_run(
    admin: asyncpg.Connection, service: Service, declared: Path, revoked: str, lacking: str
) -> None:
    cache = service.caches["word"]
    await cache.read("1")
    before = await admin.fetchrow(REGISTERED)
    await admin.execute(f"REVOKE {revoked} FROM cachesync_service")
    problem = await until_suspended(cache)
    assert lacking in problem
    assert "run `cachesync install`" in problem or "or `cachesync install`" in problem
    assert service.problems() == {"word": problem}
    with pytest.raises(CaptureLostError, match="cachesync install"):
        await cache.merge("1", RowInput.from_json(b'{"letters": 7}'), None)
    await install(admin, load_entities(declared), Silent())
    await until_resumed(cache)
    assert (await cache.read("1")).outcome is Outcome.HIT
    assert (
        await admin.fetchrow("SELECT fingerprint, lost_at FROM cachesync.entity WHERE name = 'word'")
        == before
    )
    await cache.merge("1", RowInput.from_json(b'{"letters": 8}'), None)


async def test_statement_that_is_denied_makes_the_service_look_for_lost_privileges(
    admin: asyncpg.Connection, unaware: EntityCache
) -> None:
    await admin.execute("REVOKE UPDATE, SELECT ON word FROM cachesync_service")
    with pytest.raises(NotInstalledError, match=r"SELECT and UPDATE on table public\.word; run `cachesync"):
        await unaware.read("1")
    with pytest.raises(CaptureLostError, match="lacks SELECT and UPDATE"):
        await unaware.merge("1", RowInput.from_json(b'{"letters": 7}'), None)


async def test_installation_after_a_gap_empties_what_the_fingerprint_does_not_invalidate(
    admin: asyncpg.Connection, service: Service, declared: Path, redis_sa: Redis
) -> None:
    """A row that was inserted while the triggers were off is still cached as absent."""
    cache = service.caches["word"]
    assert (await cache.read("2")).row is None
    await admin.execute(
        "ALTER TABLE word DISABLE TRIGGER ALL; INSERT INTO word (id) VALUES (2);"
        "ALTER TABLE word ENABLE TRIGGER ALL"
    )
    await until_suspended(cache)
    await install(admin, load_entities(declared), Silent())
    change = await admin.fetchrow("SELECT operation, published_at FROM cachesync.change_log")
    assert change is not None
    assert tuple(change) == ("truncate", None)
    async with RedisClient.from_url(redis_sa.url) as client:
        assert await client.get("sa:word:2") == b"A"


async def test_service_reads_the_registry_once_however_many_tables_have_changed(
    admin: asyncpg.Connection, open_service: OpenService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The cost of reading it grows with the number of entities."""
    names = [f"word{number}" for number in range(5)]
    tables = "".join(f"CREATE TABLE {name} (id int PRIMARY KEY);" for name in names)
    file, entities = await install_tables(admin, tables, names, tmp_path)
    reads = 0

    async def counted(connection: Connection, **options: bool) -> dict[str, Registration]:
        nonlocal reads
        reads += 1
        return await read_registry(connection, **options)

    async with open_service("sa", cachesync_entities=file, schema_check_ms=NEVER) as service:
        caches = service.caches.values()
        monkeypatch.setattr(watch, "read_registry", counted)
        monkeypatch.setattr(table, "read_registry", counted)
        await admin.execute("".join(f"ALTER TABLE {name} ADD COLUMN letters int;" for name in names))
        await install(admin, entities, Silent())
        await next(iter(caches)).look(0)
        assert [len(cache.columns) for cache in caches] == [2] * len(names)
    assert reads == 1


async def test_look_at_the_catalog_does_not_wait_for_a_table_that_is_locked(
    admin: asyncpg.Connection, unaware: EntityCache
) -> None:
    """As by an `ALTER TABLE` in a transaction that goes on for minutes."""
    async with admin.transaction():
        await admin.execute("ALTER TABLE word ADD COLUMN more int")
        with capture_logs() as logs:
            await unaware.look(0)
    assert ["lock timeout" in log["error"] for log in logs] == [True]
    assert unaware.problem is None


async def test_closing_ends_even_if_a_look_at_the_catalog_waits_for_a_frozen_database(
    postgres: Postgres, open_service: OpenService, declared: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    looking = asyncio.Event()

    async def freeze(connection: Connection, **options: bool) -> dict[str, Registration]:
        postgres.freeze()
        looking.set()
        return await read_registry(connection, **options)

    try:
        async with (
            asyncio.timeout(30),
            open_service("sa", cachesync_entities=declared, schema_check_ms=SOON),
        ):
            monkeypatch.setattr(watch, "read_registry", freeze)
            await looking.wait()
    finally:
        postgres.thaw()


async def test_restarted_service_serves_reads_while_triggers_are_off(
    admin: asyncpg.Connection, open_service: OpenService, declared: Path
) -> None:
    await admin.execute("ALTER TABLE word ENABLE REPLICA TRIGGER cachesync_log_update")
    async with open_service("sa", cachesync_entities=declared) as service:
        assert list(service.problems()) == ["word"]
        assert (await service.caches["word"].read("1")).outcome is Outcome.BYPASS


async def test_service_cannot_start_if_a_served_column_is_missing(
    admin: asyncpg.Connection, settings_of: Callable[..., ServiceSettings], declared: Path
) -> None:
    await admin.execute("ALTER TABLE word DROP COLUMN mood CASCADE")
    with pytest.raises(NotInstalledError, match=r"column 'mood' no longer exists.*run `cachesync install`"):
        await Service.open(settings_of("sa", cachesync_entities=declared))


async def test_renamed_label_is_refused_until_it_is_installed_and_then_served_without_a_restart(
    admin: asyncpg.Connection, service: Service, declared: Path
) -> None:
    cache = service.caches["word"]
    await cache.read("1")
    await admin.execute("ALTER TYPE mood RENAME VALUE 'sad' TO 'gloomy'")
    assert "column 'mood' has changed" in await until_suspended(cache)
    read = await cache.read("1")
    assert read.outcome is Outcome.BYPASS
    assert b'"mood":"gloomy","moods":["gloomy","happy"]' in payload(read.row)
    await install(admin, load_entities(declared), Silent())
    await until_resumed(cache)
    read = await cache.read("1")
    assert read.outcome is Outcome.MISS
    assert b'"gloomy"' in payload(read.row)
    assert row_schema(cache.columns)["properties"]["mood"]["enum"] == ["gloomy", "happy", None]
    await cache.merge("1", RowInput.from_json(b'{"mood": "gloomy"}'), None)


async def test_changed_expression_is_served_without_a_restart(
    admin: asyncpg.Connection, service: Service, declared: Path
) -> None:
    """`SET EXPRESSION` of PostgreSQL 17 does the same: it changes rows without firing a trigger."""
    cache = service.caches["word"]
    assert b'"twice":8' in payload((await cache.read("1")).row)
    await admin.execute(
        "DROP VIEW cachesync.word; ALTER TABLE word DROP COLUMN twice,"
        "ADD COLUMN twice int GENERATED ALWAYS AS (letters * 20) STORED"
    )
    await until_suspended(cache)
    await install(admin, load_entities(declared), Silent())
    await until_resumed(cache)
    read = await cache.read("1")
    assert read.outcome is Outcome.MISS
    assert b'"twice":80' in payload(read.row)


async def test_added_label_is_served_without_an_installation_and_without_a_pause(
    admin: asyncpg.Connection, service: Service
) -> None:
    cache = service.caches["word"]
    await cache.read("1")
    columns = cache.columns
    await admin.execute("ALTER TYPE mood ADD VALUE 'calm' BEFORE 'happy'")
    async with asyncio.timeout(20):
        while cache.columns is columns:
            assert cache.problem is None
            await asyncio.sleep(0.02)
    assert cache.columns[1].labels == ("sad", "calm", "happy")
    assert (await cache.read("1")).outcome is Outcome.HIT
    await cache.merge("1", RowInput.from_json(b'{"mood": "calm"}'), None)


@pytest.mark.parametrize(
    "change",
    [
        "ALTER TABLE word DROP COLUMN moods CASCADE",
        "ALTER TABLE word RENAME moods TO feelings",
        "ALTER TABLE word RENAME TO words",
        "DROP TABLE word CASCADE",
        "ALTER TYPE mood RENAME TO feeling",
        "DROP FUNCTION cachesync.word_redraw; ALTER TABLE word DROP COLUMN row_version CASCADE",
    ],
)
async def test_requests_after_a_schema_change_say_what_to_run(
    admin: asyncpg.Connection, unaware: EntityCache, change: str
) -> None:
    await unaware.read("1")
    await admin.execute(change)
    # The first write finds out, because its statement or its trigger fails.
    patch = RowInput.from_json(b'{"mood": "happy", "letters": 9}')
    with pytest.raises(NotInstalledError, match="run `cachesync install`"):
        await unaware.merge("1", patch, None)
    assert unaware.problem is not None


async def test_read_after_a_schema_change_says_what_to_run(
    admin: asyncpg.Connection, unaware: EntityCache
) -> None:
    await admin.execute("ALTER TABLE word DROP COLUMN moods CASCADE")
    with pytest.raises(NotInstalledError, match=r"column 'moods' no longer exists.*run `cachesync install`"):
        await unaware.read("1")
    with pytest.raises(NotInstalledError, match="run `cachesync install`"):
        await unaware.page(None, 10)


async def test_statement_that_failed_because_of_an_installation_is_repeated(
    admin: asyncpg.Connection, unaware: EntityCache, declared: Path
) -> None:
    await unaware.merge("1", RowInput.from_json(b'{"letters": 9}'), None)
    await admin.execute("ALTER TABLE word DROP COLUMN moods CASCADE")
    await install(admin, load_entities(declared), Silent())
    written = await unaware.merge("1", RowInput.from_json(b'{"letters": 10}'), None)
    assert payload(written.row) == b'{"id":1,"mood":"sad","letters":10,"twice":20}'


async def test_label_that_was_renamed_is_no_error_of_the_client(
    admin: asyncpg.Connection, unaware: EntityCache
) -> None:
    await admin.execute("ALTER TYPE mood RENAME VALUE 'sad' TO 'gloomy'")
    async with asyncio.timeout(20):
        while unaware.problem is None:
            # A client can send invalid values often, so the service does not look at the catalog for each.
            with pytest.raises((NotInstalledError, InvalidValueError)):
                await unaware.merge("1", RowInput.from_json(b'{"mood": "sad"}'), None)
    assert "column 'mood' has changed" in unaware.problem


async def test_invalid_value_stays_an_invalid_value(unaware: EntityCache) -> None:
    for _ in range(2):
        with pytest.raises(InvalidValueError, match="mood"):
            await unaware.merge("1", RowInput.from_json(b'{"mood": "unknown"}'), None)
    assert unaware.problem is None


@pytest.mark.parametrize("error", [asyncpg.InvalidCachedStatementError, asyncpg.OutdatedSchemaCacheError])
async def test_statement_that_was_prepared_for_an_older_schema_is_repeated(
    unaware: EntityCache, monkeypatch: pytest.MonkeyPatch, error: type[Exception]
) -> None:
    table = unaware._table  # noqa: SLF001 - the error depends on the timing of a change of the schema
    read, failures = table.read, [error("outdated")]

    async def outdated_once(key: str) -> Row | None:
        if failures:
            raise DatabaseError from failures.pop()
        return await read(key)

    monkeypatch.setattr(table, "read", outdated_once)
    assert (await unaware.read("1")).outcome is Outcome.MISS


async def test_running_service_serves_the_columns_of_a_new_declaration(
    admin: asyncpg.Connection, service: Service, declared: Path
) -> None:
    cache = service.caches["word"]
    await cache.read("1")
    entity: Entity = load_entities(declared)["word"]
    await install(admin, {"word": entity.model_copy(update={"columns": ("id", "letters")})}, Silent())
    async with asyncio.timeout(20):
        while len(cache.columns) > 2:
            assert cache.problem is None
            await asyncio.sleep(0.02)
    assert payload((await cache.read("1")).row) == b'{"id":1,"letters":4}'
