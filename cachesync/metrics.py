"""The Prometheus metrics of the library."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

loads: Final = Counter("cachesync_loads", "Rows loaded from the database to answer a read", ["entity"])
waits: Final = Counter("cachesync_lease_waits", "Reads that waited for another read's load", ["entity"])
cache_failures: Final = Counter(
    "cachesync_cache_failures", "Round trips without a reply from Redis, and commands that Redis rejected"
)
published: Final = Counter(
    "cachesync_published", "Changes that a service published and the broker acknowledged"
)
unpublished: Final = Counter(
    "cachesync_unpublished",
    "Changes that a service could not publish; they stay in the change log for the relay",
    ["reason"],
)
relayed: Final = Counter("cachesync_relayed", "Changes that the relay published")
unrelayable: Final = Counter(
    "cachesync_unrelayable",
    "Attempts of the relay to publish a change that the broker rejected; retried with increasing delays",
    ["entity", "reason"],
)
without_payload: Final = Counter(
    "cachesync_published_without_payload",
    "Changes published without their payload because the message would be too large",
    ["entity"],
)
without_key: Final = Counter(
    "cachesync_published_without_key",
    "Changes published as a truncate, which empties all slots of the entity, because the key is too large",
    ["entity"],
)
superseded: Final = Counter(
    "cachesync_superseded",
    "Changes that Kafka rejects, closed because the relay published a newer change of their key",
)
backlog: Final = Gauge("cachesync_backlog", "Changes waiting for the relay, counted up to 100,000")
backlog_age: Final = Gauge("cachesync_backlog_age_seconds", "Age of the oldest change waiting for the relay")
gap: Final = Counter(
    "cachesync_gap",
    "Row versions missing from the change log, because a write was rolled back or bypassed the triggers",
)
capture_lost: Final = Gauge(
    "cachesync_capture_lost",
    "1 while changes of the entity may not be captured, because the schema is not as it was installed",
    ["entity"],
)
pruned: Final = Counter("cachesync_pruned", "Published lines that the relay removed from the change log")
applied: Final = Counter(
    "cachesync_applied", "Changes applied to a cache, by effect on the slot", ["service", "effect"]
)
dead_letters: Final = Counter(
    "cachesync_dead_letters", "Messages sent to the dead-letter topic", ["service", "stage"]
)
lag: Final = Histogram(
    "cachesync_lag_seconds",
    "Time from the end of the statement that made a change until the change is applied to a cache",
    ["service"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 300),
)
paused: Final = Gauge(
    "cachesync_paused", "1 while the stream is paused because its Redis is unavailable", ["service"]
)
