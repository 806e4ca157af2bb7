"""Short histories of the product with one rule disabled: the checker finds the consequences."""

from __future__ import annotations

import asyncio
import json
from random import Random
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import redis as redis_client

from cachesync.change import Change
from cachesync.change import Operation as Changed
from cachesync.service.caches import AsyncCaches
from cachesync.service.connections import Connections
from cachesync.service.row_input import RowInput
from cachesync.slots import scripts
from cachesync.slots.batch import Applier
from cachesync.value import encode_value
from tests.faults.history import rest
from tests.faults.history.broken import EDITS, switch_off
from tests.faults.history.checker import Wrong, check
from tests.faults.history.own import OwnClient, settle_nothing
from tests.faults.history.record import Clock, History, Kind, Operation, Outcome, Row, digest
from tests.integration.conftest import ENTITIES_FILE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    from cachesync.entity import Entity
    from cachesync.service.cache import EntityCache
    from cachesync.service.service import Service
    from local.redis import Redis

ROW = Row("student", "1")


class Client:
    """Reads and writes one row through sa's cache and records the operations."""

    def __init__(self, cache: EntityCache) -> None:
        self._cache = cache
        self._clock = Clock()
        self.history = History()

    async def put(self, name: str) -> None:
        start = self._clock()
        body = json.dumps({"id": 1, "name": name}).encode()
        written = await self._cache.replace(ROW.key, RowInput.from_json(body), None)
        assert written.row is not None
        self._record(Kind.UPSERT, start, written.row.version, written.row.payload)

    async def read(self) -> None:
        start = self._clock()
        read = await self._cache.read(ROW.key)
        assert read.row is not None
        self._record(Kind.READ, start, read.row.version, read.row.payload, read.outcome)

    def _record(self, kind: Kind, start: float, version: int, payload: bytes, cache: str = "") -> None:
        self.history.operations.append(
            Operation(
                client="sa-1",
                service="sa",
                row=ROW,
                kind=kind,
                start=start,
                end=self._clock(),
                outcome=Outcome.DONE,
                version=version,
                digest=digest(payload),
                cache=cache,
            )
        )


@pytest.fixture
async def student(
    open_service: Callable[..., AbstractAsyncContextManager[Service]],
) -> AsyncIterator[EntityCache]:
    async with open_service("sa") as service:
        yield service.caches["student"]


@pytest.fixture
async def client(student: EntityCache) -> Client:
    return Client(student)


@pytest.fixture
def rule(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The disabled rule; None if all rules are in force."""
    monkeypatch.setattr(scripts.Script, "__init__", scripts.Script.__init__)
    if request.param is not None:
        switch_off(request.param)
    yield request.param
    scripts.script.cache_clear()


async def wrong(history: History, sample: str, redis_sa: Redis) -> set[Wrong]:
    """Return the findings of the checker, including those at rest."""

    def look() -> set[Wrong]:
        history.log = rest.logged_since(sample, 0)
        history.after = rest.row_versions(sample)
        history.at_rest = rest.differences(sample, {"sa": redis_sa.url})
        return {finding.wrong for finding in check(history)}

    return await asyncio.to_thread(look)


async def logged(admin: asyncpg.Connection) -> list[Change]:
    """Return the changes of the row as their events carry them."""
    return [
        Change(
            entity=record["entity"],
            key=record["key"],
            version=record["version"],
            operation=Changed(record["operation"]),
            value=encode_value(record["version"], record["fingerprint"].encode(), record["payload"].encode()),
            source=record["source"],
            changed_at=record["changed_at"],
        )
        for record in await admin.fetch("SELECT * FROM cachesync.change_log ORDER BY version")
    ]


@pytest.mark.parametrize(
    ("rule", "found"),
    [
        (None, set()),
        ("version-check", {Wrong.STALE_OWN_READ, Wrong.BACKWARDS, Wrong.STALE_AT_REST}),
    ],
    indirect=["rule"],
)
@pytest.mark.usefixtures("rule")
async def test_event_repeated_after_a_later_one(  # noqa: PLR0917 - fixtures
    found: set[Wrong],
    client: Client,
    admin: asyncpg.Connection,
    sample: str,
    redis_sa: Redis,
    entities: dict[str, Entity],
) -> None:
    await client.put("Ann")
    await client.put("Bea")
    await client.read()
    with redis_client.Redis.from_url(redis_sa.url) as slots:
        Applier(slots, "sa", entities).apply((await logged(admin))[:1])
    await client.read()
    assert await wrong(client.history, sample, redis_sa) == found


@pytest.mark.parametrize(
    ("rule", "found"),
    [(None, set()), ("lease", {Wrong.STALE_OWN_READ, Wrong.STALE_AT_REST})],
    indirect=["rule"],
)
@pytest.mark.usefixtures("rule")
async def test_load_that_ends_after_a_write(  # noqa: PLR0917 - fixtures
    found: set[Wrong],
    client: Client,
    student: EntityCache,
    sample: str,
    redis_sa: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await client.put("Ann")
    with redis_client.Redis.from_url(redis_sa.url) as slots:
        slots.flushall()
    loaded, written = asyncio.Event(), asyncio.Event()
    load = student._from_database  # noqa: SLF001 - the step between load and fill

    async def slow_load(key: str) -> Any:
        row = await load(key)
        loaded.set()
        await written.wait()
        return row

    monkeypatch.setattr(student, "_from_database", slow_load)
    reading = asyncio.create_task(client.read())
    await loaded.wait()
    await client.put("Bea")
    written.set()
    await reading
    monkeypatch.setattr(student, "_from_database", load)
    await client.read()
    assert await wrong(client.history, sample, redis_sa) == found


async def test_sql_change_that_no_relay_publishes(
    client: Client, admin: asyncpg.Connection, sample: str, redis_sa: Redis
) -> None:
    await client.put("Ann")
    await admin.execute("UPDATE student SET name = 'Bea'")
    await client.read()
    assert await wrong(client.history, sample, redis_sa) == {Wrong.STALE_AT_REST}


@pytest.mark.parametrize(("settles", "found"), [(True, set()), (False, {Wrong.STALE_OWN_READ})])
async def test_own_transaction_that_reaches_no_slot(  # noqa: PLR0917 - fixtures
    settles: bool,  # noqa: FBT001
    found: set[Wrong],
    admin: asyncpg.Connection,
    sample: str,
    redis_sa: Redis,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not settles:
        monkeypatch.setattr(Connections, "settle", settle_nothing)
    await admin.execute("INSERT INTO student VALUES (1, 'Ann'); INSERT INTO grade VALUES (1, 'Art')")
    url = f"{redis_sa.url}?socket_timeout=10"
    async with (
        asyncpg.create_pool(sample, min_size=1, max_size=2) as pool,
        AsyncCaches("sa", redis=url, database=pool, entities=ENTITIES_FILE) as opened,
    ):
        client = OwnClient("own", "sa", opened, pool, clock=Clock(), random=Random(1))
        history = History(before=await asyncio.to_thread(rest.row_versions, sample))
        for _ in range(2):
            await client.read(ROW)
            await client.read(Row("grade", "1/Art"))
            await client.write([("update", "grade", ["1/Art"]), ("delete", "student", ["1"])])
            await client.write([("update", "grade", ["1/Art"])], end="rollback")
            await client.read(ROW)
            await client.read(Row("grade", "1/Art"))
    history.operations = client.operations
    # Without a stream, the other findings are about what the slots have at rest.
    assert await wrong(history, sample, redis_sa) - {Wrong.STALE_AT_REST} == found


def test_every_rule_has_a_history() -> None:
    assert set(EDITS) == {"version-check", "lease"}
