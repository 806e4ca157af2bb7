"""Checks that every cache is followed and that the relay is running.

Every minute, this DAG looks whether a living consumer has each partition that a cache must follow, and
whether a relay is connected to the database. If not within 45 seconds, the run fails and names the cache.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from airflow.sdk import DAG
from cachesync_airflow.operators.stream_check import StreamCheckOperator

with DAG(
    dag_id="stream_check",
    schedule="* * * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    # Not what the check finds, but a task that could not start, for example while Airflow's API restarts.
    default_args={"retries": 2, "retry_delay": timedelta(seconds=5)},
    doc_md=__doc__,
    tags=["db-cache-sync"],
):
    StreamCheckOperator(task_id="check")
