"""Keeps every service's cache in sync with the database.

One deferred sensor per cache, or several with `CACHESYNC_CONSUMERS_PER_CACHE`, consumes the changes of all
entities from Kafka and applies them to the cache within milliseconds. The work runs in the triggerer.

If a stream cannot continue, its task fails with the reason and is retried. A run ends after
`CACHESYNC_HANDOVER_HOURS`, or when one of its tasks has been deleted from Airflow's database. The stream
continues without interruption in the next run.

Pausing this DAG does not stop a running stream. Marking its run as failed does.
"""

from __future__ import annotations

from datetime import UTC, datetime

from airflow.sdk import DAG
from cachesync_airflow.sensors.cache_sync import CacheSyncSensor, consumers
from cachesync_airflow.settings import AirflowSettings

with DAG(
    dag_id="cache_sync",
    schedule="@continuous",
    start_date=datetime(2026, 1, 1, tzinfo=UTC),
    catchup=False,
    max_active_runs=1,
    doc_md=__doc__,
    tags=["db-cache-sync"],
):
    # Not a mapped task: when services or consumers are added or removed, a map index would belong to another
    # consumer, while the trigger of the mapped task would continue as the previous one.
    for consumer in consumers(AirflowSettings.load()):
        CacheSyncSensor(**consumer)
