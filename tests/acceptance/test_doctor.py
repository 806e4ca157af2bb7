"""`cachesync doctor` on the running system."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING

from cachesync.doctor.airflow import Airflow
from cachesync.doctor.doctor import System as Examined
from cachesync.doctor.doctor import examine
from cachesync.doctor.finding import Finding, Severity
from tests.acceptance.conftest import REPOSITORY

if TYPE_CHECKING:
    import httpx

    from local.system import System


def examined(system: System) -> list[Finding]:
    return asyncio.run(
        examine(
            Examined(
                REPOSITORY / "entities.toml",
                system.worker_dsn,
                redis=system.redis_urls,
                kafka={"bootstrap.servers": system.bootstrap_servers},
                airflow=Airflow(
                    system.airflow.url,
                    system.airflow.username,
                    system.airflow.password,
                    # Those of sa are looked up in Airflow's database.
                    {name: value for name, value in system.airflow.environment.items() if "SA" not in name},
                ),
            )
        )
    )


def errors(system: System) -> list[str]:
    return [finding.found for finding in examined(system) if finding.severity is Severity.ERROR]


def test_running_system_has_no_errors_until_a_dag_is_paused(system: System, api: httpx.Client) -> None:
    # Consumers need a moment to join their groups.
    deadline = time.monotonic() + 60
    while left := errors(system):
        assert time.monotonic() < deadline, left
        time.sleep(0.5)
    found = examined(system)
    not_checked = {(one.part, one.check) for one in found if one.severity is Severity.NOT_CHECKED}
    assert not_checked <= {
        ("PostgreSQL", "long transactions"),
        ("Airflow", "housekeeping"),
        ("Airflow", "connections"),
    }
    texts = [one.found for one in found if one.part == "Airflow"]
    assert "kafka_sb has the documented settings" in texts
    assert "redis_sb exists" in texts
    assert "the triggerer, the scheduler and the DAG processor are alive" in texts
    assert "the connection kafka_sa is neither in Airflow's database nor in the environment" in texts
    api.patch("/api/v2/dags/outbox_relay", json={"is_paused": True}).raise_for_status()
    extra = {"bootstrap.servers": system.bootstrap_servers, "group.id": "cachesync-sb"}
    made = {"connection_id": "kafka_sa", "conn_type": "kafka", "extra": json.dumps(extra)}
    api.post("/api/v2/connections", json=made).raise_for_status()
    try:
        found_now = errors(system)
        assert "the DAG outbox_relay is paused" in found_now
        assert any(one.startswith("kafka_sa: enable.auto.commit must be false") for one in found_now)
        assert any(one.startswith("caches sa and sb share the group cachesync-sb") for one in found_now)
    finally:
        api.delete("/api/v2/connections/kafka_sa").raise_for_status()
        api.patch("/api/v2/dags/outbox_relay", json={"is_paused": False}).raise_for_status()
