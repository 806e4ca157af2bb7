"""Measures whether every cache has a committed change in time.

Each second, the live check changes a row of its own, and looks when each cache has it. It also compares some
of the newest changes, and some slots, with the caches. The work runs in the triggerer; what it sees is in
tables of the schema `cachesync`.

If the live check cannot continue, its task fails with the reason and is retried. A run ends after
`CACHESYNC_HANDOVER_HOURS`, or when one of its tasks has been deleted from Airflow's database. The live check
continues without interruption in the next run.

Pausing this DAG does not stop a running live check. Marking its run as failed does.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG
from cachesync_airflow.sensors.live_check import LiveCheckSensor

with DAG(
    dag_id="live_check",
    schedule="@continuous",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["db-cache-sync"],
):
    LiveCheckSensor(task_id="look")
