"""The sensor that runs the outbox relay."""

from __future__ import annotations

from typing import Any

from cachesync_airflow.sensors.thread import ThreadSensor
from cachesync_airflow.triggers.outbox_relay import OutboxRelayTrigger


class OutboxRelaySensor(ThreadSensor):
    """Runs the relay, which publishes the changes that no service publishes."""

    def trigger(self, **run: Any) -> OutboxRelayTrigger:
        """Return the trigger that runs the relay."""
        return OutboxRelayTrigger(**run)
