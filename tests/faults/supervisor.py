"""What a supervisor does for Airflow, whose components may end when their database is away."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from local.postgres import run_sql

if TYPE_CHECKING:
    from local.system import System

_BEATS = "SELECT count(DISTINCT job_type) FROM job WHERE latest_heartbeat > to_timestamp(:since)"
_JOBS = 3  # the API server is none
_SECONDS = 120.0


def bring_airflow_back(system: System) -> None:
    """Start again what has ended, until every component has been at the database since now."""
    since = str(time.time())
    metadata = system.dsn.rpartition("/")[0] + "/airflow"
    deadline = time.monotonic() + _SECONDS
    while int(run_sql(metadata, _BEATS, since=since)) < _JOBS:
        assert time.monotonic() < deadline, "Airflow did not come back"
        for component in system.airflow.components:
            if not component.running:
                component.start()
        time.sleep(0.5)
