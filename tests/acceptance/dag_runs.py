"""Runs of DAGs, triggered over Airflow's REST API."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx


def run_dag(dag: httpx.Client, task: str, **conf: object) -> tuple[str, str, Any]:
    """A run's id, the state it ended in, and what its task returned, if anything.

    The client's base is the DAG's address.
    """
    run = f"test-{secrets.token_hex(4)}"
    accepted = dag.post("/dagRuns", json={"dag_run_id": run, "logical_date": None, "conf": conf})
    assert accepted.is_success, accepted.text
    deadline = time.monotonic() + 120
    state = ""
    while state not in {"success", "failed"}:
        assert time.monotonic() < deadline, state
        time.sleep(0.5)
        state = dag.get(f"/dagRuns/{run}").json()["state"]
    returned = dag.get(f"/dagRuns/{run}/taskInstances/{task}/xcomEntries/return_value")
    return run, state, returned.json()["value"] if returned.is_success else None
