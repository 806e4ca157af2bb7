"""Sensors of the DAGs `cache_sync` and `outbox_relay`; each defers to a trigger."""
