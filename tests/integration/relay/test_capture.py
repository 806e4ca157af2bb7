"""The relay reports entities whose changes may not be captured, until they are installed again."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from prometheus_client import REGISTRY
from structlog.testing import capture_logs

from cachesync.entity import Entity
from cachesync.errors import NotInstalledError
from cachesync.install.installer import install
from cachesync.metrics.kinds import forget
from cachesync.postgres.registry import read_registry
from cachesync.relay import capture
from cachesync.relay.capture import CaptureCheck
from local.silent import Silent

if TYPE_CHECKING:
    import asyncpg


@pytest.fixture
def check(monkeypatch: pytest.MonkeyPatch, entities: dict[str, Entity]) -> CaptureCheck:
    monkeypatch.setattr(capture, "_PAUSE_SECONDS", 0)
    return CaptureCheck(entities)


def lost(entity: str = "student") -> float | None:
    return REGISTRY.get_sample_value("cachesync_capture_lost", {"entity": entity})


async def test_lost_capture_is_reported_once_until_it_is_installed_again(
    admin: asyncpg.Connection, worker: asyncpg.Connection, check: CaptureCheck, entities: dict[str, Entity]
) -> None:
    with capture_logs() as logs:
        await check.step(worker)
        assert (lost(), lost("course"), logs) == (0, 0, [])
        await admin.execute("ALTER TABLE student DISABLE TRIGGER ALL; ALTER TABLE student ENABLE TRIGGER ALL")
        await check.step(worker)
        await check.step(worker)
        assert (lost(), lost("course")) == (1, 0)
        assert [(log["event"], log["entity"]) for log in logs] == [("capture lost", "student")]
        assert "enabled without ALWAYS" in logs[0]["problem"]
        await install(admin, entities, Silent())
        await check.step(worker)
        await check.step(worker)
    assert lost() == 0
    assert [(log["event"], log["entity"]) for log in logs[1:]] == [("capture restored", "student")]


async def test_triggers_that_were_repaired_by_hand_still_need_an_installation(
    admin: asyncpg.Connection, worker: asyncpg.Connection, check: CaptureCheck, entities: dict[str, Entity]
) -> None:
    """Nobody knows what was changed in between, so caches must start over."""
    before = (await read_registry(admin))["student"]
    await admin.execute("ALTER TABLE student DISABLE TRIGGER cachesync_log_update")
    await check.step(worker)
    await admin.execute("ALTER TABLE student ENABLE ALWAYS TRIGGER cachesync_log_update")
    await check.step(worker)
    assert lost() == 1
    problem = (await read_registry(admin))["student"].problem or ""
    assert "changes may have been missed around" in problem
    assert problem.endswith("run `cachesync install`")
    await install(admin, entities, Silent())
    await check.step(worker)
    assert lost() == 0
    assert (await read_registry(admin))["student"].fingerprint != before.fingerprint


async def test_worker_needs_no_privilege_on_the_schema_of_a_table(
    admin: asyncpg.Connection, worker: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(capture, "_PAUSE_SECONDS", 0)
    await admin.execute("CREATE SCHEMA billing CREATE TABLE invoice (id bigint PRIMARY KEY)")
    invoice = Entity(
        name="invoice", table="billing.invoice", key="id", ttl="1h", absent_ttl="1s", path="/invoices"
    )
    await install(admin, {"invoice": invoice}, Silent())
    check = CaptureCheck({"invoice": invoice})
    await check.step(worker)
    assert lost("invoice") == 0
    await admin.execute("ALTER TABLE billing.invoice RENAME TO bill")
    await check.step(worker)
    assert lost("invoice") == 1


async def test_entity_that_is_not_installed_is_reported(
    admin: asyncpg.Connection, worker: asyncpg.Connection, check: CaptureCheck
) -> None:
    await admin.execute("DELETE FROM cachesync.entity WHERE name = 'course'")
    await check.step(worker)
    assert (lost(), lost("course")) == (0, 1)
    await admin.execute("ALTER TABLE cachesync.entity DROP COLUMN objects")
    with pytest.raises(NotInstalledError):
        await check.step(worker)


async def test_entity_that_is_no_longer_declared_is_no_longer_reported(
    admin: asyncpg.Connection, worker: asyncpg.Connection, check: CaptureCheck, entities: dict[str, Entity]
) -> None:
    await admin.execute("DELETE FROM cachesync.entity WHERE name = 'course'")
    await check.step(worker)
    assert lost("course") == 1
    forget(check)
    successor = CaptureCheck({"student": entities["student"]})
    await successor.step(worker)
    assert (lost(), lost("course")) == (0, None)


async def test_sequence_that_was_set_back_is_reported_and_raised_by_an_installation(
    admin: asyncpg.Connection, worker: asyncpg.Connection, check: CaptureCheck, entities: dict[str, Entity]
) -> None:
    """Caches would refuse all changes with versions that are lower than theirs."""
    await admin.execute("INSERT INTO student (id, name, age) VALUES (1, 'Ann', 20), (2, 'Bob', 21)")
    newest = await admin.fetchval("SELECT max(version) FROM cachesync.change_log")
    before = await read_registry(admin)
    await admin.execute("ALTER SEQUENCE cachesync.row_version RESTART 1")
    with capture_logs() as logs:
        await check.step(worker)
    assert (lost(), lost("course")) == (1, 1)
    assert all("was set back" in log["problem"] for log in logs)
    await install(admin, entities, Silent())
    await check.step(worker)
    assert (lost(), lost("course")) == (0, 0)
    after = await read_registry(admin)
    assert all(after[name].fingerprint != before[name].fingerprint for name in entities)
    await admin.execute("UPDATE student SET age = 30 WHERE id = 1")
    assert await admin.fetchval("SELECT row_version FROM student WHERE id = 1") > newest


async def test_table_that_is_locked_does_not_keep_the_relay_from_its_work(
    admin: asyncpg.Connection, worker: asyncpg.Connection, check: CaptureCheck
) -> None:
    """As by an `ALTER TABLE` in a transaction that goes on for minutes."""
    await check.step(worker)
    before = REGISTRY.get_sample_value("cachesync_catalog_check_timestamp_seconds")
    async with admin.transaction():
        await admin.execute("ALTER TABLE student ADD COLUMN another integer")
        # It would end the relay's session.
        await worker.execute("SET statement_timeout = '5s'")
        await check.step(worker)
    assert REGISTRY.get_sample_value("cachesync_catalog_check_timestamp_seconds") == before
