"""Publishes the changes that nobody else publishes.

Those of `psql` and every other writer at once; within seconds those that a service had committed but, being
killed or without Kafka, not published.

It also removes from the change log what has been published for longer than
`CACHESYNC_CHANGE_LOG_RETENTION_DAYS`. It runs for ever: a relay that cannot go on fails its task, which shows
here, and is tried again.

Pausing this DAG does not stop a running relay; marking its run as failed does.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG
from cachesync_airflow.sensors.outbox_relay import OutboxRelaySensor

with DAG(
    dag_id="outbox_relay",
    schedule="@continuous",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["db-cache-sync"],
):
    OutboxRelaySensor(task_id="relay")
