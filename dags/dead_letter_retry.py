"""Retries dead letters.

Every minute, this DAG retries the dead letters that are due: it reads the row again and applies it to the
cache, unless the cache already holds that version or a newer one. A letter that fails again waits up to
twice as long, and is parked after its last attempt. A letter that cannot be decoded is parked immediately. A
run fails if a Redis, the database or Kafka is unavailable; nothing is lost, and the next run processes the
rest.

Trigger the DAG with parameters to list, show or count letters, to replay them now, including parked ones,
or to discard them. The result is the XCom of the task `letters`. Every action is recorded in the table
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
    params=params(AirflowSettings.load()),
    doc_md=__doc__,
    tags=["db-cache-sync"],
):
    DeadLettersOperator(task_id="letters")
