"""The names under which Airflow stores and finds parts of this package."""

from __future__ import annotations

import json
import os
import tomllib
from importlib import import_module
from pathlib import Path
from typing import Any

import jsonschema_rs
import pytest

REPOSITORY = Path(__file__).parents[3]

# Airflow reads these on import, in the tests below; by default it would use the user's home directory.
os.environ.setdefault("AIRFLOW_HOME", str(REPOSITORY / ".local" / "test" / "airflow-home"))
os.environ.setdefault("AIRFLOW__CORE__UNIT_TEST_MODE", "False")


def test_triggers_keep_the_paths_that_airflow_has_stored() -> None:
    """A deferred task is resumed by the path in Airflow's database, even after an upgrade of this package."""
    from cachesync_airflow.triggers.cache_sync import CacheSyncTrigger  # noqa: PLC0415 - Airflow takes seconds
    from cachesync_airflow.triggers.live_check import LiveCheckTrigger  # noqa: PLC0415
    from cachesync_airflow.triggers.outbox_relay import OutboxRelayTrigger  # noqa: PLC0415

    assert CacheSyncTrigger("sb", 1).serialize() == (
        "cachesync_airflow.triggers.cache_sync.CacheSyncTrigger",
        {"service": "sb", "member": 1},
    )
    assert LiveCheckTrigger().serialize() == ("cachesync_airflow.triggers.live_check.LiveCheckTrigger", {})
    assert OutboxRelayTrigger().serialize() == (
        "cachesync_airflow.triggers.outbox_relay.OutboxRelayTrigger",
        {},
    )


@pytest.fixture
def entry_points() -> Any:
    return tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["entry-points"]


def loaded(entry_point: str) -> Any:
    module, _, name = entry_point.partition(":")
    return getattr(import_module(module), name)


def test_the_provider_metadata_has_what_airflow_requires(entry_points: Any) -> None:
    import airflow  # noqa: PLC0415

    schema = json.loads(Path(airflow.__path__[0], "provider_info.schema.json").read_text())
    info = loaded(entry_points["apache_airflow_provider"]["provider_info"])()
    jsonschema_rs.validate(schema, info)
    # Airflow fails to start if this is not the name of the distribution.
    assert info["package-name"] == "db-cache-sync"


def test_the_plugin_has_its_name(entry_points: Any) -> None:
    from airflow.plugins_manager import AirflowPlugin  # noqa: PLC0415

    plugin = loaded(entry_points["airflow.plugins"]["db_cache_sync"])
    assert issubclass(plugin, AirflowPlugin)
    assert plugin.name == "db_cache_sync"
