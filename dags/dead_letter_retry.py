"""Tries dead letters again.

Every minute it tries those whose time has come: the row is read again and brought to the cache, unless the
cache is at or past it already. What fails again waits up to twice as long, and is parked after its last
attempt; what cannot be decoded is parked at once. A run fails while a Redis, the database or Kafka is away;
nothing is lost.

Triggered with parameters, it lists and shows letters, counts them, replays them at once, parked ones too, or
discards them. What came of it is what the task `letters` returns; every action leaves a row in the table
`cachesync.dead_letter_action`.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG
from cachesync_airflow.operators.dead_letters import DeadLettersOperator, params
from cachesync_airflow.settings import AirflowSettings

with DAG(
    dag_id="dead_letter_retry",
    schedule="* * * * *",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    params=params(AirflowSettings()),
    doc_md=__doc__,
    tags=["db-cache-sync"],
):
    DeadLettersOperator(task_id="letters")
