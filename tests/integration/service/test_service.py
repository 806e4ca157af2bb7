"""Opening a service; a failed attempt leaves nothing open."""

from __future__ import annotations

import asyncio
import threading
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any
from unittest.mock import AsyncMock

import pytest

from cachesync.errors import KafkaUnavailableError, NotInstalledError, PrivilegeError, SettingsError
from cachesync.postgres import registry
from cachesync.service import table
from cachesync.service.service import Service
from local.postgres import create_role
from tests.integration.conftest import ENTITIES_FILE

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from pathlib import Path

    import asyncpg

    from cachesync.service.settings import ServiceSettings

    SettingsOf = Callable[..., ServiceSettings]


async def test_malformed_redis_url_is_a_settings_error(
    settings_of: SettingsOf, admin: asyncpg.Connection
) -> None:
    async with leaving_nothing(admin):
        settings = settings_of("sa").model_copy(update={"redis_url": "http://x"})
        with pytest.raises(SettingsError):
            await Service.open(settings)


@pytest.mark.parametrize("host", ["a..b", "a" * 70])
async def test_malformed_database_host_is_a_settings_error(
    settings_of: SettingsOf, admin: asyncpg.Connection, host: str
) -> None:
    async with leaving_nothing(admin):
        with pytest.raises(SettingsError, match="check DB_HOST and DB_PORT"):
            await Service.open(settings_of("sa", db_host=host))


async def test_entity_must_be_installed(
    settings_of: SettingsOf, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    file = tmp_path / "entities.toml"
    file.write_text(
        ENTITIES_FILE.read_text(encoding="utf-8")
        + '[other]\ntable = "other"\nkey = "id"\nttl = "1h"\nabsent_ttl = "1m"\npath = "/others"\n'
    )
    await admin.execute("CREATE TABLE other (id int PRIMARY KEY)")
    async with leaving_nothing(admin):
        with pytest.raises(NotInstalledError, match="'other'"):
            await Service.open(settings_of("sa", cachesync_entities=file))


async def test_login_without_the_role_of_a_service_is_told_what_to_grant(
    settings_of: SettingsOf, admin: asyncpg.Connection, sample: str
) -> None:
    create_role(sample, "stranger", "password")
    create_role(sample, "a-worker", "password")
    await admin.execute('GRANT cachesync_worker TO "a-worker"')
    async with leaving_nothing(admin):
        with pytest.raises(PrivilegeError) as raised:
            await Service.open(settings_of("sa", db_username="stranger", db_password="password"))
        assert str(raised.value) == (
            "PostgreSQL denied a statement: permission denied for schema cachesync; the login needs the role "
            "cachesync_service for a service, or cachesync_worker for the background work: run GRANT <role> "
            "TO <login>, or `cachesync install` if it has that role"
        )
        with pytest.raises(PrivilegeError, match='run GRANT cachesync_service TO "a-worker"'):
            await Service.open(settings_of("sa", db_username="a-worker", db_password="password"))


async def test_settings_that_the_kafka_client_rejects_are_an_error(
    settings_of: SettingsOf, admin: asyncpg.Connection, tmp_path: Path
) -> None:
    no_certificate = tmp_path / "ca.pem"
    no_certificate.write_text("not a certificate")
    wrong: dict[str, Any] = {
        "kafka_security_protocol": "SSL",
        "kafka_ssl_ca_location": no_certificate,
    }
    async with leaving_nothing(admin):
        with pytest.raises(KafkaUnavailableError):
            await Service.open(settings_of("sa", **wrong))


async def test_registry_is_read_once_for_all_entities(
    settings_of: SettingsOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    read = AsyncMock(side_effect=registry.read_registry)
    monkeypatch.setattr(table, "read_registry", read)
    service = await Service.open(settings_of("sa"))
    await service.close()
    assert len(service.caches) > 1
    assert read.await_count == 1


async def test_closed_service_leaves_nothing_open(settings_of: SettingsOf, admin: asyncpg.Connection) -> None:
    async with leaving_nothing(admin):
        service = await Service.open(settings_of("sa"))
        await service.caches["student"].read("1")
        assert await sessions(admin) > 0
        assert publishers() != set()
        await service.close()


@asynccontextmanager
async def leaving_nothing(admin: asyncpg.Connection) -> AsyncIterator[None]:
    """Require that no task, no publisher thread and, after a moment, no database session is left."""
    assert await sessions(admin) == 0
    tasks, threads = asyncio.all_tasks(), publishers()
    yield
    assert asyncio.all_tasks() == tasks
    assert publishers() == threads
    # A backend exits a moment after its connection is closed.
    async with asyncio.timeout(2):
        while await sessions(admin):
            await asyncio.sleep(0.02)


async def sessions(admin: asyncpg.Connection) -> int:
    query = (
        "SELECT count(*) FROM pg_stat_activity"
        " WHERE application_name = 'cachesync-sa' AND datname = current_database()"
    )
    count: int = await admin.fetchval(query)
    return count


def publishers() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name == "cachesync-publisher"}
