"""What the live check counts."""

from __future__ import annotations

from typing import Final

from cachesync.metrics.kinds import DeclaredCounter, LagHistogram, WorkGauge

judged: Final = DeclaredCounter(
    "cachesync_live_check_judged",
    "Changes of which it is known whether the cache had them at the horizon, in seconds after the commit",
    ["service", "entity", "horizon"],
)
seen: Final = DeclaredCounter(
    "cachesync_live_check_seen",
    "Changes that the cache had at the horizon, in seconds after the commit",
    ["service", "entity", "horizon"],
)
lag: Final = LagHistogram(
    "cachesync_live_check_lag_seconds",
    "Time from the commit of a change of the live check's own until the cache had it",
    buckets=(0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60, 300),
)
oldest_unseen: Final = WorkGauge(
    "cachesync_live_check_oldest_unseen_age_seconds",
    "Age of the oldest change that the cache does not have; 0 if it has all",
    ["service"],
)
violations: Final = DeclaredCounter(
    "cachesync_live_check_violations",
    "Slots that were not right five seconds after a change",
    ["service", "entity", "kind"],
)
last_look: Final = WorkGauge(
    "cachesync_live_check_last_look_timestamp_seconds",
    "When the live check last looked at the cache, in seconds since 1970",
    ["service"],
)
redis_usable: Final = WorkGauge(
    "cachesync_live_check_redis_usable",
    "1 if the Redis of the cache responds and accepts writes, else 0",
    ["service"],
)
capture_lost: Final = WorkGauge(
    "cachesync_live_check_capture_lost",
    "1 while triggers of the entity are missing or do not always fire",
    ["entity"],
)
