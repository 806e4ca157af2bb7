"""The sensor that runs the live check."""

from __future__ import annotations

from typing import Any

from cachesync_airflow.sensors.thread import ThreadSensor
from cachesync_airflow.triggers.live_check import LiveCheckTrigger


class LiveCheckSensor(ThreadSensor):
    """Runs the live check, which measures whether every cache has a committed change in time."""

    def trigger(self, **run: Any) -> LiveCheckTrigger:
        """Return the trigger that runs the live check."""
        return LiveCheckTrigger(**run)
