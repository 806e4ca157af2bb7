"""The metrics of the live check."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

from cachesync.live_check.judge import LAG_BOUNDS
from cachesync.metrics.kinds import WorkGauge

_PREFIX: Final = "cachesync_live_check"

judged: Final = Counter(
    f"{_PREFIX}_judged_total",
    "Changes of which it is known whether the cache had them at the horizon, in seconds after the commit.",
    ["service", "entity", "horizon"],
)
seen: Final = Counter(
    f"{_PREFIX}_seen_total",
    "Changes that the cache had at the horizon, in seconds after the commit.",
    ["service", "entity", "horizon"],
)
lag: Final = Histogram(
    f"{_PREFIX}_lag_seconds",
    "Time from the commit of a change of the live check's own until the cache had it.",
    ["service"],
    buckets=LAG_BOUNDS,
)
oldest_unseen: Final = Gauge(
    f"{_PREFIX}_oldest_unseen_age_seconds",
    "Age of the oldest change that the cache does not have; 0 if it has all.",
    ["service"],
)
violations: Final = Counter(
    f"{_PREFIX}_violations_total",
    "Slots that were not right five seconds after a change.",
    ["service", "entity", "kind"],
)
last_look: Final = Gauge(
    f"{_PREFIX}_last_look_timestamp_seconds", "When the live check last looked at the cache.", ["service"]
)
redis_state: Final = Gauge(
    f"{_PREFIX}_redis_usable", "Whether the Redis of the cache responds and accepts writes.", ["service"]
)
capture_lost: Final = WorkGauge(
    f"{_PREFIX}_capture_lost", "Whether triggers of the entity are missing or do not always fire.", ["entity"]
)
