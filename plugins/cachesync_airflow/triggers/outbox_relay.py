"""The trigger that publishes the changes that no service publishes."""

from __future__ import annotations

from cachesync.entity import load_entities
from cachesync.relay.relay import Relay
from cachesync_airflow.connections import brokers, database
from cachesync_airflow.settings import AirflowSettings
from cachesync_airflow.triggers.thread import ThreadTrigger


class OutboxRelayTrigger(ThreadTrigger):
    """Runs the relay."""

    def open(self) -> Relay:
        """Create the relay, which connects by itself and reconnects after each outage."""
        settings = AirflowSettings.load()
        return Relay(database(), brokers(), load_entities(settings.entities), settings.retention)
