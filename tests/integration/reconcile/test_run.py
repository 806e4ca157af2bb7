"""Reconciliation on real servers during live writes."""

from __future__ import annotations

import asyncio
import gc
import os
import secrets
import signal
import sys
import time
import tracemalloc
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import pytest
import redis as redis_client

from cachesync.entity import load_entities
from cachesync.errors import ReconcileError
from cachesync.install.installer import install
from cachesync.postgres.connect import connect
from cachesync.postgres.rows import Rows
from cachesync.reconcile import run as runs
from cachesync.reconcile.keyspace import parts
from cachesync.reconcile.models import Parameters, Report
from cachesync.reconcile.source import Keyspace
from cachesync.service.row_input import RowInput
from cachesync.slots.bulk import Bulk
from local.silent import Silent
from tests.integration.entities_file import install_tables
from tests.integration.reconcile.live import KEYS, live_writes
from tests.integration.refusals import DELETES, refusing
from tests.integration.slots.test_applier import GARBAGE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from contextlib import AbstractAsyncContextManager

    from cachesync.change import Row
    from cachesync.entity import Entity
    from cachesync.reconcile.chunk import Progress
    from cachesync.service.service import Service
    from cachesync.service.settings import ServiceSettings
    from local.redis import Redis

    OpenService = Callable[..., AbstractAsyncContextManager[Service]]
    Reconcile = Callable[..., Any]

ENTITIES_FILE: Final = Path(__file__).parents[3] / "entities.toml"
ROWS: Final = 50_000
EACH: Final = 1_000
# Keys without live writes; each range has one kind of drift.
(
    UPDATED,
    DELETED,
    INSERTED,
    UPDATED_UNNOTICED,
    DELETED_UNNOTICED,
    RESTORED,
    RESTORED_BEFORE_INSERT,
    RESTORED_BEFORE_DELETE,
    PAYLOADS,
    SCHEMA,
) = (range(start, start + EACH) for start in range(KEYS.stop, KEYS.stop + 10 * EACH, EACH))
FOUND: Final = {
    "stale": [UPDATED, SCHEMA],
    "ahead": [RESTORED],
    "orphan": [DELETED, DELETED_UNNOTICED, RESTORED_BEFORE_INSERT],
    "false_absent": [INSERTED, RESTORED_BEFORE_DELETE],
}
# With the version of the row, so that comparing versions does not find them.
FOUND_BY_DEEP: Final = {**FOUND, "stale": [*FOUND["stale"], UPDATED_UNNOTICED, PAYLOADS]}
OTHER_SCHEMA: Final = b"ffffffff"
# Shorter than many changes take to reach the cache, so that the run encounters changes in flight.
SETTLE_SECONDS: Final = 0.05


@pytest.fixture
def slots(redis_sb: Redis) -> redis_client.Redis:
    return redis_client.Redis.from_url(redis_sb.url)


@pytest.fixture
def reconcile(sample: str, slots: redis_client.Redis, entities: dict[str, Entity]) -> Reconcile:
    """Reconciles the students in sb's cache."""

    async def run(declared: dict[str, Entity] = entities, **asked: Any) -> Report:
        parameters = Parameters.model_validate({"services": ["sb"], "entities": ["student"], **asked})
        name = f"test-{secrets.token_hex(4)}"
        connection = await connect(sample, "test")
        for task in await runs.plan(connection, name, parameters, {"sb": slots}):
            await runs.run_chunk(
                sample, slots, name, task, declared, on_progress=lambda _: None, settle_seconds=SETTLE_SECONDS
            )
        report = await runs.report(connection, name)
        await connection.close()
        return report

    return run


async def expected(admin: asyncpg.Connection) -> dict[str, bytes]:
    """Return the correct content of the slots of all students."""
    records = await admin.fetch(
        "SELECT v.key::text, 'V' || lpad(v.version::text, 19, '0') || e.fingerprint || v.payload AS slot "
        "FROM cachesync.student AS v, cachesync.entity AS e WHERE e.name = 'student'"
    )
    return {f"sb:student:{record['key']}": record["slot"].encode() for record in records}


async def fill(admin: asyncpg.Connection, slots: redis_client.Redis, rows: int) -> None:
    """Insert students, mark them as published long ago, and cache all of them."""
    await admin.execute(
        "INSERT INTO student SELECT i, 'name ' || i, i % 100 FROM generate_series(1, $1::int) AS i", rows
    )
    await publish_all(admin)
    cached = await expected(admin)
    names = list(cached)
    for start in range(0, rows, 10_000):
        slots.mset({name: cached[name] for name in names[start : start + 10_000]})


async def publish_all(admin: asyncpg.Connection, first: int = 0) -> None:
    """Mark changes as published long ago, except those of keys below the first one."""
    await admin.execute(
        "UPDATE cachesync.change_log SET published_at = clock_timestamp() - interval '1 hour' "
        "WHERE published_at IS NULL AND coalesce(key::bigint, $1) >= $1",
        first,
    )


@asynccontextmanager
async def without_triggers(admin: asyncpg.Connection) -> AsyncIterator[None]:
    async with admin.transaction():
        triggers = await admin.fetch(
            "SELECT tgname FROM pg_trigger WHERE tgrelid = 'student'::regclass AND NOT tgisinternal"
        )
        await admin.execute("ALTER TABLE student DISABLE TRIGGER USER")
        yield
        for record in triggers:
            await admin.execute(f'ALTER TABLE student ENABLE ALWAYS TRIGGER "{record["tgname"]}"')


async def inject(admin: asyncpg.Connection, slots: redis_client.Redis) -> None:
    """Introduce every kind of drift, one per range of keys."""
    cached = await back_up(admin)
    # Changes whose events were lost: published, but not in the cache.
    async with admin.transaction():
        await admin.execute("UPDATE student SET age = 7 WHERE id = ANY($1)", list(UPDATED))
        await admin.execute("DELETE FROM student WHERE id = ANY($1)", list(DELETED))
        await publish_all(admin, KEYS.stop)
    async with without_triggers(admin):
        await admin.execute(
            "UPDATE student SET name = 'unnoticed' WHERE id = ANY($1)", list(UPDATED_UNNOTICED)
        )
        await admin.execute("DELETE FROM student WHERE id = ANY($1)", list(DELETED_UNNOTICED))
        restored = [*RESTORED, *RESTORED_BEFORE_INSERT, *RESTORED_BEFORE_DELETE]
        await admin.execute("DELETE FROM student WHERE id = ANY($1)", restored)
        await admin.execute("INSERT INTO student SELECT * FROM backup")
    slots.mset(dict.fromkeys(map(name_of, [*INSERTED, *RESTORED_BEFORE_DELETE]), b"A"))
    slots.mset({name_of(key): cached[name_of(key)] for key in [*RESTORED, *RESTORED_BEFORE_INSERT]})
    slots.mset({name_of(key): cached[name_of(key)].replace(b"name", b"nome") for key in PAYLOADS})
    slots.mset(
        {name_of(key): cached[name_of(key)][:20] + OTHER_SCHEMA + cached[name_of(key)][28:] for key in SCHEMA}
    )


async def back_up(admin: asyncpg.Connection) -> dict[str, bytes]:
    """Back up the rows that are restored later, then change, insert and delete some; return their slots."""
    backed_up = [*RESTORED, *RESTORED_BEFORE_DELETE]
    async with admin.transaction():
        await admin.execute("CREATE TABLE backup AS SELECT * FROM student WHERE id = ANY($1)", backed_up)
        await admin.execute("UPDATE student SET age = 8 WHERE id = ANY($1)", list(RESTORED))
        await admin.execute("DELETE FROM student WHERE id = ANY($1)", list(RESTORED_BEFORE_DELETE))
        await publish_all(admin, KEYS.stop)
    return await expected(admin)


def name_of(key: int) -> str:
    return f"sb:student:{key}"


def contents(slots: redis_client.Redis, keys: range) -> list[bytes | None]:
    found: Any = slots.mget(list(map(name_of, keys)))
    return list(found)


def counts(found: dict[str, list[range]]) -> dict[str, int]:
    return {kind: sum(map(len, ranges)) for kind, ranges in found.items()}


def drift(report: Report) -> dict[str, int]:
    return {kind: getattr(report, kind) for kind in FOUND}


async def test_exactly_the_drift_is_found_and_repaired_during_live_writes(  # noqa: PLR0917
    admin: asyncpg.Connection,
    sample: str,
    slots: redis_client.Redis,
    reconcile: Reconcile,
    settings_of: Callable[..., ServiceSettings],
    record_testsuite_property: Callable[[str, object], None],
) -> None:
    await fill(admin, slots, ROWS)
    rest = range(KEYS.stop, ROWS + 1)
    # On a slow machine, too, writes wait for their cache step.
    patient = {"db_timeout_ms": 30_000, "redis_timeout_ms": 30_000}
    with live_writes(settings_of("sa", **patient), settings_of("sb", **patient), sample) as record:
        await inject(admin, slots)
        before = contents(slots, rest)
        began = time.monotonic()
        shallow = await reconcile(dry_run=True)
        untouched = contents(slots, rest)
        report = await reconcile(deep=True)
        repaired = dict(zip(rest, contents(slots, rest), strict=True))
        flushing = asyncio.create_task(reconcile())
        await asyncio.sleep(0.5)
        slots.flushall()
        flushed = await flushing
        ended = time.monotonic()
    record_testsuite_property("writes_per_second", round(record.rate(began, ended)))

    assert (drift(shallow), shallow.outcome, shallow.repaired) == (counts(FOUND), "drift", 0)
    assert untouched == before
    wrong = counts(FOUND_BY_DEEP)
    assert (drift(report), report.outcome) == (wrong, "repaired")
    assert (report.repaired, report.refused, report.failed) == (sum(wrong.values()), 0, 0)
    assert report.examined >= ROWS - len(KEYS)
    assert {kind: len(keys) for kind, keys in report.samples.items()} == dict.fromkeys(wrong, 10)
    # An empty cache has no drift.
    assert (flushed.outcome, flushed.drift) == ("clean", 0)

    right = await expected(admin)
    emptied = {key for kind in ("ahead", "orphan", "false_absent") for key in chain(*FOUND[kind])}
    assert {key for key, slot in repaired.items() if slot is None} == emptied
    assert all(slot == right[name_of(key)] for key, slot in repaired.items() if slot is not None)

    # The repairs undid no write.
    assert record.undone == []
    assert len(record.times) > 100
    for key, slot in zip(KEYS, contents(slots, KEYS), strict=True):
        row = right.get(name_of(key))
        assert slot in {None, row, b"A" if row is None else row}, key
        assert row is None or int(row[1:20]) >= record.versions.get(key, 0)


async def test_unpublished_and_recently_published_changes_are_not_drift(
    admin: asyncpg.Connection, slots: redis_client.Redis, reconcile: Reconcile
) -> None:
    await fill(admin, slots, 1000)
    slots.set("sb:student:2000", b"A")
    # Most of these rows share lines of the change log.
    await admin.execute("UPDATE student SET age = 1 WHERE id <= 350")
    await admin.execute("DELETE FROM student WHERE id > 900")
    await admin.execute("INSERT INTO student VALUES (2000, 'Ann', 1)")
    assert (await reconcile()).outcome == "clean"
    await admin.execute("UPDATE cachesync.change_log SET changed_at = changed_at - interval '1 hour'")
    report = await reconcile(dry_run=True)
    assert (report.stale, report.orphan, report.false_absent) == (350, 100, 1)
    await admin.execute("UPDATE cachesync.change_log SET published_at = clock_timestamp()")
    assert (await reconcile()).outcome == "clean"
    # Of the row before those of a shared line, and the row after them.
    await admin.execute("UPDATE cachesync.change_log SET published_at = now() - interval '1 hour'")
    await admin.execute("UPDATE cachesync.change_log SET published_at = now() WHERE keys @> '{150}'")
    report = await reconcile(dry_run=True)
    assert (report.stale, report.orphan, report.false_absent) == (250, 100, 1)


@pytest.mark.parametrize("asked", [{}, {"deep": True}, {"mode": "delta"}], ids=["full", "deep", "delta"])
async def test_every_unreadable_slot_is_emptied(
    admin: asyncpg.Connection, slots: redis_client.Redis, reconcile: Reconcile, asked: dict[str, Any]
) -> None:
    rows = len(GARBAGE) + 4
    await fill(admin, slots, rows)
    assert (await reconcile()).outcome == "clean"
    await admin.execute("UPDATE student SET age = 1")
    await admin.execute("UPDATE cachesync.change_log SET published_at = clock_timestamp()")
    slots.flushall()
    right = await expected(admin)
    held = [f"sb:student:{key}" for key in range(1, rows + 1)]
    slots.mset(dict(zip(held, GARBAGE, strict=False)))
    wrong_type, long_lease, lease, value = held[len(GARBAGE) :]
    slots.rpush(wrong_type, "not a slot")
    slots.set(long_lease, b"L" + b"0" * 19 + b"token", px=86_400_000)
    slots.set(lease, b"L" + b"0" * 19 + b"token", px=60_000)
    slots.set(value, right[value], px=60_000)
    report = await reconcile(**asked)
    counts = (report.unreadable, report.repaired, report.drift, report.failed)
    assert counts == (len(GARBAGE) + 2, len(GARBAGE) + 2, len(GARBAGE) + 2, 0)
    assert (report.outcome, report.examined) == ("repaired", len(GARBAGE) + 3)
    assert {name.decode() for name in slots.scan_iter()} == {lease, value}


@pytest.mark.parametrize("how", DELETES)
async def test_slot_that_cannot_be_replaced_is_emptied(
    admin: asyncpg.Connection, slots: redis_client.Redis, reconcile: Reconcile, how: str
) -> None:
    await fill(admin, slots, 10)
    await admin.execute("UPDATE student SET age = 1")
    await publish_all(admin)
    with refusing(slots, how):
        report = await reconcile()
    assert (report.outcome, report.stale, report.repaired) == ("repaired", 10, 10)
    assert slots.dbsize() == 0


async def test_slots_that_redis_does_not_even_delete_are_reported(
    admin: asyncpg.Connection, slots: redis_client.Redis, reconcile: Reconcile
) -> None:
    await fill(admin, slots, 10)
    await admin.execute("UPDATE student SET age = 1")
    await publish_all(admin)
    with refusing(slots, "no deletes"):
        report = await reconcile()
    assert (report.outcome, report.stale, report.failed) == ("unrepaired", 10, 10)
    assert len(report.samples["failed"]) == 10


async def test_foreign_strings_and_other_redis_types_are_emptied(
    admin: asyncpg.Connection, slots: redis_client.Redis, reconcile: Reconcile
) -> None:
    await fill(admin, slots, 100)
    slots.mset({b"sb:student:none": b"x", b"sb:student:\xff\x00": b"V\x00", b"sb:student:007": b"A"})
    slots.mset({b"sb:nobody": b"x", b"sb:nobody:1": b"x", b"sb:student:5": b"nonsense"})
    slots.delete("sb:student:6")
    slots.rpush("sb:student:6", "x")
    report = await reconcile()
    assert (report.outcome, report.unreadable, report.drift, report.repaired) == ("repaired", 4, 4, 4)
    assert slots.exists("sb:student:none", b"sb:student:\xff\x00") == 0
    assert slots.get("sb:nobody:1") == b"x"
    assert slots.exists("sb:student:5", "sb:student:6") == 0


async def test_keys_and_payloads_of_every_type_compare_equal_to_what_services_write(
    admin: asyncpg.Connection,
    slots: redis_client.Redis,
    reconcile: Reconcile,
    open_service: OpenService,
    tmp_path: Path,
) -> None:
    texts = ["a:b", "é", "x\ny", "'; --", "*", "\\", " ", "\x01\x02"]
    file = tmp_path / "entities.toml"
    await admin.execute("CREATE TABLE word (word text PRIMARY KEY)")
    file.write_text(
        ENTITIES_FILE.read_text(encoding="utf-8")
        + '[word]\ntable = "word"\nkey = "word"\nttl = "1h"\nabsent_ttl = "1m"\npath = "/words"\n'
    )
    declared = load_entities(file)
    await install(admin, declared, Silent())
    course = {
        "title": "Latin",
        "fee": 1.5,
        "starts_at": "2026-01-01T00:00:00+02:00",
        "details": {"b": 1, "a": []},
    }
    async with open_service("sb", cachesync_entities=file) as sb:
        for name, body in [("course", course)] * len(texts) + [("word", {"word": text}) for text in texts]:
            cache = sb.caches[name]
            written = await cache.insert(RowInput.from_mapping(body))
            assert written.row is not None
            await cache.read(written.row.key)
    report = await reconcile(declared, entities=["course", "word"], deep=True)
    assert (report.examined, report.outcome) == (2 * len(texts), "clean")

    await admin.execute("UPDATE course SET fee = 2; UPDATE word SET word = word || '!'")
    await admin.execute("UPDATE cachesync.change_log SET changed_at = changed_at - interval '1 hour'")
    report = await reconcile(declared, entities=["course", "word"], deep=True)
    assert (report.stale, report.orphan, report.repaired) == (len(texts), len(texts), 2 * len(texts))
    # A repair empties the slots of courses, which are invalidated.
    assert slots.keys("sb:course:*") + slots.keys("sb:word:*") == []

    await admin.execute("INSERT INTO word VALUES ('')")
    await admin.execute("UPDATE cachesync.change_log SET changed_at = changed_at - interval '1 hour'")
    slots.set("sb:word:", b"A")
    assert (await reconcile(declared, entities=["word"])).false_absent == 1


@pytest.mark.parametrize("deep", [False, True])
async def test_slots_of_keys_of_several_columns_are_compared_with_their_rows(
    admin: asyncpg.Connection,
    slots: redis_client.Redis,
    reconcile: Reconcile,
    open_service: OpenService,
    deep: bool,  # noqa: FBT001 - pytest passes it by name
) -> None:
    subjects = ["Art", "Art/Music", "~", "", "a\nb", "ä'"]
    async with open_service("sb") as sb:
        for number in range(300):
            subject = subjects[number % len(subjects)]
            row = {"student_id": number, "subject": subject}
            await sb.caches["grade"].insert(RowInput.from_mapping(row))
            await sb.caches["grade"].read((str(number), subject))
    await admin.execute(
        "UPDATE cachesync.change_log SET published_at = now() - interval '1 hour',"
        " changed_at = changed_at - interval '1 hour'"
    )
    clean = await reconcile(entities=["grade"], deep=deep)
    assert (clean.examined, clean.outcome) == (300, "clean")

    # Lost changes: of rows, of a part of their keys, and of rows that were absent.
    slots.set("sb:grade:1000/a~1b", b"A")
    await admin.execute(
        "UPDATE grade SET points = 1 WHERE student_id < 60;"
        "UPDATE grade SET subject = subject || '/' WHERE student_id BETWEEN 60 AND 99;"
        "DELETE FROM grade WHERE student_id >= 290; INSERT INTO grade VALUES (1000, 'a/b');"
        "UPDATE cachesync.change_log SET published_at = now() - interval '1 hour',"
        " changed_at = changed_at - interval '1 hour' WHERE published_at IS NULL"
    )
    # Slots of other programs, under names that are no keys.
    slots.mset({"sb:grade:7": b"A", "sb:grade:x/y": b"A", "sb:grade:1/a/b": b"A"})
    report = await reconcile(entities=["grade"], deep=deep)
    assert (report.stale, report.orphan, report.false_absent) == (60, 50, 1)
    assert (report.outcome, report.repaired) == ("repaired", 111)
    assert (await reconcile(entities=["grade"], deep=deep)).outcome == "clean"


@pytest.mark.parametrize("mode", ["full", "delta"])
async def test_false_absent_of_unique_values_is_repaired(
    admin: asyncpg.Connection, slots: redis_client.Redis, reconcile: Reconcile, mode: str
) -> None:
    published = (
        "UPDATE cachesync.change_log SET published_at = now() - interval '{}' WHERE published_at IS NULL"
    )
    await admin.execute("INSERT INTO grade VALUES (0, 'a');" + published.format("1 hour"))
    await reconcile(entities=["grade"])
    await admin.execute(
        "INSERT INTO grade SELECT n, 'a', 1, NULL, 'c/' || n FROM generate_series(1, 200) AS n;"
        + published.format("10 seconds")
    )
    names = [f"sb:grade@certificate:c/{number}" for number in range(1, 301)]
    slots.mset(dict.fromkeys(names, b"A"))
    # Late, but never wrong: a read compares them with the row.
    slots.mset(
        {names[0]: b"V%019d012345677/b" % 10**16, "sb:grade@certificate:gone": b"V%019d012345677/b" % 5}
    )
    slots.set("sb:grade@certificate:c/301", b"junk")
    report = await reconcile(entities=["grade"], mode=mode)
    assert (report.false_absent, report.repaired - report.unreadable) == (199, 199)
    assert report.unreadable == (mode == "full")
    assert set(report.services["sb"]) == {"grade", "grade@certificate"}
    assert slots.exists(*names[:200]) == 1
    assert slots.exists(*names[200:]) == 100


async def test_drift_of_a_partitioned_table_is_repaired(
    admin: asyncpg.Connection, slots: redis_client.Redis, reconcile: Reconcile, tmp_path: Path
) -> None:
    tables = (
        "CREATE TABLE item (id int PRIMARY KEY, n int NOT NULL DEFAULT 0) PARTITION BY RANGE (id);"
        "CREATE TABLE item_low PARTITION OF item FOR VALUES FROM (MINVALUE) TO (100);"
        "CREATE TABLE item_high PARTITION OF item FOR VALUES FROM (100) TO (MAXVALUE);"
    )
    _, declared = await install_tables(admin, tables, ("item",), tmp_path)
    await admin.execute("INSERT INTO item VALUES (1), (2), (100), (200)")
    as_slots = (
        "SELECT 'sb:item:' || v.key AS name,"
        " 'V' || lpad(v.version::text, 19, '0') || e.fingerprint || v.payload AS slot "
        "FROM cachesync.item AS v, cachesync.entity AS e WHERE e.name = 'item'"
    )

    async def current() -> dict[str, str]:
        return {record["name"]: record["slot"] for record in await admin.fetch(as_slots)}

    slots.mset({**await current(), "sb:item:3": "A", "sb:item:102": "A"})
    await admin.execute(
        "UPDATE item_low SET n = 7 WHERE id = 1; UPDATE item SET n = 7 WHERE id = 100;"
        "UPDATE item SET id = 102 WHERE id = 2; DELETE FROM item_high WHERE id = 200;"
        "INSERT INTO item VALUES (3)"
    )
    await publish_all(admin)
    report = await reconcile(declared, entities=["item"])
    assert (report.stale, report.orphan, report.false_absent, report.repaired) == (2, 2, 2, 6)
    rows = await current()
    assert {name.decode(): slots.get(name) for name in slots.scan_iter("sb:item:*")} == {
        name: rows[name].encode() for name in ("sb:item:1", "sb:item:100")
    }


async def test_delta_examines_the_keys_of_several_columns_that_changed(
    admin: asyncpg.Connection, reconcile: Reconcile, open_service: OpenService
) -> None:
    async with open_service("sb") as sb:
        for number in range(200):
            await sb.caches["grade"].insert(RowInput.from_mapping({"student_id": number, "subject": "a/b"}))
            await sb.caches["grade"].read((str(number), "a/b"))
    await admin.execute(
        "UPDATE cachesync.change_log SET published_at = now() - interval '1 hour',"
        " changed_at = changed_at - interval '1 hour'"
    )
    assert (await reconcile(entities=["grade"], mode="delta")).examined == 200
    # In the first statement, rows share lines of the log.
    await admin.execute(
        "UPDATE grade SET points = 1 WHERE student_id < 150; DELETE FROM grade WHERE student_id = 199;"
        "UPDATE cachesync.change_log SET published_at = clock_timestamp(),"
        " changed_at = changed_at - interval '1 hour' WHERE published_at IS NULL"
    )
    await asyncio.sleep(5)
    second = await reconcile(entities=["grade"], mode="delta")
    assert (second.examined, second.stale, second.orphan, second.repaired) == (151, 150, 1, 151)


async def test_slot_that_changes_before_its_repair_is_left_unchanged(
    admin: asyncpg.Connection,
    slots: redis_client.Redis,
    reconcile: Reconcile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await fill(admin, slots, 10)
    newer = b"V" + b"9" * 18 + b"1abcdef01{}"
    slots.mset({"sb:student:1": b"A", "sb:student:2": newer[:19] + b"0abcdef01{}"})
    read = Rows.read

    async def change_then_read(self: Rows, keys: Iterable[str]) -> dict[str, Row]:
        slots.delete("sb:student:1")
        slots.set("sb:student:2", newer)
        return await read(self, keys)

    monkeypatch.setattr(Rows, "read", change_then_read)
    report = await reconcile()
    assert (report.false_absent, report.ahead) == (1, 1)
    assert (report.repaired, report.refused, report.outcome) == (0, 2, "repaired")
    assert slots.mget("sb:student:1", "sb:student:2") == [None, newer]


async def test_failed_chunk_resumes_where_it_left_off_and_the_others_do_not_run_again(  # noqa: PLR0917
    admin: asyncpg.Connection,
    sample: str,
    slots: redis_client.Redis,
    redis_sa: Redis,
    entities: dict[str, Entity],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await fill(admin, slots, 3000)
    monkeypatch.setattr(runs, "_SLOTS_PER_CHUNK", 1000)
    monkeypatch.setattr(runs, "_SAVE_SECONDS", 0)
    clients = {"sa": redis_client.Redis.from_url(redis_sa.url), "sb": slots}
    asked = Parameters(services=("sa", "sb"), entities=("student",), rate_limit=2000)
    tasks = await runs.plan(admin, "test", asked, clients)
    assert [task.label for task in tasks] == ["sa 1/1", "sb 1/4", "sb 2/4", "sb 3/4", "sb 4/4"]
    assert await runs.plan(admin, "test", asked, clients) == tasks

    def fail(progress: Progress) -> None:
        if progress.share > 0.4:
            message = "broken"
            raise RuntimeError(message)

    shares: list[float] = []
    for task in tasks:
        client = clients[task.service]
        if task.label == "sb 3/4":
            with pytest.raises(RuntimeError, match="broken"):
                await runs.run_chunk(sample, client, "test", task, entities, on_progress=fail)
            with pytest.raises(ReconcileError, match="3/4 is not finished"):
                await runs.report(admin, "test")
            await runs.run_chunk(
                sample,
                client,
                "test",
                task,
                entities,
                on_progress=lambda progress: shares.append(progress.share),
            )
        else:
            await runs.run_chunk(sample, client, "test", task, entities, on_progress=lambda _: None)
    report = await runs.report(admin, "test")
    assert shares[0] > 0.3
    assert report.examined >= 3000
    assert report.outcome == "clean"


async def test_memory_does_not_grow_with_the_cache(
    admin: asyncpg.Connection,
    slots: redis_client.Redis,
    reconcile: Reconcile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_FIRST_ROUND", "_MIN_ROUND", "_MAX_ROUND"):
        monkeypatch.setattr(f"cachesync.reconcile.chunk.{name}", 1000)
    peaks = []
    few, many = 2000, 20_000
    for rows in (few, many):
        await admin.execute("DELETE FROM student")
        await fill(admin, slots, rows)
        gc.collect()
        tracemalloc.start()
        assert (await reconcile()).examined == rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    # The name of a slot alone takes more than that.
    assert peaks[1] - peaks[0] < 50 * (many - few)


async def test_delta_examines_the_changes_since_the_last_run_that_left_no_drift(
    admin: asyncpg.Connection, slots: redis_client.Redis, reconcile: Reconcile
) -> None:
    await fill(admin, slots, 5000)
    first = await reconcile(mode="delta")
    assert (first.examined, first.outcome) == (5000, "clean")
    assert "full" in first.notes[0]
    # The cache has applied all of these changes, and lost some of them again.
    await admin.execute("UPDATE student SET age = 150 WHERE id <= 220")
    await admin.execute(
        "UPDATE cachesync.change_log SET published_at = clock_timestamp() WHERE published_at IS NULL"
    )
    shared = "SELECT count(*) FROM cachesync.change_log WHERE keys @> '{220}' AND published_at > $1"
    assert await admin.fetchval(shared, datetime.now(UTC) - timedelta(minutes=1)) == 1
    await admin.execute("DELETE FROM student WHERE id = 221")
    await admin.execute("UPDATE cachesync.change_log SET changed_at = changed_at - interval '1 hour'")
    await asyncio.sleep(5)
    assert (await reconcile(mode="delta", dry_run=True)).stale == 220
    second = await reconcile(mode="delta")
    assert (second.examined, second.stale, second.orphan, second.repaired) == (221, 220, 1, 221)
    assert second.notes == ()
    # The deleted rows are gone; since the second run, only the changes within the margin are examined again.
    third = await reconcile(mode="delta")
    assert (third.examined, third.outcome) == (220, "clean")

    await admin.execute("TRUNCATE student")
    await publish_all(admin)
    await admin.execute(
        "UPDATE cachesync.change_log SET published_at = clock_timestamp() - interval '10 s' WHERE key IS NULL"
    )
    fourth = await reconcile(mode="delta", dry_run=True)
    assert (fourth.examined, fourth.orphan) == (4999, 4999)
    assert "truncated" in fourth.notes[0]

    await admin.execute("DELETE FROM cachesync.change_log")
    assert "full" in (await reconcile(mode="delta", dry_run=True)).notes[0]


async def test_failed_delta_resumes_where_it_left_off(  # noqa: PLR0917
    admin: asyncpg.Connection,
    sample: str,
    slots: redis_client.Redis,
    reconcile: Reconcile,
    entities: dict[str, Entity],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await fill(admin, slots, 3000)
    await reconcile()
    await admin.execute("UPDATE student SET age = 50")
    await admin.execute(
        "UPDATE cachesync.change_log SET published_at = now() - interval '10 s' WHERE published_at IS NULL"
    )
    monkeypatch.setattr(runs, "_SAVE_SECONDS", 0)
    asked = Parameters(services=("sb",), entities=("student",), mode="delta", dry_run=True)
    (task,) = await runs.plan(admin, "test", asked, {"sb": slots})
    assert task.part is None
    shares: list[float] = []

    def fail_late(progress: Progress) -> None:
        shares.append(progress.share)
        if len(shares) == 3:
            message = "broken"
            raise RuntimeError(message)

    async def do(watch: Callable[[Progress], None]) -> None:
        await runs.run_chunk(sample, slots, "test", task, entities, on_progress=watch, settle_seconds=0)

    with pytest.raises(RuntimeError, match="broken"):
        await do(fail_late)
    assert shares[0] == pytest.approx(1 / 3)
    again: list[Progress] = []
    await do(again.append)
    assert len(again) < 4
    report = await runs.report(admin, "test")
    assert (report.examined, report.stale) == (3000, 3000)


async def test_killed_run_resumes_where_it_left_off(
    admin: asyncpg.Connection, sample: str, slots: redis_client.Redis, redis_sb: Redis, tmp_path: Path
) -> None:
    await fill(admin, slots, 12_000)
    environment = os.environ | {"CACHESYNC_DSN": sample, "CACHESYNC_REDIS_URLS": f"sb={redis_sb.url}"}
    file = tmp_path / "report.json"
    command = (sys.executable, "-m", "cachesync", "reconcile", "--rate", "4000", "--json", str(file))

    async def start() -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_exec(*command, env=environment, stderr=asyncio.subprocess.PIPE)

    killed = await start()
    reached = "SELECT (findings -> 'student' ->> 'examined')::int FROM cachesync.reconciliation_chunk"
    examined = None
    async with asyncio.timeout(30):
        while not examined:
            await asyncio.sleep(0.05)
            with suppress(asyncpg.UndefinedTableError):
                examined = await admin.fetchval(reached)
    killed.send_signal(signal.SIGKILL)
    await killed.communicate()
    assert not file.exists()

    slots.mset({f"sb:student:{key}": b"A" for key in range(1, 1001)})
    _, told = await (resumed := await start()).communicate()
    assert resumed.returncode == 0
    assert "resuming unfinished run command-" in told.decode()
    report = Report.model_validate_json(file.read_bytes())
    assert (report.examined, report.outcome) == (12_000, "repaired")
    # It does not examine again what it had completed.
    assert 0 < report.false_absent < 1000
    assert await admin.fetchval("SELECT count(*) FROM cachesync.reconciliation") == 1


async def test_every_slot_is_in_a_part_even_if_the_hash_table_is_resized(slots: redis_client.Redis) -> None:
    kept = {b"sb:student:%d" % key for key in range(20_000)}
    slots.mset(dict.fromkeys(kept, b"A"))
    seen: list[bytes] = []
    coming = [f"other:{key}" for key in range(150_000)]
    with Bulk(slots, "the Redis of sb") as bulk:
        for part in parts(20_000, 2000):
            source = Keyspace(bulk, part, "sb:student:*", None, deep=False, fingerprints={})
            while not source.ended:
                seen += (await source.read(200)).names
                # The hash table grows in the first half of the scan and shrinks in the second.
                if part.number < part.of // 2 and len(coming) > 0:
                    slots.mset(dict.fromkeys(coming[:5000], b"x"))
                    del coming[:5000]
                elif part.number == part.of // 2:
                    slots.unlink(*(f"other:{key}" for key in range(150_000)))
    assert set(seen) == kept
    # Parts overlap by at most the keys of one bucket.
    assert len(seen) < 1.05 * len(kept)
