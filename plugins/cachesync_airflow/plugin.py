"""The plugin that Airflow finds, in the installed package or in its plugins folder."""

from __future__ import annotations

from airflow.plugins_manager import AirflowPlugin


class CacheSyncPlugin(AirflowPlugin):
    """Shows db-cache-sync among Airflow's plugins.

    The sensors, triggers and operators are imported by their paths and need no registration.
    """

    name = "db_cache_sync"
