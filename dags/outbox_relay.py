"""Publishes the changes that no service publishes.

Changes made with `psql` and by other writers are published immediately. Changes that a service committed
but did not publish, because it was killed or Kafka was unavailable, are published within seconds.

The relay also removes lines from the change log that were published more than
`CACHESYNC_CHANGE_LOG_RETENTION_DAYS` ago.

If the relay cannot continue, its task fails with the reason and is retried. A run ends after
`CACHESYNC_HANDOVER_HOURS`, or when one of its tasks has been deleted from Airflow's database. The relay
continues without interruption in the next run.

Pausing this DAG does not stop a running relay. Marking its run as failed does.
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
