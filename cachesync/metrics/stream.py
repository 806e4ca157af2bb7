"""What a stream counts."""

from __future__ import annotations

from typing import Final

from cachesync.metrics.kinds import DeclaredCounter, LagHistogram, WorkGauge

applied: Final = DeclaredCounter(
    "cachesync_applied",
    "Changes applied to the slots of a cache, of rows and of unique lookups, by effect on the slot",
    ["service", "effect"],
)
dead_letters: Final = DeclaredCounter(
    "cachesync_dead_letters", "Messages sent to the dead-letter topic", ["service", "stage"]
)
lag: Final = LagHistogram(
    "cachesync_lag_seconds",
    "Time from the end of the statement that made a change until the change is applied to a cache",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 300),
)
consumer_lag: Final = WorkGauge(
    "cachesync_consumer_lag_messages",
    "Messages of a partition that the stream has not applied yet",
    ["service", "topic", "partition"],
)
consumer_lag_age: Final = WorkGauge(
    "cachesync_consumer_lag_seconds",
    "Upper bound for the age of the oldest message of a partition that the stream has not applied yet",
    ["service", "topic", "partition"],
)
streams: Final = WorkGauge(
    "cachesync_streams", "Streams of the cache that run in this process", ["service"], combined="sum"
)
paused: Final = WorkGauge(
    "cachesync_paused",
    "Streams of the cache that are paused because its Redis is unavailable",
    ["service"],
    combined="sum",
)
