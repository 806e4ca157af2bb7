"""What a relay counts, and what it finds in the database for all others."""

from __future__ import annotations

from typing import Final

from cachesync.metrics.kinds import DeclaredCounter, WorkGauge

relayed: Final = DeclaredCounter("cachesync_relayed", "Changes that the relay published")
unrelayable: Final = DeclaredCounter(
    "cachesync_unrelayable",
    "Attempts of the relay to publish a change that the broker rejected; retried with increasing delays",
    ["entity", "reason"],
)
superseded: Final = DeclaredCounter(
    "cachesync_superseded",
    "Changes that Kafka rejects, closed because the relay published a newer change of their key",
)
backlog: Final = WorkGauge("cachesync_backlog", "Changes waiting for the relay, in up to 100,000 lines")
backlog_age: Final = WorkGauge(
    "cachesync_backlog_age_seconds", "Age of the oldest change waiting for the relay"
)
gap: Final = DeclaredCounter(
    "cachesync_gap",
    "Row versions missing from the change log, such as those of writes that were rolled back",
)
pruned: Final = DeclaredCounter(
    "cachesync_pruned", "Published lines that the relay removed from the change log"
)
capture_lost: Final = WorkGauge(
    "cachesync_capture_lost",
    "1 while changes of the entity may not be captured, because the schema is not as it was installed",
    ["entity"],
)
catalog_checked: Final = WorkGauge(
    "cachesync_catalog_check_timestamp_seconds",
    "When the relay last compared the catalog with the registry, in seconds since 1970",
)
parked: Final = WorkGauge(
    "cachesync_parked_letters", "Dead letters in the parking lot that nobody has closed", ["service"]
)
reconciled: Final = WorkGauge(
    "cachesync_reconciliation_timestamp_seconds",
    "When the last reconciliation of the service's cache with a report ended, in seconds since 1970",
    ["service"],
)
drift: Final = WorkGauge(
    "cachesync_reconciliation_drift",
    "Slots of that reconciliation by finding: each kind of drift, repaired, and failed (not repaired)",
    ["service", "entity", "finding"],
)
unfinished: Final = WorkGauge(
    "cachesync_reconciliation_unfinished_seconds",
    "Age of the last planned reconciliation if it has no report yet, else 0",
)
