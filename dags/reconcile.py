"""Finds what is wrong in the caches, and repairs it.

Every day, and whenever it is triggered, from here, by the API or by Jenkins. The caches are cut into chunks;
one that fails is tried again alone, and goes on where it was.

The report is what the task `report` returns. The run fails if something could not be repaired. A dry run
repairs nothing, and does not fail because of what it finds.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG
from cachesync_airflow.operators.reconcile import PlanOperator, ReconcileChunkOperator, ReportOperator, params
from cachesync_airflow.settings import AirflowSettings

with DAG(
    dag_id="reconcile",
    schedule="@daily",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params=params(AirflowSettings()),
    # A task that begins while Airflow's own API restarts has used up a try.
    default_args={"retries": 5, "retry_delay": timedelta(seconds=20), "retry_exponential_backoff": True},
    doc_md=__doc__,
    tags=["db-cache-sync"],
):
    plan = PlanOperator(task_id="plan")
    chunks = ReconcileChunkOperator.partial(
        task_id="reconcile_chunk",
        map_index_template="{{ task.chunk['label'] }}",
    ).expand(chunk=plan.output)
    chunks >> ReportOperator(task_id="report")
