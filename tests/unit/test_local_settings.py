"""The settings of the local system."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError
from rich.console import Console

from local.postgres import Postgres
from local.redis import Redis
from local.settings import Settings
from local.system import System

if TYPE_CHECKING:
    from pathlib import Path


def test_further_cache_gets_a_redis_a_login_and_consumers(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("CACHESYNC_CACHES", "sa, billing-eu,crm")
    system = System(Settings(state=tmp_path), Console(file=io.StringIO()))
    assert set(system.services) == {"sa", "sb"}
    assert {"redis-billing-eu", "redis-crm"} < set(system.parts)
    assert system.redis_urls["crm"] == "redis://127.0.0.1:16382/0"
    assert system.addresses["billing-eu"].startswith("postgresql://billing-eu:")
    environment = system.airflow.environment
    assert environment["CACHESYNC_CACHES"] == "sa,sb,billing-eu,crm"
    assert environment["AIRFLOW_CONN_REDIS_CRM"] == system.redis_urls["crm"]


@pytest.mark.parametrize("name", ["worker", "Billing", ""])
def test_cache_cannot_have_a_name_that_the_system_needs_or_that_is_invalid(
    monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("CACHESYNC_CACHES", f"sa,{name}")
    with pytest.raises(ValidationError, match="name"):
        Settings()


def test_servers_are_those_that_the_settings_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    postgres = tmp_path / "postgres"
    postgres.write_text("#!/bin/sh\necho 'postgres (PostgreSQL) 14.20 (Debian 14.20-1)'\n")
    postgres.chmod(0o755)
    monkeypatch.setenv("LOCAL_POSTGRES_PROGRAMS", str(tmp_path))
    monkeypatch.setenv("LOCAL_REDIS_SERVER", "/opt/valkey-server")
    server = Postgres(tmp_path)
    assert server.command()[0] == str(postgres)
    assert server.major == 14
    assert Redis(tmp_path).command()[0] == "/opt/valkey-server"
