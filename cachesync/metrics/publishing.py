"""What every process that publishes counts: services and relays."""

from __future__ import annotations

from typing import Final

from cachesync.metrics.kinds import DeclaredCounter

without_payload: Final = DeclaredCounter(
    "cachesync_published_without_payload",
    "Changes published without their payload because the message would be too large",
    ["entity"],
)
without_key: Final = DeclaredCounter(
    "cachesync_published_without_key",
    "Changes published as a truncate, which empties all slots of the entity, because the key is too large",
    ["entity"],
)
