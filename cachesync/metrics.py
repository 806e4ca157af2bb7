"""Every metric of the library, in one place."""

from __future__ import annotations

from typing import Final

from prometheus_client import Counter, Gauge, Histogram

loads: Final = Counter("cachesync_loads", "Rows read from the database for a read", ["entity"])
waits: Final = Counter("cachesync_lease_waits", "Reads that waited for another's load", ["entity"])
cache_failures: Final = Counter(
    "cachesync_cache_failures", "Round trips or commands that Redis did not carry out"
)
published: Final = Counter("cachesync_published", "Changes that the broker acknowledged")
unpublished: Final = Counter(
    "cachesync_unpublished",
    "Changes that could not be published; they stay marked so in the change log",
    ["reason"],
)
relayed: Final = Counter("cachesync_relayed", "Changes that the relay published")
unrelayable: Final = Counter(
    "cachesync_unrelayable",
    "Attempts of the relay to publish a change that the broker refuses; they are made again, ever less often",
    ["entity", "reason"],
)
backlog: Final = Gauge("cachesync_backlog", "Changes that the relay has yet to publish, 100,000 at most")
backlog_age: Final = Gauge(
    "cachesync_backlog_age_seconds", "Since when the oldest of them has been waiting for the relay"
)
gap: Final = Counter(
    "cachesync_gap",
    "Row versions without a line in the change log: of writes rolled back, or past the triggers",
)
pruned: Final = Counter("cachesync_pruned", "Lines that the relay removed from the change log")
applied: Final = Counter(
    "cachesync_applied", "Changes brought to a cache, by what they did", ["service", "effect"]
)
dead_letters: Final = Counter(
    "cachesync_dead_letters", "Messages sent to the dead-letter topic", ["service", "stage"]
)
lag: Final = Histogram(
    "cachesync_lag_seconds",
    "From the end of the statement that made a change to its arrival in a cache",
    ["service"],
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.25, 0.5, 1, 5, 30, 300),
)
paused: Final = Gauge("cachesync_paused", "1 while a stream waits for its Redis", ["service"])
