"""Writes that change more than the row they name: through foreign keys, triggers, rules and defaults."""

from __future__ import annotations

import asyncio
import json
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import redis as redis_client

from cachesync.errors import CaptureLostError, ConstraintViolatedError
from cachesync.service import cache as service_cache
from cachesync.service import own_changes
from cachesync.service.cache import Outcome
from cachesync.service.row_input import RowInput
from tests.integration.entities_file import install_tables_once

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager
    from pathlib import Path

    from cachesync.service.service import Service
    from local.postgres import Postgres
    from local.redis import Redis

    OpenService = Callable[..., AbstractAsyncContextManager[Service]]

TABLES = """
CREATE TABLE parent (id int PRIMARY KEY, code int UNIQUE, n int NOT NULL DEFAULT 0);
CREATE TABLE child (
    id int PRIMARY KEY,
    parent int REFERENCES parent ON DELETE CASCADE,
    code int REFERENCES parent (code) ON UPDATE CASCADE ON DELETE SET NULL,
    n int NOT NULL DEFAULT 0
);
CREATE TABLE grandchild (
    id int PRIMARY KEY,
    child int REFERENCES child ON DELETE CASCADE,
    backup int DEFAULT 0 REFERENCES child ON DELETE SET DEFAULT,
    n int NOT NULL DEFAULT 0
);
"""
NAMES = ("parent", "child", "grandchild")
UNMARKED = "SELECT count(*) FROM cachesync.change_log WHERE published_at IS NULL"
WAITING = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"


class Family:
    """The caches of three tables that refer to each other, in one service.

    Attributes:
        caches: the caches by entity.
    """

    def __init__(self, service: Service, admin: asyncpg.Connection, slots: redis_client.Redis) -> None:
        self.caches = service.caches
        self._admin = admin
        self._slots = slots

    async def cache_all(self) -> None:
        """Fill the slots of all rows, and of a few keys without rows."""
        for name in NAMES:
            keys = await self._admin.fetchval(f"SELECT array_agg(id::text) FROM {name}")
            await self.caches[name].read_many({*(keys or ()), "90", "91"})

    async def stale(self) -> list[str]:
        """Return the names of the slots whose content the service would serve although it is wrong."""
        wrong = []
        for name in NAMES:
            records = await self._admin.fetch(f"SELECT key::text, payload FROM cachesync.{name}")
            rows = {record["key"]: record["payload"] for record in records}
            for slot_name in self._slots.scan_iter(f"sa:{name}:*"):
                key = slot_name.decode().rpartition(":")[2]
                slot = self._slots.get(slot_name)
                assert isinstance(slot, bytes)
                expected = b"A" if rows.get(key) is None else rows[key].encode()
                if not (slot[:1] == b"L" or (slot if slot == b"A" else slot[28:]) == expected):
                    wrong.append(slot_name.decode())
        return wrong

    async def read(self, name: str, key: int) -> Any:
        row = (await self.caches[name].read(str(key))).row
        return None if row is None else json.loads(row.payload)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the entities file."""
    return tmp_path_factory.mktemp("family")


@pytest.fixture(scope="module")
def sample_template(sample_template: str, postgres: Postgres, folder: Path) -> str:
    """The name of a database in which the three tables are installed too, to copy."""
    install_tables_once(postgres.dsn_of(sample_template), TABLES, NAMES, folder)
    return sample_template


@pytest.fixture
def open_family(
    open_service: OpenService, admin: asyncpg.Connection, redis_sa: Redis, folder: Path
) -> Callable[[], AbstractAsyncContextManager[Family]]:
    """Opens the service sa on the three tables."""

    @asynccontextmanager
    async def opened() -> AsyncIterator[Family]:
        async with open_service("sa", cachesync_entities=folder / "entities.toml") as service:
            with redis_client.Redis.from_url(redis_sa.url) as slots:
                yield Family(service, admin, slots)

    return opened


@pytest.fixture
async def family(open_family: Callable[[], AbstractAsyncContextManager[Family]]) -> AsyncIterator[Family]:
    async with open_family() as family:
        yield family


def row(**values: Any) -> RowInput:
    return RowInput.from_mapping(values)


async def populate(admin: asyncpg.Connection) -> None:
    await admin.execute(
        "INSERT INTO parent (id, code, n) VALUES (1, 11, 0), (2, 12, 0);"
        "INSERT INTO child VALUES (0, NULL, NULL, 0), (1, 1, 11, 0), (2, 2, 11, 0), (3, 2, 12, 0);"
        "INSERT INTO grandchild VALUES (1, 1, 1, 0), (2, 2, 1, 0), (3, 2, 2, 0)"
    )


async def all_marked(admin: asyncpg.Connection, other: int = 0) -> None:
    """Wait until the service has marked its changes; without a relay, `other` lines stay unmarked."""
    async with asyncio.timeout(30):
        while await admin.fetchval(f"{UNMARKED} AND source = 'sa'") > other:
            await asyncio.sleep(0.02)


async def test_delete_also_reaches_the_rows_that_cascade(family: Family, admin: asyncpg.Connection) -> None:
    await populate(admin)
    await family.cache_all()
    deleted = await family.caches["parent"].delete("1", None)
    assert deleted.cached
    assert await family.stale() == []
    assert [await family.read("child", 1), await family.read("grandchild", 1)] == [None, None]
    assert (await family.read("child", 2))["code"] is None
    assert (await family.read("grandchild", 2))["backup"] == 0
    # The service has published all of it: no change waits for the relay.
    await all_marked(admin)


async def test_update_also_reaches_the_rows_that_cascade(family: Family, admin: asyncpg.Connection) -> None:
    await populate(admin)
    await family.cache_all()
    assert (await family.caches["parent"].merge("1", row(code=21), None)).cached
    assert await family.stale() == []
    assert (await family.read("child", 2))["code"] == 21
    await all_marked(admin)


@pytest.mark.parametrize("when", ["AFTER", "DEFERRED", "BEFORE"])
@pytest.mark.parametrize("write", ["insert", "replace", "merge", "delete"])
async def test_write_also_reaches_the_rows_that_a_trigger_changes(
    family: Family, admin: asyncpg.Connection, write: str, when: str
) -> None:
    await populate(admin)
    timing = {
        "AFTER": ("TRIGGER", "AFTER", ""),
        "BEFORE": ("TRIGGER", "BEFORE", ""),
        "DEFERRED": ("CONSTRAINT TRIGGER", "AFTER", "DEFERRABLE INITIALLY DEFERRED"),
    }
    kind, moment, deferred = timing[when]
    # Created while the service runs: it must not have to be started again to know.
    await family.cache_all()
    await family.caches["parent"].merge("2", row(n=1), None)
    await admin.execute(
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
        " UPDATE child SET n = n + 1; INSERT INTO grandchild (id, backup) VALUES (90, NULL);"
        " RETURN coalesce(NEW, OLD); END$$;"
        f"CREATE {kind} touch {moment} INSERT OR UPDATE OR DELETE ON parent {deferred}"
        " FOR EACH ROW EXECUTE FUNCTION touch()"
    )
    parents = family.caches["parent"]
    written = await {
        "insert": lambda: parents.insert(row(id=3)),
        "replace": lambda: parents.replace("1", row(code=11), None),
        "merge": lambda: parents.merge("1", row(n=5), None),
        "delete": lambda: parents.delete("1", None),
    }[write]()
    assert written.cached
    assert await family.stale() == []
    assert (await family.read("child", 3))["n"] == 1
    assert (await family.read("grandchild", 90)) is not None
    await all_marked(admin)


@pytest.mark.parametrize("deferred", ["", "DEFERRABLE INITIALLY DEFERRED"], ids=["immediate", "deferred"])
@pytest.mark.parametrize("write", ["insert", "replace", "merge"])
async def test_write_returns_the_row_as_the_last_trigger_leaves_it(
    family: Family, admin: asyncpg.Connection, write: str, deferred: str
) -> None:
    await populate(admin)
    await admin.execute(
        "CREATE FUNCTION again() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN"
        " UPDATE parent SET n = n + 1 WHERE id = NEW.id; RETURN NULL; END$$;"
        f"CREATE CONSTRAINT TRIGGER again AFTER INSERT OR UPDATE ON parent {deferred}"
        " FOR EACH ROW WHEN (NEW.n < 103) EXECUTE FUNCTION again()"
    )
    await family.cache_all()
    parents = family.caches["parent"]
    written = await {
        "insert": lambda: parents.insert(row(id=1000, n=100)),
        "replace": lambda: parents.replace("1", row(n=100), None),
        "merge": lambda: parents.merge("1", row(n=100), None),
    }[write]()
    assert written.row is not None
    assert json.loads(written.row.payload)["n"] == 103
    assert written.cached
    read = await parents.read(written.row.key)
    assert (read.outcome, read.row) == (Outcome.HIT, written.row)
    assert written.version == await admin.fetchval(
        "SELECT row_version FROM parent WHERE id = $1", int(written.row.key)
    )
    await all_marked(admin)


@pytest.mark.parametrize("other", [False, True], ids=["free", "taken"])
@pytest.mark.parametrize("write", ["insert", "replace", "replace existing", "merge"])
async def test_slot_of_a_write_is_that_of_the_row_it_returns(
    family: Family, admin: asyncpg.Connection, write: str, *, other: bool
) -> None:
    await admin.execute("INSERT INTO parent VALUES (55, NULL, 1)")
    if write in {"insert", "replace"}:
        await admin.execute("DELETE FROM parent")
    await family.cache_all()
    parents = family.caches["parent"]
    for key in ("55", "7055"):
        if other:
            await parents.read(key)
    await admin.execute(
        "CREATE FUNCTION renumber() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN NEW.id := NEW.id + 7000; RETURN NEW; END';"
        "CREATE TRIGGER renumber BEFORE INSERT OR UPDATE ON parent FOR EACH ROW EXECUTE FUNCTION renumber()"
    )
    written = await {
        "insert": lambda: parents.insert(row(id=55, n=2)),
        "replace": lambda: parents.replace("55", row(id=55, n=2), None),
        "replace existing": lambda: parents.replace("55", row(id=55, n=2), None),
        "merge": lambda: parents.merge("55", row(n=2), None),
    }[write]()
    assert written.row is not None
    assert written.row.key == "7055"
    assert json.loads(written.row.payload) == {"id": 7055, "code": None, "n": 2}
    assert written.cached
    assert await family.stale() == []
    assert await family.read("parent", 55) is None
    assert (await parents.read("7055")).row == written.row
    await all_marked(admin)


async def test_inserted_copy_of_a_cached_row_settles_only_its_own_slot(
    family: Family, admin: asyncpg.Connection
) -> None:
    await admin.execute("INSERT INTO parent VALUES (55, NULL, 1)")
    await admin.execute(
        "CREATE FUNCTION renumber() RETURNS trigger LANGUAGE plpgsql AS "
        "'BEGIN NEW.id := NEW.id + 7000; RETURN NEW; END';"
        "CREATE TRIGGER renumber BEFORE INSERT ON parent FOR EACH ROW EXECUTE FUNCTION renumber()"
    )
    await family.cache_all()
    await family.caches["parent"].insert(row(id=55, n=2))
    assert (await family.read("parent", 55))["n"] == 1
    assert (await family.read("parent", 7055))["n"] == 2
    assert await family.stale() == []


async def test_write_also_reaches_the_rows_that_a_rule_or_a_default_changes(
    family: Family, admin: asyncpg.Connection
) -> None:
    await populate(admin)
    await admin.execute(
        "CREATE FUNCTION next_code() RETURNS int LANGUAGE sql AS"
        " 'UPDATE child SET n = n + 1 WHERE id = 3 RETURNING 100 + n';"
        "ALTER TABLE parent ALTER code SET DEFAULT next_code();"
        "CREATE RULE also AS ON UPDATE TO grandchild DO ALSO UPDATE child SET n = 7 WHERE id = NEW.child"
    )
    await family.cache_all()
    assert (await family.caches["parent"].insert(row(id=9))).cached
    assert await family.stale() == []
    assert (await family.caches["parent"].replace("9", row(), None)).cached
    assert await family.stale() == []
    assert (await family.caches["grandchild"].merge("1", row(n=2), None)).cached
    assert await family.stale() == []
    assert (await family.read("child", 1))["n"] == 7
    await all_marked(admin)


@pytest.mark.parametrize(
    "spreading",
    [
        "CREATE DOMAIN code AS int DEFAULT touch(0); ALTER TABLE parent ADD extra code",
        "CREATE DOMAIN code AS int CHECK (touch(VALUE) = 0); ALTER TABLE parent ADD extra code DEFAULT 1",
        """
        CREATE DOMAIN base AS int CHECK (touch(VALUE) = 0);
        CREATE DOMAIN code AS base;
        CREATE TYPE pair AS (a int, b code []);
        ALTER TABLE parent ADD extra pair DEFAULT ROW(1, ARRAY[2]::code [])
        """,
        "ALTER TABLE parent ADD CHECK (touch(n) = 0)",
        "CREATE OPERATOR @# (FUNCTION = touch, RIGHTARG = int); ALTER TABLE parent ADD CHECK ((@# n) = 0)",
        """
        ALTER FUNCTION touch IMMUTABLE;
        ALTER TABLE parent ADD extra int GENERATED ALWAYS AS (touch(n)) STORED;
        ALTER FUNCTION touch VOLATILE
        """,
    ],
    ids=["domain default", "domain check", "nested domain", "check", "operator", "generated column"],
)
async def test_write_also_reaches_the_rows_that_a_computed_or_checked_value_changes(
    family: Family, admin: asyncpg.Connection, spreading: str
) -> None:
    # The table is empty when it gets the column, as an immutable function may not update.
    await admin.execute(
        "CREATE FUNCTION touch(int) RETURNS int LANGUAGE plpgsql AS"
        " 'BEGIN UPDATE child SET n = n + 1 WHERE id = 3; RETURN 0; END';" + spreading
    )
    await populate(admin)
    await family.cache_all()
    # Updates of the table spread anyway, by a foreign key.
    assert (await family.caches["parent"].insert(row(id=9))).cached
    assert await family.stale() == []
    assert (await family.read("child", 3))["n"] > 0


async def test_every_row_of_a_large_cascade_is_covered(family: Family, admin: asyncpg.Connection) -> None:
    await admin.execute(
        "INSERT INTO parent VALUES (1, 11, 0);"
        "INSERT INTO child SELECT g, 1, NULL, 0 FROM generate_series(1, 1200) AS g"
    )
    await family.cache_all()
    deleted = await family.caches["parent"].delete("1", None)
    assert deleted.cached
    assert await family.stale() == []
    await all_marked(admin)


async def test_every_row_of_a_bulk_statement_of_a_trigger_that_hides_the_service_is_covered(
    family: Family, admin: asyncpg.Connection
) -> None:
    """The relay publishes the lines that its rows share; the service's own slots follow at once."""
    await admin.execute(
        "INSERT INTO parent VALUES (1, 11, 0);"
        "INSERT INTO child SELECT g, 1, NULL, 0 FROM generate_series(1, 1200) AS g;"
        "CREATE FUNCTION touch() RETURNS trigger LANGUAGE plpgsql SET cachesync.source = '' AS"
        " 'BEGIN UPDATE child SET n = 7; RETURN NULL; END';"
        "CREATE TRIGGER touch AFTER UPDATE ON parent FOR EACH ROW EXECUTE FUNCTION touch()"
    )
    await family.cache_all()
    await admin.execute("UPDATE cachesync.change_log SET published_at = now()")
    assert (await family.caches["parent"].merge("1", row(n=1), None)).cached
    assert await family.stale() == []
    assert (await family.read("child", 1200))["n"] == 7
    shared = f"{UNMARKED} AND operation = 'upserts'"
    async with asyncio.timeout(30):
        while await admin.fetchval(UNMARKED) > 11:
            await asyncio.sleep(0.02)
    assert await admin.fetchval(shared) == 11


async def test_slots_of_payloads_that_are_not_fetched_are_emptied(
    family: Family, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await populate(admin)
    await family.cache_all()
    monkeypatch.setattr(own_changes, "_PAYLOAD_BYTES", 50)
    assert (await family.caches["parent"].merge("1", row(code=21), None)).cached
    assert await family.stale() == []
    read = await family.caches["child"].read("2")
    assert read.outcome is Outcome.MISS
    # The relay publishes what was not fetched.
    await all_marked(admin, other=2)


async def test_write_whose_changes_cannot_be_looked_up_reports_it(
    family: Family, admin: asyncpg.Connection
) -> None:
    await populate(admin)
    await family.cache_all()
    await admin.execute("REVOKE EXECUTE ON FUNCTION cachesync.transaction_changes FROM cachesync_service")
    deleted = await family.caches["parent"].delete("1", None)
    assert not deleted.cached
    assert await family.read("parent", 1) is None


async def test_write_that_outlasts_its_reservation_reports_it(
    family: Family, admin: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The relay can have published some of the changes already, and a published line is not looked up."""
    await populate(admin)
    await family.cache_all()
    monkeypatch.setattr(service_cache, "_RESERVED_SECONDS", 0.0)
    assert not (await family.caches["parent"].delete("1", None)).cached


async def test_write_without_redis_reports_it(
    family: Family, admin: asyncpg.Connection, redis_sa: Redis
) -> None:
    await populate(admin)
    redis_sa.stop()
    try:
        deleted = await family.caches["parent"].delete("1", None)
    finally:
        redis_sa.start()
    assert not deleted.cached
    await all_marked(admin)


async def test_truncate_by_a_trigger_empties_the_slots(family: Family, admin: asyncpg.Connection) -> None:
    await populate(admin)
    await family.cache_all()
    await admin.execute(
        "CREATE FUNCTION clear() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$BEGIN"
        " TRUNCATE grandchild; RETURN NULL; END$$;"
        "CREATE TRIGGER clear AFTER UPDATE ON parent FOR EACH ROW EXECUTE FUNCTION clear()"
    )
    assert (await family.caches["parent"].merge("1", row(n=1), None)).cached
    assert await family.stale() == []
    assert await family.read("grandchild", 1) is None
    await all_marked(admin)


@pytest.mark.usefixtures("family")
async def test_changes_of_another_login_are_not_returned(
    admin: asyncpg.Connection, settings_of: Callable[..., Any]
) -> None:
    transaction = await admin.fetchrow(
        "WITH inserted AS (INSERT INTO parent VALUES (1)) SELECT pg_current_xact_id()::text AS name, now()"
    )
    assert transaction is not None
    settings = settings_of("sa")
    service = await asyncpg.connect(
        host=settings.db_host,
        port=settings.db_port,
        database=settings.db_name,
        user="sa",
        password="sa-password",
    )
    own = "SELECT version FROM cachesync.transaction_changes($1::text::xid8, $2, true, 10, 0)"
    assert await service.fetch(own, *transaction) == []
    assert len(await admin.fetch(own, *transaction)) == 1
    await service.close()


@pytest.mark.parametrize(
    ("lost", "write"),
    [
        *(
            (lost, write)
            for lost in ("disabled", "swapped")
            for write in ("insert", "replace", "merge", "delete")
        ),
        # A delete has no row to draw a version for; its version is that of its line in the change log.
        *(("dropped", write) for write in ("insert", "replace", "merge")),
    ],
)
async def test_write_that_draws_no_version_is_rolled_back(
    family: Family, admin: asyncpg.Connection, lost: str, write: str
) -> None:
    await admin.execute("INSERT INTO parent VALUES (1, 11, 0)")
    default = "ALTER TABLE parent ALTER row_version SET DEFAULT 0;"
    await admin.execute(
        {
            "disabled": "ALTER TABLE parent DISABLE TRIGGER ALL",
            "dropped": (
                "DROP TRIGGER zzz_cachesync_version ON parent;"
                f"DROP TRIGGER zzz_cachesync_version_update ON parent; {default}"
            ),
            "swapped": (
                "ALTER TABLE parent RENAME TO old; CREATE TABLE parent (LIKE old INCLUDING ALL);"
                f"INSERT INTO parent SELECT * FROM old; GRANT ALL ON parent TO cachesync_service; {default}"
            ),
        }[lost]
    )
    before = await admin.fetch("SELECT * FROM parent ORDER BY id")
    parents = family.caches["parent"]
    with pytest.raises(CaptureLostError, match="run `cachesync install`"):
        await {
            "insert": lambda: parents.insert(row(id=3)),
            "replace": lambda: parents.replace("1", row(n=4), None),
            "merge": lambda: parents.merge("1", row(n=5), None),
            "delete": lambda: parents.delete("1", None),
        }[write]()
    assert await admin.fetch("SELECT * FROM parent ORDER BY id") == before


@pytest.mark.parametrize("write", ["merge", "delete"])
async def test_change_that_a_trigger_discards_is_reported(
    family: Family, admin: asyncpg.Connection, write: str
) -> None:
    await populate(admin)
    await admin.execute(
        "CREATE FUNCTION discard() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';"
        "CREATE TRIGGER discard BEFORE UPDATE OR DELETE ON parent FOR EACH ROW EXECUTE FUNCTION discard()"
    )
    parents = family.caches["parent"]
    with pytest.raises(ConstraintViolatedError, match="a trigger of the table may have discarded"):
        await {
            "merge": lambda: parents.merge("1", row(n=5), None),
            "delete": lambda: parents.delete("1", None),
        }[write]()


async def test_insert_that_a_trigger_discards_is_undone_with_all_that_the_trigger_did(
    family: Family, admin: asyncpg.Connection
) -> None:
    await admin.execute(
        "CREATE FUNCTION redirect() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN INSERT INTO child (id) VALUES (NEW.id); RETURN NULL; END';"
        "CREATE TRIGGER redirect BEFORE INSERT ON parent FOR EACH ROW EXECUTE FUNCTION redirect()"
    )
    with pytest.raises(ConstraintViolatedError, match="a trigger of the table discarded the new row"):
        await family.caches["parent"].insert(row(id=1))
    assert await admin.fetchval("SELECT count(*) FROM child") == 0


async def test_insert_of_a_row_that_a_later_trigger_deletes_leaves_nothing_cached(
    family: Family, admin: asyncpg.Connection
) -> None:
    await admin.execute(
        "CREATE FUNCTION take() RETURNS trigger LANGUAGE plpgsql AS"
        " 'BEGIN DELETE FROM parent WHERE id = NEW.id; INSERT INTO child (id) VALUES (NEW.id);"
        " RETURN NULL; END';"
        "CREATE TRIGGER take AFTER INSERT ON parent FOR EACH ROW EXECUTE FUNCTION take()"
    )
    await family.caches["child"].read("1")
    written = await family.caches["parent"].insert(row(id=1))
    assert written.cached
    assert await family.stale() == []
    assert await family.read("parent", 1) is None
    assert await family.read("child", 1) is not None


async def test_insert_into_a_table_with_rules_reaches_the_rows_that_they_change(
    family: Family, admin: asyncpg.Connection
) -> None:
    await populate(admin)
    await admin.execute("CREATE RULE also AS ON INSERT TO parent DO ALSO UPDATE child SET n = 8 WHERE id = 1")
    await family.cache_all()
    for identifier in (8, 9):
        written = await family.caches["parent"].insert(row(id=identifier))
        assert written.cached
        assert await family.stale() == []
    assert (await family.read("child", 1))["n"] == 8


async def test_insert_that_waited_for_a_delete_returns_the_version_that_the_row_got(
    family: Family, admin: asyncpg.Connection
) -> None:
    async with admin.transaction():
        await admin.execute("INSERT INTO parent VALUES (1, 11, 0)")
        insert = asyncio.create_task(family.caches["parent"].insert(row(id=1, n=5)))
        # A transaction sees the other sessions as they were when it first looked.
        while not await admin.fetchval(WAITING):
            await admin.execute("SELECT pg_stat_clear_snapshot()")
            await asyncio.sleep(0.01)
        # This draws a higher version than the insert, which waits for it.
        await admin.execute("DELETE FROM parent WHERE id = 1")
    written = await insert
    assert written.version == await admin.fetchval("SELECT row_version FROM parent WHERE id = 1")
    assert await family.stale() == []
