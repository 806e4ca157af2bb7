"""The caches of a service of the user's own, on each kind of database access that the user can have."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

import asyncpg
import pytest
import redis as redis_client
from psycopg_pool import AsyncConnectionPool
from pydantic import BaseModel, ConfigDict
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.pool import StaticPool

from cachesync import (
    AsyncCaches,
    DatabaseUnavailableError,
    DeclarationError,
    InvalidValueError,
    NotInstalledError,
    RowTypeError,
    SettingsError,
)
from cachesync.entity import load_entities
from cachesync.install.installer import install
from cachesync.service import borrowed
from cachesync.service.table import Table
from local.silent import Silent
from tests.integration.conftest import ENTITIES_FILE
from tests.integration.own_sessions import engine_url

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from cachesync.change import Row
    from local.redis import Redis

    OpenCaches = Callable[..., AbstractAsyncContextManager[AsyncCaches]]

DATABASES = ("dsn", "asyncpg pool", "psycopg pool", "engine on asyncpg", "engine on psycopg")
COURSE = "7eaa7c00-8b48-44e0-9fce-e36818e26c88"


@pytest.fixture
def slots(redis_sa: Redis) -> redis_client.Redis:
    return redis_client.Redis.from_url(redis_sa.url)


def psycopg_arguments(settings: dict[str, str]) -> dict[str, Any]:
    return {"options": " ".join(f"-c {name}={value}" for name, value in settings.items())}


@asynccontextmanager
async def users_database(kind: str, dsn: str, settings: dict[str, str] | None = None) -> AsyncIterator[Any]:
    """The user's own access to the database, whose sessions have these settings."""
    settings = {"application_name": "users-own", **(settings or {})}
    if kind == "dsn":
        yield dsn
    elif kind == "asyncpg pool":

        async def decode_json(connection: asyncpg.Connection) -> None:
            for name in ("json", "jsonb"):
                await connection.set_type_codec(
                    name, encoder=json.dumps, decoder=json.loads, schema="pg_catalog"
                )

        async with asyncpg.create_pool(
            dsn, min_size=1, max_size=3, server_settings=settings, init=decode_json
        ) as pool:
            yield pool
    elif kind == "psycopg pool":
        async with AsyncConnectionPool(
            dsn, kwargs=psycopg_arguments(settings), min_size=1, max_size=3, open=False
        ) as psycopg_pool:
            yield psycopg_pool
    else:
        driver = kind.rpartition(" ")[2]
        arguments = {"server_settings": settings} if driver == "asyncpg" else psycopg_arguments(settings)
        engine = create_async_engine(engine_url(dsn, driver), connect_args=arguments)
        yield engine
        await engine.dispose()


@pytest.fixture(params=DATABASES)
def kind(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def open_caches(sa_dsn: str, redis_sa: Redis) -> OpenCaches:
    """Opens the caches of sa with one kind of access to the database."""

    @asynccontextmanager
    async def opened(
        kind: str = "dsn",
        *,
        redis_options: str = "?socket_timeout=10",
        entities: Any = ENTITIES_FILE,
        settings: dict[str, str] | None = None,
    ) -> AsyncIterator[AsyncCaches]:
        async with (
            users_database(kind, sa_dsn, settings) as database,
            AsyncCaches(
                "sa", redis=f"{redis_sa.url}{redis_options}", database=database, entities=entities
            ) as caches,
        ):
            yield caches

    return opened


class Queries:
    """The keys that the caches ask the database for: one list for each query."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.keys: list[list[str]] = []
        self._read, self._read_many = Table.read, Table.read_many
        queries = self

        async def read(table: Table, key: str) -> Row | None:
            queries.keys.append([key])
            return await queries._read(table, key)

        async def read_many(table: Table, keys: Sequence[str]) -> dict[str, Row]:
            queries.keys.append(list(keys))
            return await queries._read_many(table, keys)

        patch.setattr(Table, "read", read)
        patch.setattr(Table, "read_many", read_many)


@pytest.fixture
def queries(monkeypatch: pytest.MonkeyPatch) -> Queries:
    return Queries(monkeypatch)


@pytest.fixture
async def students(admin: asyncpg.Connection) -> None:
    await admin.execute("INSERT INTO student SELECT g, 'S' || g, g FROM generate_series(1, 20) AS g")


def student(key: int) -> dict[str, Any]:
    return {"id": key, "name": f"S{key}", "age": key}


def content(slots: redis_client.Redis, key: int) -> bytes:
    """The content of a student's slot."""
    found = slots.get(f"sa:student:{key}") or b""
    assert isinstance(found, bytes)
    return found


def commands(slots: redis_client.Redis) -> dict[str, int]:
    """How often Redis has executed each command."""
    stats: Any = slots.info("commandstats")
    return {name.removeprefix("cmdstat_"): one["calls"] for name, one in stats.items()}


@pytest.mark.usefixtures("students")
async def test_a_row_is_loaded_once_and_then_cached(
    open_caches: OpenCaches, kind: str, queries: Queries
) -> None:
    async with open_caches(kind) as caches:
        assert await caches["student"].get(1) == student(1)
        assert await caches["student"].get(1) == student(1)
        assert await caches["student"].get(404) is None
        assert await caches["student"].get(404) is None
    assert queries.keys == [["1"], ["404"]]


@pytest.mark.usefixtures("students")
async def test_every_spelling_of_a_key_names_the_row(
    open_caches: OpenCaches, admin: asyncpg.Connection, slots: redis_client.Redis
) -> None:
    await admin.execute("INSERT INTO course (id, title) VALUES ($1, 'Logic')", UUID(COURSE))
    async with open_caches() as caches:
        assert await caches["student"].get("7") == await caches["student"].get(7) == student(7)
        for key in (COURSE, COURSE.upper(), UUID(COURSE), f"{{{COURSE}}}"):
            row = await caches["course"].get(key)
            assert row is not None
            assert row["title"] == "Logic"
        spelt: list[str | UUID] = [COURSE.upper(), UUID(COURSE)]
        found = await caches["course"].get_many(spelt)
        assert list(found) == spelt
        assert {row["id"] for row in found.values() if row is not None} == {COURSE}
    assert slots.keys("sa:course:*") == [f"sa:course:{COURSE}".encode()]


async def test_a_key_of_several_columns_is_a_tuple_or_its_text(
    open_caches: OpenCaches, kind: str, admin: asyncpg.Connection, queries: Queries
) -> None:
    await admin.execute("INSERT INTO grade VALUES (7, 'a/b~', 1)")
    async with open_caches(kind) as caches:
        keys: list[str | tuple[int | str, str]] = [(7, "a/b~"), ("7", "a/b~"), "7/a~1b~0", (8, "a/b~")]
        found = await caches["grade"].get_many(keys)
        assert list(found) == keys
        assert found[8, "a/b~"] is None
        row = await caches["grade"].get((7, "a/b~"))
        assert row is not None
        assert row == {"student_id": 7, "subject": "a/b~", "points": 1, "remark": None, "certificate": None}
        assert [found[key] for key in keys[:3]] == [row] * 3
    assert queries.keys == [["7/a~1b~0", "8/a~1b~0"]]


@pytest.mark.parametrize(
    "key",
    ["x", "007", "", "\x00", "\ud800", True, None, 1.0, b"1", ("1", "2"), ((1,),), (), 2**63, 10**5000],
    ids=lambda key: repr(key) if not isinstance(key, int) else f"{key:x}"[:20],
)
async def test_what_is_not_a_key_is_rejected(open_caches: OpenCaches, key: Any) -> None:
    async with open_caches() as caches:
        with pytest.raises(InvalidValueError):
            await caches["student"].get(key)
        with pytest.raises(InvalidValueError):
            await caches["student"].get_many([1, key])


@pytest.mark.usefixtures("students")
async def test_many_rows_take_one_round_trip_if_cached_and_one_query_if_not(
    open_caches: OpenCaches, kind: str, queries: Queries, slots: redis_client.Redis
) -> None:
    async with open_caches(kind) as caches:
        await caches["student"].get_many([1, 2, 3])
        queries.keys.clear()
        found = await caches["student"].get_many([3, 404, 1, 5, 2, 4])
        assert queries.keys == [["404", "5", "4"]]
        assert found == {
            3: student(3),
            404: None,
            1: student(1),
            5: student(5),
            2: student(2),
            4: student(4),
        }
        assert list(found) == [3, 404, 1, 5, 2, 4]
        before = commands(slots)
        assert await caches["student"].get_many(range(1, 6)) == {key: student(key) for key in range(1, 6)}
        after = commands(slots)
    assert len(queries.keys) == 1
    assert after["mget"] == before["mget"] + 1
    assert after.get("evalsha", 0) == before.get("evalsha", 0)


async def test_no_rows_are_none(open_caches: OpenCaches, queries: Queries) -> None:
    async with open_caches() as caches:
        assert await caches["student"].get_many([]) == {}
    assert queries.keys == []


async def test_more_rows_than_are_read_at_once_are_all_found(
    open_caches: OpenCaches, admin: asyncpg.Connection, queries: Queries
) -> None:
    await admin.execute("INSERT INTO student SELECT g, 'S' || g, 1 FROM generate_series(1, 2500) AS g")
    async with open_caches() as caches:
        for _ in range(2):
            found = await caches["student"].get_many(range(1, 2501))
            assert all(row is not None and row["id"] == key for key, row in found.items())
    assert [len(keys) for keys in queries.keys] == [1000, 1000, 500]


@pytest.mark.usefixtures("students")
async def test_concurrent_misses_cost_one_query_for_each_row(
    open_caches: OpenCaches, queries: Queries
) -> None:
    """Of one process, and of another one with the same cache."""
    async with open_caches() as one, open_caches() as other:
        caches = [one["student"], other["student"]]
        for cache in caches:
            # As long as the machine needs; then a read asks the database itself.
            cache._cache._wait_seconds = 30  # noqa: SLF001 - the library has no setting for it
        found = await asyncio.gather(
            *(caches[i % 2].get_many([1 + i % 5, 6, 7, 8]) for i in range(100)),
            *(caches[i % 2].get(6 + i % 3) for i in range(100)),
        )
    loaded = [key for keys in queries.keys for key in keys]
    assert sorted(loaded) == sorted(set(loaded))
    for rows in found[:100]:
        assert isinstance(rows, dict)
        assert all(row == student(int(key)) for key, row in rows.items())


@pytest.mark.usefixtures("students")
async def test_rows_that_another_process_loads_for_too_long_are_read_past_the_cache(
    open_caches: OpenCaches, queries: Queries, slots: redis_client.Redis
) -> None:
    lease = b"L0000000000000000000" + b"someone"
    for key in (1, 2):
        slots.set(f"sa:student:{key}", lease, px=60_000)
    async with open_caches() as caches:
        assert await caches["student"].get_many([1, 2, 3]) == {key: student(key) for key in (1, 2, 3)}
    assert queries.keys == [["3"], ["1", "2"]]
    for key in (1, 2):
        # It did not fill the slot of another's lease, but what it read is in the floor.
        slot = slots.get(f"sa:student:{key}")
        assert isinstance(slot, bytes)
        assert (slot[:1], slot[20:]) == (b"L", b"someone")
        assert slot > lease


@pytest.mark.usefixtures("students")
async def test_rows_that_another_process_loads_in_time_are_taken_from_their_slots(
    open_caches: OpenCaches, queries: Queries, slots: redis_client.Redis
) -> None:
    async with open_caches() as caches:
        await caches["student"].get(1)
        value = content(slots, 1)
        slots.set("sa:student:1", b"L0000000000000000000someone", px=60_000)
        reading = asyncio.create_task(caches["student"].get_many([1, 2]))
        async with asyncio.timeout(10):
            while content(slots, 2)[:1] != b"V":
                await asyncio.sleep(0.005)
        slots.set("sa:student:1", value)
        assert await reading == {1: student(1), 2: student(2)}
    assert queries.keys == [["1"], ["2"]]


@pytest.mark.usefixtures("students")
async def test_a_row_that_changes_while_many_are_loaded_is_not_cached_as_it_was(
    open_caches: OpenCaches, admin: asyncpg.Connection, slots: redis_client.Redis
) -> None:
    """A table lock delays the query, so that a change comes between the leases and the fills."""
    async with open_caches() as caches:
        await admin.execute("BEGIN; LOCK TABLE student IN ACCESS EXCLUSIVE MODE")
        reading = asyncio.create_task(caches["student"].get_many([1, 2]))
        async with asyncio.timeout(10):
            while content(slots, 1)[:1] != b"L":
                await asyncio.sleep(0.005)
        slots.set("sa:student:1", b"L9000000000000000000" + content(slots, 1)[20:], px=60_000)
        await admin.execute("COMMIT")
        assert await reading == {1: student(1), 2: student(2)}
        assert slots.get("sa:student:1") is None
        assert content(slots, 2)[:1] == b"V"


@pytest.mark.usefixtures("students")
async def test_a_failed_query_gives_up_its_leases(
    open_caches: OpenCaches, monkeypatch: pytest.MonkeyPatch, slots: redis_client.Redis
) -> None:
    async def fail(*_: object) -> dict[str, Row]:
        raise DatabaseUnavailableError

    async with open_caches() as caches:
        with monkeypatch.context() as patch:
            patch.setattr(Table, "read_many", fail)
            with pytest.raises(DatabaseUnavailableError):
                await caches["student"].get_many([1, 2])
        assert slots.keys("sa:student:*") == []
        assert await caches["student"].get_many([1, 2]) == {1: student(1), 2: student(2)}


@pytest.mark.usefixtures("students")
async def test_without_redis_the_database_answers(
    open_caches: OpenCaches, kind: str, queries: Queries, redis_sa: Redis
) -> None:
    async with open_caches(kind, redis_options="?socket_timeout=0.2") as caches:
        await caches["student"].get_many([1, 2])
        redis_sa.stop()
        try:
            assert await caches["student"].get(1) == student(1)
            assert await caches["student"].get_many([1, 2, 404]) == {1: student(1), 2: student(2), 404: None}
        finally:
            redis_sa.start()
    assert queries.keys[1:] == [["1"], ["1", "2", "404"]]


TEXTS = (
    "id uuid PRIMARY KEY, at timestamptz, day date, span interval, bytes bytea, ratio float8, total numeric"
)


async def test_rows_have_the_text_of_the_change_log_whatever_the_session_is_set_to(
    open_caches: OpenCaches, kind: str, admin: asyncpg.Connection, slots: redis_client.Redis, tmp_path: Path
) -> None:
    file = tmp_path / "entities.toml"
    file.write_text('[item]\ntable = "item"\nkey = "id"\nttl = "1h"\nabsent_ttl = "1m"\npath = "/items"\n')
    await admin.execute(f"CREATE TABLE item ({TEXTS})")
    await install(admin, load_entities(file), Silent())
    await admin.execute(
        "INSERT INTO item VALUES ($1, '2026-01-02 03:04:05Z', '2026-02-01', '1 day 2 hours', '\\xdead',"
        " 0.1 + 0.2::float8, 120.10)",
        UUID(COURSE),
    )
    settings = {
        "timezone": "Asia/Tokyo",
        "datestyle": "German",
        "intervalstyle": "sql_standard",
        "bytea_output": "escape",
        "extra_float_digits": "-15",
    }
    async with open_caches(kind, entities=file, settings=settings) as caches:
        await caches["item"].get(COURSE)
        alone = slots.get(f"sa:item:{COURSE}")
        slots.flushall()
        await caches["item"].get_many([COURSE])
        together = slots.get(f"sa:item:{COURSE}")
    logged = await admin.fetchval(
        "SELECT payload FROM cachesync.change_log WHERE entity = 'item' AND key <> ''"
    )
    assert isinstance(alone, bytes)
    assert alone[28:].decode() == logged
    assert together == alone


@pytest.mark.usefixtures("students")
@pytest.mark.parametrize("kind", DATABASES[1:])
async def test_no_connection_is_opened_beside_the_users(
    open_caches: OpenCaches, kind: str, admin: asyncpg.Connection
) -> None:
    async with open_caches(kind) as caches:
        await asyncio.gather(*(caches["student"].get_many([key, key + 10]) for key in range(1, 6)))
        sessions = await admin.fetch(
            "SELECT application_name FROM pg_stat_activity"
            " WHERE usename = 'sa' AND datname = current_database()"
        )
    assert {record["application_name"] for record in sessions} == {"users-own"}


@pytest.mark.usefixtures("students")
async def test_connections_that_postgresql_closed_are_replaced(
    open_caches: OpenCaches, kind: str, admin: asyncpg.Connection
) -> None:
    async with open_caches(kind) as caches:
        await asyncio.gather(*(caches["student"].get(key) for key in range(1, 6)))
        await admin.fetch(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE usename = 'sa'"
            " AND datname = current_database()"
        )
        await asyncio.sleep(0.1)
        for key in range(6, 15):
            async with asyncio.timeout(10):
                while True:
                    try:
                        assert await caches["student"].get(key) == student(key)
                    except DatabaseUnavailableError:
                        continue
                    break


@pytest.mark.usefixtures("students")
async def test_each_read_is_reported(sa_dsn: str, redis_sa: Redis) -> None:
    reads: list[tuple[str, str, int]] = []
    async with AsyncCaches(
        "sa",
        redis=redis_sa.url,
        database=sa_dsn,
        entities=ENTITIES_FILE,
        on_read=lambda *read: reads.append(read),
    ) as caches:
        await caches["student"].get(1)
        await caches["student"].get_many([1, 2, 3])
        assert {entity for entity, _, _ in reads} == {"student"}
        assert sum(rows for _, _, rows in reads) == 4
        async with asyncio.timeout(30):
            # A reply of Redis that is late is a BYPASS.
            while reads[-1] != ("student", "HIT", 1):
                await caches["student"].get(1)


# One for which a pool of the library's is asked, and one of the user's own.
@pytest.mark.parametrize("kind", ["dsn", "engine on psycopg"])
@pytest.mark.usefixtures("students")
async def test_a_changed_table_is_read_with_its_new_columns(
    open_caches: OpenCaches, kind: str, admin: asyncpg.Connection
) -> None:
    async with open_caches(kind) as caches:
        for _ in range(8):
            await caches["student"].get_many([1])
            await caches["student"].get(2)
        await admin.execute("ALTER TABLE student ADD COLUMN score numeric NOT NULL DEFAULT 1.50")
        await install(admin, load_entities(ENTITIES_FILE), Silent())
        for key in (3, 4):
            # Sessions that are the user's notice it within some seconds.
            async with asyncio.timeout(30):
                while "score" not in ((await caches["student"].get(key)) or {}):
                    await admin.execute("UPDATE student SET age = age + 1 WHERE id = $1", key)
                    await asyncio.sleep(0.2)


class StudentModel(BaseModel):
    id: int
    name: str


@dataclass
class Course:
    id: UUID
    title: str
    fee: Decimal
    starts_at: datetime | None
    details: Any


class StrictCourse(BaseModel):
    model_config = ConfigDict(strict=True)
    id: UUID
    starts_at: datetime


async def test_rows_are_dicts_models_or_dataclasses(
    open_caches: OpenCaches, admin: asyncpg.Connection
) -> None:
    await admin.execute("INSERT INTO student VALUES (1, 'Ann', NULL)")
    await admin.execute(
        "INSERT INTO course (id, title, fee, starts_at, details) VALUES"
        " ($1, 'Logic', 12345678.10, '2026-01-02 03:04:05Z', '{\"a\": [0.5, 1]}')",
        UUID(COURSE),
    )
    at = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    async with open_caches() as caches:
        for _ in range(2):
            assert await caches["student"].get(1) == {"id": 1, "name": "Ann", "age": None}
            assert await caches["student"].get(1, as_=StudentModel) == StudentModel(id=1, name="Ann")
            assert await caches["student"].get(2, as_=StudentModel) is None
            row = await caches["course"].get(COURSE)
            assert row is not None
            assert str(row["fee"]) == "12345678.10"
            assert row["details"] == {"a": [0.5, 1]}
            assert isinstance(row["details"]["a"][0], float)
            course = Course(UUID(COURSE), "Logic", Decimal("12345678.10"), at, {"a": [0.5, 1]})
            assert await caches["course"].get(COURSE, as_=Course) == course
            assert await caches["course"].get_many([COURSE], as_=Course) == {COURSE: course}
            strict = await caches["course"].get(COURSE, as_=StrictCourse)
            assert strict == StrictCourse(id=UUID(COURSE), starts_at=at)


@pytest.mark.usefixtures("students")
async def test_a_row_that_is_not_of_the_type_is_an_error(open_caches: OpenCaches) -> None:
    async with open_caches() as caches:
        with pytest.raises(RowTypeError, match="the row with the key '1' is no Course"):
            await caches["student"].get(1, as_=Course)


async def test_caches_that_are_not_open_are_an_error(redis_sa: Redis, sa_dsn: str) -> None:
    caches = AsyncCaches("sa", redis=redis_sa.url, database=sa_dsn, entities=ENTITIES_FILE)
    for _ in range(2):
        with pytest.raises(SettingsError, match="not open"):
            caches["student"]
        with pytest.raises(SettingsError, match="not open"):
            await caches.committed([])
        async with caches:
            assert await caches["student"].get(1) is None
            with pytest.raises(SettingsError, match="already open"):
                await caches.open()


async def test_an_unknown_entity_is_an_error(open_caches: OpenCaches) -> None:
    async with open_caches() as caches:
        with pytest.raises(SettingsError, match="'students'; did you mean 'student'"):
            caches["students"]
        with pytest.raises(SettingsError, match="is text, not NoneType"):
            caches[None]  # type: ignore[index]


@pytest.mark.parametrize(
    ("changed", "error", "text"),
    [
        ({"service": "Not A Name"}, SettingsError, "the name of a service"),
        ({"redis": "http://localhost"}, SettingsError, "not a Redis URL"),
        ({"database": object()}, SettingsError, "not object"),
        (
            {"database": create_async_engine("postgresql+asyncpg://x", poolclass=StaticPool)},
            SettingsError,
            "StaticPool",
        ),
        ({"entities": "missing.toml"}, DeclarationError, "cannot read"),
    ],
)
def test_wrong_arguments_are_errors(changed: dict[str, Any], error: type[Exception], text: str) -> None:
    arguments: dict[str, Any] = {
        "service": "sa",
        "redis": "redis://x",
        "database": "postgresql://x",
        "entities": ENTITIES_FILE,
    }
    with pytest.raises(error, match=text):
        AsyncCaches(**(arguments | changed))


async def test_a_database_without_the_database_side_is_an_error(database: str, redis_sa: Redis) -> None:
    with pytest.raises(NotInstalledError, match="run `cachesync install`"):
        async with AsyncCaches("sa", redis=redis_sa.url, database=database, entities=ENTITIES_FILE):
            pass


@pytest.mark.parametrize("kind", [kind for kind in DATABASES if kind != "asyncpg pool"])
async def test_a_database_that_does_not_respond_is_an_error(kind: str, redis_sa: Redis) -> None:
    async with users_database(kind, "postgresql://sa:x@127.0.0.1:1/x") as database:
        with pytest.raises(DatabaseUnavailableError):
            async with AsyncCaches("sa", redis=redis_sa.url, database=database, entities=ENTITIES_FILE):
                pass


@asynccontextmanager
async def pool_of_one(kind: str, dsn: str) -> AsyncIterator[tuple[Any, Callable[[], Any]]]:
    """A pool of the user's own with one connection, and what takes it."""
    if kind == "asyncpg pool":
        async with asyncpg.create_pool(dsn, min_size=1, max_size=1) as pool:
            yield pool, pool.acquire
    else:
        engine = create_async_engine(engine_url(dsn, "asyncpg"), pool_size=1, max_overflow=0)
        yield engine, engine.connect
        await engine.dispose()


@pytest.mark.parametrize("kind", ["asyncpg pool", "engine"])
async def test_reads_within_a_users_pool_that_is_exhausted_fail_in_time(
    kind: str, sa_dsn: str, redis_sa: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(borrowed, "TIMEOUT_SECONDS", 0.5)
    async with (
        pool_of_one(kind, sa_dsn) as (pool, take),
        AsyncCaches("sa", redis=redis_sa.url, database=pool, entities=ENTITIES_FILE) as caches,
    ):
        async with take():
            with pytest.raises(DatabaseUnavailableError):
                await asyncio.wait_for(caches["student"].get(1), 20)
        assert await caches["student"].get(1) is None


@pytest.mark.usefixtures("students")
@pytest.mark.parametrize("driver", ["asyncpg", "psycopg"])
async def test_rows_are_not_read_in_a_transaction_that_others_left_in_the_pool(
    sa_dsn: str, redis_sa: Redis, slots: redis_client.Redis, driver: str
) -> None:
    engine = create_async_engine(engine_url(sa_dsn, driver), pool_reset_on_return=None, pool_size=1)
    async with AsyncCaches("sa", redis=redis_sa.url, database=engine, entities=ENTITIES_FILE) as caches:
        async with engine.connect() as connection:
            own = (await connection.get_raw_connection()).driver_connection
            assert own is not None
            if driver == "asyncpg":
                await own.execute("BEGIN")
            await own.execute("UPDATE public.student SET name = 'uncommitted'")
        with pytest.raises(DatabaseUnavailableError, match="in a transaction"):
            await caches["student"].get(1)
        assert slots.get("sa:student:1") is None
        await own.execute("ROLLBACK")
        assert await caches["student"].get(1) == student(1)
    await engine.dispose()


async def test_caches_that_are_being_opened_are_not_opened_again(sa_dsn: str, redis_sa: Redis) -> None:
    caches = AsyncCaches("sa", redis=redis_sa.url, database=sa_dsn, entities=ENTITIES_FILE)
    opened = await asyncio.gather(caches.open(), caches.open(), return_exceptions=True)
    assert opened[0] is caches
    assert isinstance(opened[1], SettingsError)
    await caches.close()
