"""The trigger that publishes what nobody else has published, inside the triggerer."""

from __future__ import annotations

from datetime import timedelta

from cachesync.entity import load_entities
from cachesync.relay.relay import Relay
from cachesync_airflow.connections import brokers, database
from cachesync_airflow.settings import AirflowSettings
from cachesync_airflow.triggers.thread import ThreadTrigger


class OutboxRelayTrigger(ThreadTrigger):
    """Relays."""

    def open(self) -> Relay:
        """Take the connections; the relay connects by itself, and again after each outage."""
        settings = AirflowSettings()
        return Relay(
            database(),
            brokers(),
            load_entities(settings.entities),
            timedelta(days=settings.change_log_retention_days),
        )
