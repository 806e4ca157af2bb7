"""Restarts Airflow's components as a supervisor would; they can exit while their database is unavailable."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from local.postgres import run_sql

if TYPE_CHECKING:
    from local.system import System

_BEATS = "SELECT count(DISTINCT job_type) FROM job WHERE latest_heartbeat > to_timestamp(:since)"
_JOBS = 3  # the API server has none
_SECONDS = 120.0


def metadata(system: System) -> str:
    """Return the DSN of Airflow's metadata database."""
    return system.dsn.rpartition("/")[0] + "/airflow"


def bring_airflow_back(system: System) -> None:
    """Restart components that have exited, until every component has sent a heartbeat since the call."""
    since = str(time.time())
    deadline = time.monotonic() + _SECONDS
    while int(run_sql(metadata(system), _BEATS, since=since)) < _JOBS:
        assert time.monotonic() < deadline, "Airflow did not recover"
        for component in system.airflow.components:
            if not component.running:
                component.start()
        time.sleep(0.5)
