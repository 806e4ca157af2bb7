"""Reconciliation on real servers, among live writes."""

from __future__ import annotations

import asyncio
import json
import os
import random
import secrets
import signal
import sys
import threading
import tracemalloc
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import asyncpg
import pytest
import redis as redis_client
from confluent_kafka import Consumer, Producer

from cachesync.apply import Applier
from cachesync.database import connect
from cachesync.dead_letter import DeadLetters
from cachesync.entity import load_entities
from cachesync.errors import RowError
from cachesync.install import install
from cachesync.reconcile import run as runs
from cachesync.reconcile.bulk import Bulk
from cachesync.reconcile.keyspace import parts
from cachesync.reconcile.rows import Rows
from cachesync.reconcile.source import Keyspace
from cachesync.stream import Stream
from local.silent import Silent

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable
    from contextlib import AbstractAsyncContextManager

    from cachesync.change import Row
    from cachesync.entity import Entity
    from cachesync.reconcile.chunk import Progress
    from cachesync.service import Service
    from local.redis import Redis

    OpenService = Callable[..., AbstractAsyncContextManager[Service]]
    Reconcile = Callable[..., Any]

ENTITIES_FILE: Final = Path(__file__).parents[2] / "entities.toml"
ROWS: Final = 100_000
# Keys below are written to while the reconciliation runs; the ranges above them are each wrong in one way.
LIVE: Final = range(1, 5_001)
EACH: Final = 2_000
BEHIND, AHEAD, ORPHANS, PAYLOADS, ABSENT, SCHEMA, FLUSHED = (
    range(start, start + EACH) for start in range(10_000, 10_000 + 7 * EACH, EACH)
)
OTHER_SCHEMA: Final = b"ffffffff"
SETTLE_SECONDS: Final = 1.0


@pytest.fixture
def slots(redis_sb: Redis) -> redis_client.Redis:
    return redis_client.Redis.from_url(redis_sb.url)


@pytest.fixture
def reconcile(sample: str, slots: redis_client.Redis, entities: dict[str, Entity]) -> Reconcile:
    """Runs a reconciliation of sb's cache of students."""

    async def run(declared: dict[str, Entity] = entities, **asked: Any) -> runs.Report:
        parameters = runs.Parameters.model_validate({"services": ["sb"], "entities": ["student"], **asked})
        name = f"test-{secrets.token_hex(4)}"
        connection = await connect(sample, "test")
        for task in await runs.plan(connection, name, parameters, {"sb": slots}):
            await runs.run_chunk(
                sample, slots, name, task, declared, watch=lambda _: None, settle_seconds=SETTLE_SECONDS
            )
        report = await runs.report(connection, name)
        await connection.close()
        return report

    return run


async def expected(admin: asyncpg.Connection) -> dict[str, bytes]:
    """What the slots of all students should hold."""
    records = await admin.fetch(
        "SELECT v.key::text, 'V' || lpad(v.version::text, 19, '0') || e.fingerprint || v.payload AS slot "
        "FROM cachesync.student AS v, cachesync.entity AS e WHERE e.name = 'student'"
    )
    return {f"sb:student:{record['key']}": record["slot"].encode() for record in records}


async def fill(admin: asyncpg.Connection, slots: redis_client.Redis, rows: int) -> None:
    """Insert students, have them published long ago, and cache all of them."""
    await admin.execute(
        "INSERT INTO student SELECT i, 'name ' || i, i % 100 FROM generate_series(1, $1::int) AS i", rows
    )
    await publish_all(admin)
    cached = await expected(admin)
    names = list(cached)
    for start in range(0, rows, 10_000):
        slots.mset({name: cached[name] for name in names[start : start + 10_000]})


async def publish_all(admin: asyncpg.Connection) -> None:
    await admin.execute(
        "UPDATE cachesync.change_log SET published_at = clock_timestamp() - interval '1 hour' "
        "WHERE published_at IS NULL"
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
    """Make the cache wrong in every way, each range of keys in one."""
    await admin.execute("UPDATE student SET age = 7 WHERE id = ANY($1)", list(BEHIND))
    await publish_all(admin)
    async with without_triggers(admin):
        await admin.execute(
            "UPDATE student SET row_version = row_version - 1, name = 'restored' WHERE id = ANY($1)",
            list(AHEAD),
        )
        await admin.execute("DELETE FROM student WHERE id = ANY($1)", list(ORPHANS))
        await admin.execute("UPDATE student SET name = 'unnoticed' WHERE id = ANY($1)", list(PAYLOADS))
    slots.mset({f"sb:student:{key}": b"A" for key in ABSENT})
    schema = {}
    for key in SCHEMA:
        slot = slots.get(f"sb:student:{key}")
        assert isinstance(slot, bytes)
        schema[f"sb:student:{key}"] = slot[:20] + OTHER_SCHEMA + slot[28:]
    slots.mset(schema)
    slots.delete(*(f"sb:student:{key}" for key in FLUSHED))


def contents(slots: redis_client.Redis, keys: range) -> list[bytes | None]:
    found: Any = slots.mget([f"sb:student:{key}" for key in keys])
    return list(found)


class Writes:
    """Reads and writes of the live keys through both services, as fast as they go."""

    def __init__(self, sa: Service, sb: Service) -> None:
        self._caches = (sa.caches["student"], sb.caches["student"])
        self._stopping = False
        self.acknowledged: dict[int, int] = {}
        self.count = 0

    async def run(self, number: int) -> None:
        chance = random.Random(number)
        while not self._stopping:
            cache = chance.choice(self._caches)
            # Each key is one writer's, so that the last that it was told is the last there is.
            key = chance.choice(LIVE[number::WRITERS])
            body = b'{"id":%d,"name":"%d","age":1}' % (key, self.count)
            columns = ["id", "name", "age"]
            with suppress(RowError):
                if chance.random() < 0.2:
                    written = await cache.delete(str(key), None)
                else:
                    written = await cache.replace(str(key), body, columns, None)
                self.acknowledged[key] = written.version
                self.count += 1
            if chance.random() < 0.2:
                await self._caches[1].read(str(chance.choice(LIVE)))

    def stop(self) -> None:
        self._stopping = True


WRITERS: Final = 16


@asynccontextmanager
async def live_writes(
    open_service: OpenService, topics: str, slots: redis_client.Redis, entities: dict[str, Entity]
) -> AsyncIterator[Writes]:
    """Both services write, and the stream brings sb's cache what sa wrote."""
    group = f"test-{secrets.token_hex(4)}"
    consumer = Consumer(
        {
            "bootstrap.servers": topics,
            "group.id": group,
            "enable.auto.commit": False,
            "auto.offset.reset": "latest",
            "fetch.wait.max.ms": 10,
        }
    )
    letters = DeadLetters(lambda: Producer({"bootstrap.servers": topics}), "sb", group)
    stream = Stream(consumer, Applier(slots, "sb", entities), letters, entities, "sb")
    thread = threading.Thread(target=stream.run, name="stream")
    thread.start()
    try:
        assert await asyncio.to_thread(stream.assigned.wait, 30)
        # `latest` is looked up after the assignment; what is published before that would be missed.
        await asyncio.sleep(0.5)
        async with open_service("sa") as sa, open_service("sb") as sb:
            writes = Writes(sa, sb)
            running = [asyncio.create_task(writes.run(number)) for number in range(WRITERS)]
            try:
                yield writes
            finally:
                writes.stop()
                await asyncio.gather(*running)
        # The services have delivered what they published; the stream is a moment behind.
        applied = -1
        while applied != stream.applied_count:
            applied = stream.applied_count
            await asyncio.sleep(1)
    finally:
        stream.stop()
        await asyncio.to_thread(thread.join, 30)


async def test_all_drift_is_found_and_repaired_among_live_writes_and_nothing_else(  # noqa: PLR0917
    admin: asyncpg.Connection,
    slots: redis_client.Redis,
    reconcile: Reconcile,
    open_service: OpenService,
    topics: str,
    entities: dict[str, Entity],
) -> None:
    await fill(admin, slots, ROWS)
    await inject(admin, slots)
    injected = range(LIVE.stop, ROWS + 1)
    before = contents(slots, injected)
    async with live_writes(open_service, topics, slots, entities) as writes:
        shallow = await reconcile(dry_run=True)
        assert contents(slots, injected) == before
        report = await reconcile(deep=True)
        again = await reconcile(deep=True)

    found = {"stale": 2 * EACH, "ahead": EACH, "orphan": EACH, "false_absent": EACH}
    assert {kind: getattr(shallow, kind) for kind in found} == found
    assert (shallow.outcome, shallow.repaired) == ("drift", 0)
    found["stale"] += EACH
    assert {kind: getattr(report, kind) for kind in found} == found
    assert (report.outcome, report.repaired, report.refused, report.failed) == ("repaired", 6 * EACH, 0, 0)
    assert report.examined >= ROWS - len(LIVE) - EACH
    assert {len(keys) for keys in report.samples.values()} == {10}
    assert (again.outcome, again.drift) == ("clean", 0)

    right = await expected(admin)
    cached = dict(zip(injected, contents(slots, injected), strict=True))
    empty = {*AHEAD, *ORPHANS, *ABSENT, *FLUSHED}
    assert {key for key, slot in cached.items() if slot is None} == empty
    assert all(slot == right[f"sb:student:{key}"] for key, slot in cached.items() if slot is not None)
    # No write was undone, neither in the database nor in the cache.
    assert writes.count > 100
    for key, slot in zip(LIVE, contents(slots, LIVE), strict=True):
        row = right.get(f"sb:student:{key}")
        assert slot in {None, row, b"A" if row is None else row}, key
        if row is not None and key in writes.acknowledged:
            assert int(row[1:20]) == writes.acknowledged[key]


async def test_a_change_that_waits_to_be_published_or_has_just_been_is_no_drift(
    admin: asyncpg.Connection, slots: redis_client.Redis, reconcile: Reconcile
) -> None:
    await fill(admin, slots, 1000)
    slots.set("sb:student:2000", b"A")
    await admin.execute("UPDATE student SET age = 1 WHERE id <= 100")
    await admin.execute("DELETE FROM student WHERE id > 900")
    await admin.execute("INSERT INTO student VALUES (2000, 'Ann', 1)")
    assert (await reconcile()).outcome == "clean"
    await admin.execute("UPDATE cachesync.change_log SET changed_at = changed_at - interval '1 hour'")
    report = await reconcile(dry_run=True)
    assert (report.stale, report.orphan, report.false_absent) == (100, 100, 1)
    await admin.execute("UPDATE cachesync.change_log SET published_at = clock_timestamp()")
    assert (await reconcile()).outcome == "clean"


async def test_strings_of_somebody_else_are_emptied_and_what_is_no_string_is_told(
    admin: asyncpg.Connection, slots: redis_client.Redis, reconcile: Reconcile
) -> None:
    await fill(admin, slots, 100)
    slots.mset({b"sb:student:none": b"x", b"sb:student:\xff\x00": b"V\x00", b"sb:student:007": b"A"})
    slots.mset({b"sb:nobody": b"x", b"sb:nobody:1": b"x", b"sb:student:5": b"nonsense"})
    slots.delete("sb:student:6")
    slots.rpush("sb:student:6", "x")
    report = await reconcile()
    assert (report.outcome, report.orphan, report.stale, report.failed) == ("unrepaired", 2, 2, 1)
    assert report.samples["failed"] == ["sb:student:6"]
    assert slots.exists("sb:student:none", b"sb:student:\xff\x00") == 0
    assert slots.get("sb:nobody:1") == b"x"
    assert slots.get("sb:student:5") == (await expected(admin))["sb:student:5"]


async def test_every_type_of_key_and_payload_compares_as_the_services_write_it(
    admin: asyncpg.Connection,
    slots: redis_client.Redis,
    reconcile: Reconcile,
    open_service: OpenService,
    tmp_path: Path,
) -> None:
    texts = ["a:b", "é", "x\ny", "'; --", "*", "\\", " "]
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
            written = await cache.insert(json.dumps(body).encode(), list(body))
            assert written.row is not None
            await cache.read(written.row.key)
    report = await reconcile(declared, entities=["course", "word"], deep=True)
    assert (report.examined, report.outcome) == (2 * len(texts), "clean")

    await admin.execute("UPDATE course SET fee = 2; UPDATE word SET word = word || '!'")
    await admin.execute("UPDATE cachesync.change_log SET changed_at = changed_at - interval '1 hour'")
    report = await reconcile(declared, entities=["course", "word"], deep=True)
    assert (report.stale, report.orphan, report.repaired) == (len(texts), len(texts), 2 * len(texts))
    # Courses are emptied when they change.
    assert slots.dbsize() == 0


async def test_a_slot_that_changes_before_its_repair_is_left_as_it_is(
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


async def test_a_chunk_that_failed_is_done_again_alone_from_where_it_was(  # noqa: PLR0917
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
    asked = runs.Parameters(services=("sa", "sb"), entities=("student",), rate_limit=2000)
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
                await runs.run_chunk(sample, client, "test", task, entities, watch=fail)
            with pytest.raises(runs.ReconcileError, match="3/4 has not been done"):
                await runs.report(admin, "test")
            await runs.run_chunk(
                sample, client, "test", task, entities, watch=lambda progress: shares.append(progress.share)
            )
        else:
            await runs.run_chunk(sample, client, "test", task, entities, watch=lambda _: None)
    report = await runs.report(admin, "test")
    assert shares[0] > 0.3
    assert report.examined >= 3000
    assert report.outcome == "clean"


async def test_the_memory_that_it_takes_does_not_grow_with_the_cache(
    admin: asyncpg.Connection,
    slots: redis_client.Redis,
    reconcile: Reconcile,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("_FIRST", "_FEWEST", "_MOST"):
        monkeypatch.setattr(f"cachesync.reconcile.chunk.{name}", 1000)
    peaks = []
    for rows in (2000, 20_000):
        await admin.execute("DELETE FROM student")
        await fill(admin, slots, rows)
        tracemalloc.start()
        assert (await reconcile()).examined == rows
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert peaks[1] < 1.5 * peaks[0]


async def test_a_delta_examines_what_changed_since_the_last_run_that_left_nothing_wrong(
    admin: asyncpg.Connection, slots: redis_client.Redis, reconcile: Reconcile
) -> None:
    await fill(admin, slots, 5000)
    first = await reconcile(mode="delta")
    assert (first.examined, first.outcome) == (5000, "clean")
    assert "full" in first.notes[0]
    # By now the cache has followed them all, and then lost some again.
    await admin.execute("UPDATE student SET age = 50 WHERE id <= 20")
    await admin.execute(
        "UPDATE cachesync.change_log SET published_at = clock_timestamp() WHERE published_at IS NULL"
    )
    await admin.execute("DELETE FROM student WHERE id = 21")
    await admin.execute("UPDATE cachesync.change_log SET changed_at = changed_at - interval '1 hour'")
    await asyncio.sleep(5)
    assert (await reconcile(mode="delta", dry_run=True)).stale == 20
    second = await reconcile(mode="delta")
    assert (second.examined, second.stale, second.orphan, second.repaired) == (21, 20, 1, 21)
    assert second.notes == ()
    # The dead are gone, and nothing newer than the second run has changed, but what the margin holds.
    third = await reconcile(mode="delta")
    assert (third.examined, third.outcome) == (20, "clean")

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


async def test_a_run_that_is_killed_goes_on_where_it_was(
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
    assert "going on" in told.decode()
    report = runs.Report.model_validate_json(file.read_bytes())
    assert (report.examined, report.outcome) == (12_000, "repaired")
    # It does not look again at what it had done.
    assert 0 < report.false_absent < 1000
    assert await admin.fetchval("SELECT count(*) FROM cachesync.reconciliation") == 1


async def test_every_slot_is_in_a_part_although_the_table_is_resized(slots: redis_client.Redis) -> None:
    kept = {b"sb:student:%d" % key for key in range(20_000)}
    slots.mset(dict.fromkeys(kept, b"A"))
    seen: list[bytes] = []
    coming = [f"other:{key}" for key in range(150_000)]
    with Bulk(slots, "the Redis of sb") as bulk:
        for part in parts(20_000, 2000):
            source = Keyspace(bulk, part, "sb:student:*", None, deep=False)
            while not source.ended:
                names, _ = await source.read(200)
                seen += names
                # It grows in the first half of the scan, and shrinks in the second.
                if part.number < part.of // 2 and len(coming) > 0:
                    slots.mset(dict.fromkeys(coming[:5000], b"x"))
                    del coming[:5000]
                elif part.number == part.of // 2:
                    slots.unlink(*(f"other:{key}" for key in range(150_000)))
    assert set(seen) == kept
    # A part ends where the next begins, but for the keys of a bucket.
    assert len(seen) < 1.05 * len(kept)
