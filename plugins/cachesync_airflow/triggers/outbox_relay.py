"""The trigger that publishes the changes that no service publishes."""

from __future__ import annotations

from cachesync.relay.relay import Relay
from cachesync.reloading import ReloadingWork
from cachesync_airflow.connections import brokers, database
from cachesync_airflow.settings import AirflowSettings
from cachesync_airflow.triggers.thread import ThreadTrigger


class OutboxRelayTrigger(ThreadTrigger):
    """Runs the relay."""

    def open(self) -> ReloadingWork:
        """Create the relay, which connects by itself and reconnects after each outage.

        Raises:
            SettingsError: a setting is missing or invalid.
            DeclarationError: the entities file is missing or invalid.
        """
        settings = AirflowSettings.load()
        return ReloadingWork(
            settings.entities, lambda entities: Relay(database(), brokers(), entities, settings.retention)
        )
