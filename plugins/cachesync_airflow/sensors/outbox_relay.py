"""The sensor that keeps the change log published."""

from __future__ import annotations

from cachesync_airflow.sensors.thread import ThreadSensor
from cachesync_airflow.triggers.outbox_relay import OutboxRelayTrigger


class OutboxRelaySensor(ThreadSensor):
    """Runs the relay."""

    def trigger(self) -> OutboxRelayTrigger:
        """The relay."""
        return OutboxRelayTrigger()
