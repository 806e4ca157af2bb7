"""Runs DAGs through Airflow's REST API."""

from __future__ import annotations

import secrets
import time
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import httpx


def run_dag(dag: httpx.Client, task: str, **conf: object) -> tuple[str, str, Any]:
    """Run a DAG to its end.

    Args:
        dag: a client whose base URL is the DAG's.
        task: the task whose return value is of interest.
        conf: parameters of the run.

    Returns:
        The run's ID, its final state, and the task's return value, or None if there is none.
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
