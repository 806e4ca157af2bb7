"""Reads and writes through a service's cache, on a real PostgreSQL and Redis."""

from __future__ import annotations

import asyncio
import gc
import json
from contextlib import asynccontextmanager
from decimal import Decimal
from typing import TYPE_CHECKING, Any

import pytest
import redis as redis_client

from cachesync.entity import load_entities
from cachesync.errors import (
    CacheUnavailableError,
    ConstraintViolatedError,
    DuplicateRowError,
    InvalidValueError,
    NotInstalledError,
    ReferenceViolatedError,
    RowNotFoundError,
    SettingsError,
    VersionMismatchError,
)
from cachesync.install.installer import install
from cachesync.service import publisher
from cachesync.service.cache import EntityCache, Outcome, Read
from cachesync.service.row_input import RowInput
from cachesync.service.table import Table
from cachesync.value import encode_value
from local.silent import Silent
from tests.integration.conftest import ENTITIES_FILE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    import asyncpg

    from cachesync.service.service import Service
    from cachesync.service.table import Commit
    from local.redis import Redis

    OpenService = Callable[..., AbstractAsyncContextManager[Service]]

ANN = b'{"id":1,"name":"Ann","age":20}'


@asynccontextmanager
async def installed(
    declarations: str, admin: asyncpg.Connection, open_service: OpenService, folder: Path
) -> AsyncIterator[Service]:
    """The service sa with the given entities, which are installed first."""
    file = folder / "entities.toml"
    file.write_text(declarations)
    await install(admin, load_entities(file), Silent())
    async with open_service("sa", cachesync_entities=file) as service:
        yield service


@pytest.fixture
async def students(open_service: OpenService) -> AsyncIterator[EntityCache]:
    async with open_service("sa") as service:
        yield service.caches["student"]


@pytest.fixture
async def courses(open_service: OpenService) -> AsyncIterator[EntityCache]:
    async with open_service("sa") as service:
        yield service.caches["course"]


@pytest.fixture
def slots(redis_sa: Redis) -> redis_client.Redis:
    return redis_client.Redis.from_url(redis_sa.url)


def slot_of(slots: redis_client.Redis, name: str) -> bytes:
    """Return the content of a slot, which is empty if the key does not exist."""
    slot = slots.get(name) or b""
    assert isinstance(slot, bytes)
    return slot


async def put(cache: EntityCache, key: int, name: str) -> int:
    body = json.dumps({"id": key, "name": name}).encode()
    return (await cache.replace(str(key), RowInput.from_json(body), None)).version


async def loads(admin: asyncpg.Connection) -> int:
    """Return the number of primary-key lookups in the table so far."""
    await admin.execute("SELECT pg_stat_force_next_flush()")
    await asyncio.sleep(1.1)  # sessions report their statistics at most once per second
    scans: int = await admin.fetchval(
        "SELECT idx_scan FROM pg_stat_user_indexes WHERE indexrelname = 'student_pkey'"
    )
    return scans


async def test_first_read_misses_and_the_next_hits_with_the_same_bytes(
    students: EntityCache, admin: asyncpg.Connection
) -> None:
    await admin.execute("INSERT INTO student VALUES (1, 'Ann', 20)")
    miss = await students.read("1")
    hit = await students.read("1")
    assert (miss.outcome, hit.outcome) == (Outcome.MISS, Outcome.HIT)
    assert hit.row == miss.row
    assert hit.row is not None
    assert hit.row.payload == ANN


async def test_missing_row_is_cached_as_absent_for_a_ttl_of_its_own(
    students: EntityCache, slots: redis_client.Redis
) -> None:
    assert (await students.read("404")).outcome is Outcome.MISS
    assert (await students.read("404")).outcome is Outcome.HIT
    assert slots.get("sa:student:404") == b"A"
    assert 0 < slots.pttl("sa:student:404") <= students.entity.absent_ttl.total_seconds() * 1000


async def test_read_after_a_write_is_a_hit(students: EntityCache) -> None:
    written = await students.insert(RowInput.from_json(ANN))
    read = await students.read("1")
    assert (written.created, written.cached) == (True, True)
    assert (read.outcome, read.row) == (Outcome.HIT, written.row)


async def test_insert_replaces_a_cached_absence(students: EntityCache) -> None:
    await students.read("1")
    await students.insert(RowInput.from_json(ANN))
    assert (await students.read("1")).row is not None


async def test_absence_of_a_generated_key_ends_with_the_next_write(
    courses: EntityCache, slots: redis_client.Redis
) -> None:
    written = await courses.insert(RowInput.from_json(b'{"title":"Logic"}'))
    assert written.row is not None
    slots.set(f"sa:course:{written.row.key}", b"A")
    await courses.merge(written.row.key, RowInput.from_json(b'{"title":"Logic 2"}'), None)
    assert (await courses.read(written.row.key)).row is not None


async def test_deleted_row_is_gone_at_once(students: EntityCache) -> None:
    await put(students, 1, "Ann")
    deleted = await students.delete("1", None)
    assert deleted.row is None
    assert (await students.read("1")).row is None


async def test_delete_has_a_higher_version_than_the_row(students: EntityCache) -> None:
    version = await put(students, 1, "Ann")
    assert (await students.delete("1", None)).version > version


async def test_write_to_an_invalidated_entity_empties_the_slot(courses: EntityCache) -> None:
    written = await courses.insert(RowInput.from_json(b'{"title":"Logic"}'))
    assert written.row is not None
    assert (await courses.read(written.row.key)).outcome is Outcome.MISS
    await courses.merge(written.row.key, RowInput.from_json(b'{"fee":12.50}'), None)
    read = await courses.read(written.row.key)
    assert read.outcome is Outcome.MISS
    assert read.row is not None
    assert json.loads(read.row.payload)["fee"] == 12.5


async def test_replace_sets_omitted_columns_to_their_defaults(courses: EntityCache) -> None:
    body = b'{"title":"Logic","fee":5,"capacity":3}'
    row = (await courses.insert(RowInput.from_json(body))).row
    assert row is not None
    replaced = (await courses.replace(row.key, RowInput.from_json(b'{"title":"Sets"}'), None)).row
    assert replaced is not None
    assert json.loads(replaced.payload) | {"id": None} == {
        "id": None,
        "title": "Sets",
        "fee": 0,
        "starts_at": None,
        "details": None,
        "capacity": None,
    }


async def test_merge_patches_a_jsonb_column_by_member(courses: EntityCache) -> None:
    body = b'{"title":"Logic","details":{"room":"A1","tags":["x"],"lab":{"seats":9,"open":true}}}'
    row = (await courses.insert(RowInput.from_json(body))).row
    assert row is not None
    patch = b'{"details":{"room":null,"lab":{"seats":10},"new":[1]}}'
    merged = (await courses.merge(row.key, RowInput.from_json(patch), None)).row
    assert merged is not None
    assert json.loads(merged.payload)["details"] == {
        "tags": ["x"],
        "lab": {"seats": 10, "open": True},
        "new": [1],
    }


@pytest.mark.parametrize(
    ("patch", "expected"),
    [
        ({"place": {"city": "Ulm"}}, {"place": {"street": "A", "city": "Ulm", "at": {"x": 1, "y": 2}}}),
        ({"place": {"street": None}}, {"place": {"street": None, "city": "B", "at": {"x": 1, "y": 2}}}),
        ({"place": {"at": {"y": 3}}}, {"place": {"street": "A", "city": "B", "at": {"x": 1, "y": 3}}}),
        ({"place": None}, {"place": None}),
        ({"doc": {"a": None, "b": {"c": 2}}}, {"doc": {"b": {"c": 2, "d": 1.10}}}),
        ({"doc": [1]}, {"doc": [1]}),
        ({"doc": None}, {"doc": None}),
    ],
)
async def test_merge_patches_composite_and_json_columns_by_member(
    places: EntityCache, patch: dict[str, Any], expected: dict[str, Any]
) -> None:
    stored = {
        "id": 1,
        "place": {"street": "A", "city": "B", "at": {"x": 1, "y": 2}},
        "doc": {"a": 1, "b": {"c": 1, "d": 1.10}},
    }
    await places.insert(RowInput.from_mapping(stored))
    merged = (await places.merge("1", RowInput.from_mapping(patch), None)).row
    assert merged is not None
    assert json.loads(merged.payload) == stored | expected
    # In an unset column, there is nothing to keep.
    await places.replace("1", RowInput.from_mapping({"id": 1}), None)
    merged = (await places.merge("1", RowInput.from_json(b'{"place":{"at":{"x":7}}}'), None)).row
    assert merged is not None
    assert json.loads(merged.payload)["place"] == {"street": None, "city": None, "at": {"x": 7, "y": None}}


async def test_row_that_grows_too_large_is_rejected(open_service: OpenService) -> None:
    async with open_service("sa", row_limit=1000) as service:
        courses = service.caches["course"]
        key = "6f1c2a34-90ab-4cde-8f01-23456789abcd"
        # Ten characters, which are a thousand when they are written out.
        large = RowInput.from_json(f'{{"id":"{key}","title":"x","details":1e1000}}')
        writes: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: courses.insert(large),
            lambda: courses.replace(key, large, None),
            lambda: courses.merge(key, large, None),
        )
        for write in writes:
            with pytest.raises(InvalidValueError, match=r"1\d\d\d bytes .* maximum is 1000 bytes"):
                await write()
            # There is no row to replace the first time, and one to update the second time.
            await courses.replace(key, RowInput.from_mapping({"id": key, "title": "x"}), None)


async def test_page_of_large_rows_ends_early(open_service: OpenService, admin: asyncpg.Connection) -> None:
    await admin.execute(
        "INSERT INTO student SELECT g, repeat('x', 100 * g), 1 FROM generate_series(1, 9) AS g"
    )
    async with open_service("sa", page_bytes=1000) as service:
        students = service.caches["student"]
        after, sizes, keys = None, [], []
        while True:
            page = await students.page(after, 5)
            sizes.append(len(page))
            keys += [row.key for row in page]
            if not page.more:
                break
            after = page[-1].key
    assert keys == [str(key) for key in range(1, 10)]
    assert sizes == [4, 2, 2, 1]


async def test_page_gets_one_payload_at_most_beyond_its_size(admin: asyncpg.Connection) -> None:
    """A page is read in one round trip, so that the database must end it."""
    query = (
        "SELECT g::text, g::bigint, repeat('x', 400) FROM generate_series(1, $2) AS g WHERE $1::text IS NULL"
    )
    records = await admin.fetch("SELECT key, payload FROM cachesync.page($1, NULL, 100, 1000)", query)
    assert [(record["key"], record["payload"] is None) for record in records] == [
        ("1", False),
        ("2", False),
        ("3", False),
        ("4", True),
    ]


async def test_page_says_whether_rows_follow(students: EntityCache) -> None:
    assert (await students.page(None, 2)).more is False
    for key in (1, 2, 3):
        await put(students, key, "x")
    assert [(await students.page(None, limit)).more for limit in (2, 3, 4)] == [True, False, False]
    assert (await students.page("3", 2)).more is False


# A value of each kind that an input function or a constraint rejects, with an error code of its own.
INVALID = {
    "int4": "1.5",
    "numeric(4,2)": 1000,
    "date": "2026-02-30",
    "timestamptz": "infinity and beyond",
    "interval": "1 fortnight",
    "uuid": "6f1c",
    "bytea": "\\xz",
    "xml": "<a",
    "jsonpath": "$.",
    "tsquery": "a &",
    "int4range": "[2,1]",
    "nummultirange": "{[1,2}",
    "regclass": "missing",
    "regproc": "now.now.now.now",
    "regprocedure": "lower(missing)",
    "regtype": "missing",
    "regrole": "missing",
    "inet": "1.2.3",
    "macaddr": "x",
    "point": "(1",
    "bit(3)": "12",
    "pg_lsn": "x",
    "varchar(3)": "four",
    "vector(3)": [1],
    "int[]": [[1], [2, 3]],
    "positive": -1,
    "word": "two words",
    "positive[]": [1, -1],
    "pair": {"x": "a"},
    "checked_pair": {"x": -1},
    "color": "blue",
}


@pytest.mark.parametrize("kind", INVALID)
async def test_every_error_of_an_input_function_names_its_column(
    open_service: OpenService, admin: asyncpg.Connection, tmp_path: Path, kind: str
) -> None:
    await admin.execute(
        "CREATE EXTENSION vector; CREATE DOMAIN positive AS int CHECK (VALUE > 0);"
        "CREATE DOMAIN word AS text CHECK (VALUE ~ '^\\w+$'); CREATE TYPE pair AS (x int, y int);"
        "CREATE TYPE color AS ENUM ('red'); CREATE DOMAIN checked_pair AS pair CHECK ((VALUE).x > 0);"
        f"CREATE TABLE odd (id positive PRIMARY KEY, v {kind})"
    )
    declaration = '[odd]\ntable = "odd"\nkey = "id"\nttl = "1h"\nabsent_ttl = "1m"\npath = "/odds"\n'
    async with installed(declaration, admin, open_service, tmp_path) as service:
        await admin.execute("INSERT INTO odd VALUES (1)")
        odd = service.caches["odd"]
        row = RowInput.from_mapping({"id": 2, "v": INVALID[kind]})
        patch = RowInput.from_mapping({"v": INVALID[kind]})
        writes: tuple[Callable[[], Awaitable[object]], ...] = (
            lambda: odd.insert(row),
            lambda: odd.replace("2", row, None),
            lambda: odd.replace("1", patch, None),
            lambda: odd.merge("1", patch, None),
        )
        for write in writes:
            with pytest.raises((InvalidValueError, ConstraintViolatedError)) as refused:
                await write()
            assert str(refused.value).startswith("v: ")
        # A key that the domain excludes is the key of no row.
        assert (await odd.read("-1")).row is None
        assert [row.key for row in await odd.page("-1", 10)] == ["1"]
        with pytest.raises(RowNotFoundError):
            await odd.delete("-1", None)


async def test_numbers_keep_every_digit(courses: EntityCache) -> None:
    row = (await courses.insert(RowInput.from_json(b'{"title":"x","fee":99999999.99}'))).row
    assert row is not None
    assert b'"fee":99999999.99' in row.payload


async def test_empty_merge_changes_nothing(students: EntityCache) -> None:
    version = await put(students, 1, "Ann")
    assert (await students.merge("1", RowInput.from_json(b"{}"), None)).version == version


async def test_pages_follow_each_other_in_key_order(students: EntityCache) -> None:
    for key in (30, 4, 200, 1):
        await put(students, key, "x")
    first = await students.page(None, 2)
    second = await students.page(first[-1].key, 10)
    assert [row.key for row in (*first, *second)] == ["1", "4", "30", "200"]


async def test_replace_merge_and_delete_check_the_expected_versions(students: EntityCache) -> None:
    old = await put(students, 1, "Ann")
    new = await put(students, 1, "Bea")
    expected = frozenset({old})
    with pytest.raises(VersionMismatchError):
        await students.replace("1", RowInput.from_json(ANN), expected)
    with pytest.raises(VersionMismatchError):
        await students.merge("1", RowInput.from_json(b'{"age":1}'), expected)
    with pytest.raises(VersionMismatchError):
        await students.delete("1", expected)
    with pytest.raises(VersionMismatchError):
        await students.replace("2", RowInput.from_json(b'{"id":2,"name":"x"}'), frozenset())
    with pytest.raises(RowNotFoundError):
        await students.merge("2", RowInput.from_json(b'{"age":1}'), frozenset({old}))
    assert (await students.merge("1", RowInput.from_json(b'{"age":1}'), frozenset({old, new}))).version > new


async def test_rejected_writes_name_their_columns_and_leave_no_lease(
    courses: EntityCache, students: EntityCache, slots: redis_client.Redis
) -> None:
    await put(students, 1, "Ann")
    with pytest.raises(DuplicateRowError) as duplicate:
        await students.insert(RowInput.from_json(b'{"id":1,"name":"x"}'))
    assert duplicate.value.columns == ("id",)
    with pytest.raises(ConstraintViolatedError) as missing:
        await students.insert(RowInput.from_json(b'{"id":2}'))
    assert missing.value.columns == ("name",)
    with pytest.raises(ConstraintViolatedError) as checked:
        await students.merge("1", RowInput.from_json(b'{"age":151}'), None)
    assert checked.value.columns == ("age",)
    with pytest.raises(InvalidValueError) as invalid:
        await courses.insert(RowInput.from_json(b'{"title":"x","capacity":1,"starts_at":"soon"}'))
    assert invalid.value.column == "starts_at"
    with pytest.raises(RowNotFoundError):
        await students.delete("7", None)
    assert [name for name in slots.scan_iter(_type="string") if slot_of(slots, name).startswith(b"L")] == []


@pytest.mark.parametrize("column", ["color", "internal_note"])
@pytest.mark.parametrize("write", ["insert", "replace", "merge"])
async def test_unknown_columns_are_rejected_by_name(
    courses: EntityCache, slots: redis_client.Redis, write: str, column: str
) -> None:
    """A table column that the entity does not declare is also unknown."""
    row = (await courses.insert(RowInput.from_json(b'{"title":"Logic"}'))).row
    assert row is not None
    unknown = RowInput.from_mapping({"title": "x", column: "red"})
    key = row.key
    writes = {
        "insert": lambda: courses.insert(unknown),
        "replace": lambda: courses.replace(key, unknown, None),
        "merge": lambda: courses.merge(key, unknown, None),
    }
    with pytest.raises(InvalidValueError) as refused:
        await writes[write]()
    assert refused.value.column == column
    assert (await courses.read(row.key)).row == row
    assert [name for name in slots.scan_iter(_type="string") if slot_of(slots, name).startswith(b"L")] == []


async def test_foreign_keys_reject_inserts_and_deletes(
    open_service: OpenService,
    admin: asyncpg.Connection,
    slots: redis_client.Redis,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The new entity has no topic, so closing the service would wait for its messages in vain.
    monkeypatch.setattr(publisher, "_FLUSH_SECONDS", 0.1)
    await admin.execute(
        "CREATE TABLE enrollment (id int PRIMARY KEY, student int CONSTRAINT of_student REFERENCES student)"
    )
    declarations = (
        ENTITIES_FILE.read_text(encoding="utf-8")
        + '[enrollment]\ntable = "enrollment"\nkey = "id"\n'
        + 'ttl = "1h"\nabsent_ttl = "1m"\npath = "/enrollments"\n'
    )
    async with installed(declarations, admin, open_service, tmp_path) as service:
        students, enrollments = service.caches["student"], service.caches["enrollment"]
        await put(students, 1, "Ann")
        await enrollments.insert(RowInput.from_json(b'{"id":1,"student":1}'))
        with pytest.raises(ReferenceViolatedError) as missing:
            await enrollments.insert(RowInput.from_json(b'{"id":2,"student":2}'))
        assert (missing.value.constraint, missing.value.columns) == ("of_student", ("student",))
        with pytest.raises(ReferenceViolatedError) as referred:
            await students.delete("1", None)
        assert referred.value.constraint == "of_student"
        assert (await enrollments.read("2")).row is None
        assert (await students.read("1")).row is not None
    assert [name for name in slots.scan_iter(_type="string") if slot_of(slots, name).startswith(b"L")] == []


@pytest.mark.parametrize("write", ["insert", "replace"])
@pytest.mark.parametrize("cached", [True, False], ids=["cached as absent", "not cached"])
async def test_slot_of_a_key_that_a_trigger_replaces_is_not_filled_with_the_row(
    students: EntityCache, admin: asyncpg.Connection, slots: redis_client.Redis, write: str, *, cached: bool
) -> None:
    await admin.execute(
        "CREATE FUNCTION renumber() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN NEW.id := NEW.id + 100; RETURN NEW; END';"
        "CREATE TRIGGER renumber BEFORE INSERT ON student FOR EACH ROW EXECUTE FUNCTION renumber()"
    )
    if cached:
        assert [(await students.read(key)).row for key in ("1", "101")] == [None, None]
    row = RowInput.from_json(ANN)
    written = await (students.insert(row) if write == "insert" else students.replace("1", row, None))
    assert written.row is not None
    assert (written.row.key, written.created, written.cached) == ("101", True, True)
    # Neither the row of the other key nor a lease that nobody releases.
    assert slots.get("sa:student:1") is None
    assert (await students.read("1")).row is None
    assert (await students.read("101")).row == written.row
    assert [(await students.read(key)).outcome for key in ("1", "101")] == [Outcome.HIT, Outcome.HIT]


async def test_concurrent_misses_on_one_key_in_two_processes_cost_one_database_read(
    open_service: OpenService, admin: asyncpg.Connection
) -> None:
    """Two service objects that share nothing but the cache stand in for two processes."""
    await admin.execute("INSERT INTO student VALUES (1, 'Ann', 20)")
    # However busy the machine is, no read may stop waiting and load for itself.
    patient = {"redis_timeout_ms": 30_000, "lease_ms": 30_000, "lease_wait_ms": 30_000}
    async with open_service("sa", **patient) as one, open_service("sa", **patient) as other:
        before = await loads(admin)
        caches = [one.caches["student"], other.caches["student"]]
        reads = await asyncio.gather(*(caches[i % 2].read("1") for i in range(500)))
        assert await loads(admin) == before + 1
    assert {read.row.payload if read.row else None for read in reads} == {ANN}
    assert [read.outcome for read in reads].count(Outcome.MISS) == 1


async def test_reader_stops_waiting_for_a_lease_and_reads_the_database(
    open_service: OpenService, admin: asyncpg.Connection, slots: redis_client.Redis
) -> None:
    await admin.execute("INSERT INTO student VALUES (1, 'Ann', 20)")
    lease = b"L0000000000000000000" + b"someone"
    slots.set("sa:student:1", lease, px=60_000)
    async with open_service("sa", lease_wait_ms=30) as service:
        reads = await asyncio.gather(*(service.caches["student"].read("1") for _ in range(20)))
    assert {read.outcome for read in reads} == {Outcome.BYPASS}
    assert {read.row.payload if read.row else None for read in reads} == {ANN}
    # What they read is in the floor.
    slot = slot_of(slots, "sa:student:1")
    assert (slot[:1], slot[20:]) == (b"L", b"someone")
    assert slot > lease


async def test_reader_does_not_fill_a_slot_whose_lease_saw_a_newer_change(
    students: EntityCache, admin: asyncpg.Connection, slots: redis_client.Redis
) -> None:
    """A table lock delays the reader, so that the change comes between its lease and its fill."""
    await admin.execute("INSERT INTO student VALUES (1, 'Ann', 20)")
    await admin.execute("BEGIN; LOCK TABLE student IN ACCESS EXCLUSIVE MODE")
    reading = asyncio.create_task(students.read("1"))
    while not slot_of(slots, "sa:student:1").startswith(b"L"):
        await asyncio.sleep(0.005)
    raised = b"L9000000000000000000" + slot_of(slots, "sa:student:1")[20:]
    slots.set("sa:student:1", raised, px=60_000)
    await admin.execute("COMMIT")
    assert (await reading).row is not None
    assert slots.get("sa:student:1") is None


async def test_value_of_another_schema_is_a_miss_and_not_replaced_by_an_older_row(
    students: EntityCache, slots: redis_client.Redis
) -> None:
    version = await put(students, 1, "Ann")
    slots.set("sa:student:1", encode_value(version, b"deadbeef", b'{"old":true}'))
    read = await students.read("1")
    assert read.outcome is Outcome.MISS
    assert (await students.read("1")).outcome is Outcome.HIT
    slots.set("sa:student:1", encode_value(version + 1000, b"deadbeef", b'{"newer":true}'))
    assert (await students.read("1")).outcome is Outcome.MISS
    assert slots.get("sa:student:1") is None


@pytest.mark.parametrize(
    ("error", "reported"), [(RowNotFoundError("none"), []), (ValueError("none"), [ValueError])]
)
async def test_failed_write_of_a_canceled_caller_is_reported_if_it_was_not_rejected(
    students: EntityCache, monkeypatch: pytest.MonkeyPatch, error: Exception, reported: list[type]
) -> None:
    seen: list[type] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: seen.append(type(context["exception"]))
    )
    began, rejected = asyncio.Event(), asyncio.Event()

    async def reject(*_: object) -> None:
        began.set()
        await rejected.wait()
        raise error

    monkeypatch.setattr(Table, "delete", reject)
    deleting = asyncio.create_task(students.delete("404", None))
    await began.wait()
    deleting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await deleting
    rejected.set()
    while students.writes:
        await asyncio.sleep(0)
    del deleting
    gc.collect()
    await asyncio.sleep(0)
    assert seen == reported


async def test_canceled_write_still_updates_the_cache_after_its_commit(
    students: EntityCache, admin: asyncpg.Connection
) -> None:
    await put(students, 1, "Ann")
    await admin.execute("BEGIN; SELECT * FROM student WHERE id = 1 FOR UPDATE")
    writing = asyncio.create_task(students.merge("1", RowInput.from_json(b'{"name":"Bea"}'), None))
    await asyncio.sleep(0.1)
    writing.cancel()
    await admin.execute("COMMIT")
    with pytest.raises(asyncio.CancelledError):
        await writing
    await students.close()
    read = await students.read("1")
    assert read.outcome is Outcome.HIT
    assert read.row is not None
    assert b"Bea" in read.row.payload


async def test_ttls_of_values_are_jittered(students: EntityCache, slots: redis_client.Redis) -> None:
    for key in range(20):
        await put(students, key, "x")
    ttl_ms = students.entity.ttl.total_seconds() * 1000
    ttls = [slots.pttl(f"sa:student:{key}") for key in range(20)]
    assert all(0.89 * ttl_ms < ttl <= ttl_ms for ttl in ttls)
    assert max(ttls) - min(ttls) > 0.01 * ttl_ms


async def test_scripts_are_loaded_again_after_redis_lost_them(
    students: EntityCache, redis_sa: Redis, slots: redis_client.Redis
) -> None:
    await put(students, 1, "Ann")
    redis_sa.restart()
    outcomes = [(await students.read("1")).outcome for _ in range(5)]
    assert outcomes[-1] is Outcome.HIT
    slots.script_flush()
    slots.delete("sa:student:1")
    assert (await students.read("1")).outcome is Outcome.MISS
    assert (await students.read("1")).outcome is Outcome.HIT


async def test_without_redis_reads_bypass_the_cache_and_writes_report_it(
    students: EntityCache, redis_sa: Redis
) -> None:
    await put(students, 1, "Ann")
    redis_sa.stop()
    try:
        read = await students.read("1")
        written = await students.merge("1", RowInput.from_json(b'{"name":"Bea"}'), None)
    finally:
        redis_sa.start()
    assert read.outcome is Outcome.BYPASS
    assert read.row is not None
    assert written.cached is False


async def test_frozen_redis_costs_a_few_timeouts_and_then_nothing(
    students: EntityCache, redis_sa: Redis
) -> None:
    await put(students, 1, "Ann")
    redis_sa.freeze()
    try:
        for _ in range(4):
            assert (await students.read("1")).outcome is Outcome.BYPASS
        # The circuit breaker is open: these reads do not wait for the Redis timeout of 100 ms each.
        reads = [await students.read("1") for _ in range(50)]
        assert {read.outcome for read in reads} == {Outcome.BYPASS}
    finally:
        redis_sa.thaw()
    async with asyncio.timeout(10):
        while (await students.read("1")).outcome is not Outcome.HIT:
            await asyncio.sleep(0.05)


async def test_service_rejects_a_database_that_is_not_installed_as_declared(
    open_service: OpenService, tmp_path: Path
) -> None:
    file = tmp_path / "entities.toml"
    file.write_text(
        '[student]\ntable = "student"\nkey = "id"\ncolumns = ["id", "name"]\n'
        'ttl = "1m"\nabsent_ttl = "1s"\npath = "/s"\n'
    )
    with pytest.raises(NotInstalledError, match=r"'student' is not installed as declared; .* or restart"):
        async with open_service("sa", cachesync_entities=file):
            pass


async def test_writer_does_not_fill_a_lease_that_redis_executed_late(
    students: EntityCache, slots: redis_client.Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the commit and the late lease, the slot is empty and ignores the events of other changes."""
    tokens = []

    async def unanswered(_: str, token: str, *__: object) -> bytes | None:
        tokens.append(token)
        raise CacheUnavailableError

    async def commit_then_late_lease(*arguments: object) -> Commit | None:
        row = await replace(*arguments)  # type: ignore[arg-type]
        slots.set("sa:student:1", b"L0000000000000000000" + tokens[0].encode(), px=60_000)
        return row

    await put(students, 1, "Ann")
    slots.flushall()
    replace = students._table.replace  # noqa: SLF001 - the step between two of the cache's own
    monkeypatch.setattr(students._slots, "lease", unanswered)  # noqa: SLF001
    monkeypatch.setattr(students._table, "replace", commit_then_late_lease)  # noqa: SLF001
    version = await put(students, 1, "Bea")
    assert slot_of(slots, "sa:student:1") == b"L%019d" % version + tokens[0].encode()


async def test_a_key_with_an_unpaired_surrogate_is_rejected_and_disturbs_no_one(
    students: EntityCache, words: EntityCache
) -> None:
    await put(students, 1, "Ann")
    async with asyncio.timeout(30):
        results = await asyncio.gather(
            students.read("1"),
            students.read("\ud800"),
            words.delete("\ud800", None),
            words.insert(RowInput.from_json('{"word": "\\ud800"}')),
            students.read("1"),
            return_exceptions=True,
        )
    assert [type(result) for result in results] == [Read, *3 * [InvalidValueError], Read]
    assert all(str(result) for result in results)


@pytest.mark.parametrize("key", ["abc", "007", "9" * 4301, "", 7, None, b"7"])
async def test_a_key_that_no_row_can_have_is_rejected(
    students: EntityCache, slots: redis_client.Redis, key: Any
) -> None:
    """PostgreSQL reads 007 as 7, but no event has that key."""
    for call in (
        lambda: students.read(key),
        lambda: students.replace(key, RowInput.from_json(ANN), None),
        lambda: students.merge(key, RowInput.from_json(b'{"age":1}'), None),
        lambda: students.delete(key, None),
    ):
        with pytest.raises(InvalidValueError, match=r"^id: "):
            await call()
    if key is not None:
        with pytest.raises(InvalidValueError, match=r"^id: "):
            await students.page(key, 10)
    assert slots.keys("sa:student:*") == []


async def test_every_spelling_of_a_key_names_the_same_slot_and_message(
    courses: EntityCache, admin: asyncpg.Connection, slots: redis_client.Redis
) -> None:
    key = "6f1c2a34-90ab-4cde-8f01-23456789abcd"
    spelled = "{6F1C2A34-90AB-4CDE-8F01-23456789ABCD}"
    assert (await courses.read(spelled)).row is None
    replaced = await courses.replace(spelled, RowInput.from_mapping({"id": key, "title": "Logic"}), None)
    await courses.merge(spelled, RowInput.from_json(b'{"title":"Sets"}'), None)
    assert (await courses.read(spelled)).outcome is Outcome.MISS
    read = await courses.read(key)
    assert (read.outcome, replaced.row is not None and replaced.row.key) == (Outcome.HIT, key)
    assert read.row is not None
    assert read.row.key == key
    assert await courses.page(spelled, 10) == []
    await courses.delete(spelled, None)
    assert slots.keys("sa:course:*") == []
    keys = await admin.fetchval("SELECT array_agg(DISTINCT key) FROM cachesync.change_log")
    assert keys == [key]


@pytest.mark.parametrize("write", ["replace", "merge"])
async def test_a_row_with_another_key_is_rejected(students: EntityCache, write: str) -> None:
    await put(students, 1, "Ann")
    row = RowInput.from_json(b'{"id":2,"name":"Bea"}')
    with pytest.raises(InvalidValueError, match=r"^id: must be '1'"):
        await (students.replace if write == "replace" else students.merge)("1", row, None)


@pytest.mark.parametrize("row", [None, {"id": 1}, '{"id": 1}', b"{}"])
async def test_a_row_that_is_not_a_row_input_is_rejected(students: EntityCache, row: Any) -> None:
    for write in (
        students.insert(row),
        students.replace("1", row, None),
        students.merge("1", row, None),
    ):
        with pytest.raises(InvalidValueError, match="RowInput"):
            await write


@pytest.mark.parametrize("expected", [0, 1, "", "1", b"", [], [1], {"1"}, {1.0}, {True}, {None}])
async def test_a_precondition_that_is_not_a_set_of_versions_is_rejected(
    students: EntityCache, expected: Any
) -> None:
    """An empty text or list must not pass as an empty set, which accepts any version."""
    await put(students, 1, "Ann")
    for write in (
        students.replace("1", RowInput.from_json(ANN), expected),
        students.merge("1", RowInput.from_json(b'{"age":1}'), expected),
        students.delete("1", expected),
    ):
        with pytest.raises(InvalidValueError, match="set of integers"):
            await write
    assert (await students.read("1")).row is not None


@pytest.mark.parametrize("limit", [0, -1, 10**30, "5", 5.0, True, None])
async def test_a_page_of_an_impossible_size_is_rejected(students: EntityCache, limit: Any) -> None:
    with pytest.raises(SettingsError, match="limit"):
        await students.page(None, limit)


async def test_a_version_that_no_row_can_have_is_rejected_with_a_text(students: EntityCache) -> None:
    await put(students, 1, "Ann")
    with pytest.raises(InvalidValueError, match=r"out of .*range"):
        await students.delete("1", frozenset({10**30}))


async def test_a_generated_column_cannot_be_written(words: EntityCache) -> None:
    with pytest.raises(InvalidValueError, match="length"):
        await words.insert(RowInput.from_mapping({"word": "one", "length": 3}))


async def test_decimals_in_json_columns_stay_numbers(words: EntityCache) -> None:
    details = {"rates": [Decimal("1.10")]}
    written = await words.insert(RowInput.from_mapping({"word": "one", "details": details}))
    assert written.row is not None
    assert b'"details":{"rates": [1.10]}' in written.row.payload


@pytest.fixture
async def places(
    open_service: OpenService, admin: asyncpg.Connection, tmp_path: Path
) -> AsyncIterator[EntityCache]:
    """The cache of a table with a composite and a json column."""
    await admin.execute(
        "CREATE TYPE spot AS (x int, y int); CREATE TYPE place AS (street text, city text, at spot);"
        "CREATE TABLE place_of (id int PRIMARY KEY, place place, doc json)"
    )
    declaration = '[place]\ntable = "place_of"\nkey = "id"\nttl = "1h"\nabsent_ttl = "1m"\npath = "/p"\n'
    async with installed(declaration, admin, open_service, tmp_path) as service:
        yield service.caches["place"]


@pytest.fixture
async def words(
    open_service: OpenService, admin: asyncpg.Connection, tmp_path: Path
) -> AsyncIterator[EntityCache]:
    """The cache of a table with a text key, a generated column and a JSON column."""
    await admin.execute(
        "CREATE TABLE word (word text PRIMARY KEY, details jsonb, "
        "length int GENERATED ALWAYS AS (length(word)) STORED)"
    )
    declaration = '[word]\ntable = "word"\nkey = "word"\nttl = "1h"\nabsent_ttl = "1m"\npath = "/words"\n'
    async with installed(declaration, admin, open_service, tmp_path) as service:
        yield service.caches["word"]
