"""What a process of a service counts."""

from __future__ import annotations

from typing import Final

from cachesync.metrics.kinds import DeclaredCounter, DeclaredGauge

hits: Final = DeclaredCounter("cachesync_hits", "Reads answered from the cache", ["entity"])
misses: Final = DeclaredCounter(
    "cachesync_misses", "Reads answered from the database that offered the row to the slot", ["entity"]
)
bypasses: Final = DeclaredCounter(
    "cachesync_bypasses",
    "Reads answered from the database without the cache, by reason: redis (it did not respond, or refused), "
    "wait (another read's load took too long), suspended (changes of the entity may not be captured), "
    "uncertain (slots that must be emptied are not yet), transaction (the caller is in one)",
    ["entity", "reason"],
)
loads: Final = DeclaredCounter(
    "cachesync_loads", "Rows loaded from the database to answer a read", ["entity"]
)
waits: Final = DeclaredCounter(
    "cachesync_lease_waits", "Reads that waited for another read's load", ["entity"]
)
refused_fills: Final = DeclaredCounter(
    "cachesync_refused_fills",
    "Loaded rows that the slot did not take, because a newer change had arrived or the lease had ended",
    ["entity"],
)
cache_failures: Final = DeclaredCounter(
    "cachesync_cache_failures", "Round trips without a reply from Redis, and commands that Redis rejected"
)
open_breakers: Final = DeclaredGauge(
    "cachesync_open_breakers",
    "Breakers that are open, of all processes and, in a Redis Cluster, of all primaries",
    combined="livesum",
)
refusing_redis: Final = DeclaredGauge(
    "cachesync_redis_refuses_commands",
    "1 while the service's Redis responds but refuses commands, such as writes when its memory is full",
    combined="livemax",
)
pool_connections: Final = DeclaredGauge(
    "cachesync_pool_connections",
    "Connections to the database in the pools of all processes, by state: idle or used",
    ["state"],
    combined="livesum",
)
pool_limit: Final = DeclaredGauge(
    "cachesync_pool_limit", "Connections to the database that the pools may have", combined="livesum"
)
published: Final = DeclaredCounter(
    "cachesync_published", "Changes that a service published and the broker acknowledged"
)
unpublished: Final = DeclaredCounter(
    "cachesync_unpublished",
    "Changes that a service could not publish; they stay in the change log for the relay",
    ["reason"],
)
suspended: Final = DeclaredGauge(
    "cachesync_suspended",
    "1 while changes of the entity may not be captured: reads go past the cache, and writes are refused",
    ["entity"],
    combined="livemax",
)
