"""Keeps every service's cache in step with the database.

One deferred sensor per service cache (or several, see `CACHESYNC_CONSUMERS_PER_CACHE`) consumes the
changes of all entities from Kafka and applies them to that cache, inside the triggerer, in milliseconds.
It runs for ever: a stream that cannot go on fails its task, which shows here, and is tried again.

Pausing this DAG does not stop a running stream; marking its run as failed does.
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
    # Not mapped: the index of a mapped task would be another consumer's when services or consumers are added
    # or taken away, and its trigger would go on as what it was.
    for consumer in consumers(AirflowSettings()):
        CacheSyncSensor(**consumer)
