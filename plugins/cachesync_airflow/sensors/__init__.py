"""Sensors of the DAGs `cache_sync` and `outbox_relay`.

Each defers to its trigger at once, so that it does not occupy a worker. If the trigger cannot continue, the
sensor fails and Airflow retries it. A sensor does no work itself and does not connect to any server.
"""
