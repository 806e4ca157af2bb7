"""Compares the caches with the database and repairs drift.

This DAG runs daily, and whenever it is triggered in Airflow, through its API or by Jenkins. The caches are
divided into chunks. A chunk that fails is retried independently and resumes where it left off.

The report is the XCom of the task `report`. The run fails if something could not be repaired. A dry run
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
    params=params(AirflowSettings.load()),
    # A task that starts while Airflow's API restarts uses up an attempt.
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
