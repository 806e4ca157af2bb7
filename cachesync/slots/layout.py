"""Slots: the Redis strings that hold what a cache knows about each row, and the effect of changes on them.

======  =============================================================  ====================
state   bytes                                                          a read
======  =============================================================  ====================
empty   no such string                                                 takes the lease
lease   `L`, floor (19 digits), token                                  waits
value   `V`, row version (19 digits), fingerprint (8), payload         is a hit
absent  `A`                                                            is a hit: no such row
======  =============================================================  ====================

`cachesync.value` encodes values. In the slots of a unique lookup, the payload is the key of the row that has
the value, and *absent* means that no row has it.

Anything else under the name of a slot is unreadable: a miss, which the next load or change replaces. So is a
lease with an impossible lifetime, which only the scripts notice.
"""

from __future__ import annotations

import random
import secrets
from dataclasses import replace
from typing import TYPE_CHECKING, Final, NamedTuple

from cachesync.change import Operation, Row
from cachesync.lookup import decode_values, lookup_name, values_in
from cachesync.value import (
    FINGERPRINT,
    HIGHEST_VERSION,
    UP_TO_PAYLOAD,
    VERSION,
    encode_head,
    encode_value,
    encode_version,
    is_value,
    version_of,
)

if TYPE_CHECKING:
    from datetime import timedelta

    from cachesync.change import Change
    from cachesync.entity import Entity, OnChange
    from cachesync.lookup import Values

ABSENT: Final = b"A"
EMPTY: Final = b""
_LEASE: Final = ord("L")

HEAD_BYTES: Final = UP_TO_PAYLOAD + 1
"""Length of the part of a slot that shows what it is, in bytes: a value without any payload is unreadable."""

LONGEST_LEASE_MS: Final = 60_000
"""The longest lease that can be configured, as in `lua/slot.lua`."""


EMPTIES_ABSENT: Final = encode_head(1)
"""The version of a change that empties *absent*, makes leases refuse it, and is older than every value."""


class SlotChange(NamedTuple):
    """The effect of a change on one slot: the arguments of the script `change`.

    Attributes:
        name: the slot's Redis key.
        version: the version of the change, encoded.
        content: the new content of the slot; `EMPTY` if the change empties it.
        ttl_ms: the lifetime of that content, in milliseconds.
    """

    name: str
    version: bytes
    content: bytes
    ttl_ms: int


def slot_name(service: str, entity: str, key: str) -> str:
    """Return the Redis key of a row's slot; or of a value's, if `lookup_name` is given for the entity."""
    return f"{service}:{entity}:{key}"


def reads_name(service: str) -> str:
    """Return the Redis key of the hash in which the processes of a service count its reads."""
    return slot_name(service, lookup_name("", ""), "reads")


def decode_value(slot: bytes, key: str, fingerprint: bytes) -> Row | None:
    """Decode the row in a slot.

    Args:
        slot: the content of a slot.
        key: the key of the row.
        fingerprint: the schema fingerprint that the caller can serve.

    Returns:
        The row; None if the slot is not a value, or has another fingerprint.
    """
    if slot[FINGERPRINT] != fingerprint or not is_value(slot):
        return None
    return row_of(key, slot)


def row_of(key: str, value: bytes) -> Row:
    """Return the row in a value."""
    return Row(key, version_of(value), value[FINGERPRINT], value[UP_TO_PAYLOAD:])


def value_of(row: Row) -> bytes:
    """Return the value of a row."""
    return encode_value(row.version, row.fingerprint, row.payload)


def is_lease(slot: bytes) -> bool:
    """Return whether a slot, of which the first `HEAD_BYTES` suffice, is a lease.

    A lease whose lifetime is not that of a lease is unreadable all the same; see `is_lease_lifetime`.
    """
    return len(slot) > VERSION.stop and slot[0] == _LEASE and slot[VERSION].isdigit()


def is_lease_lifetime(milliseconds: int) -> bool:
    """Return whether a lease can have this remaining lifetime, as Redis reports it."""
    return 0 <= milliseconds <= LONGEST_LEASE_MS


def is_readable(slot: bytes) -> bool:
    """Return whether a slot that is not empty, and of which the first `HEAD_BYTES` suffice, is one."""
    return slot == ABSENT or is_value(slot) or is_lease(slot)


def slot_change_of(service: str, entity: Entity, change: Change) -> SlotChange:
    """Return the effect of a change of a row on its slot in the cache of a service."""
    return SlotChange(
        slot_name(service, entity.name, change.key or ""),
        encode_version(change.version),
        changed_content(entity.on_change, change.value),
        with_jitter(entity.ttl),
    )


def values_after(entity: Entity, change: Change) -> Values | None:
    """Return what a row has in the lookups of its entity after a change; None if that is not known."""
    if change.operation is Operation.DELETE or not entity.unique:
        return {}
    if change.value is None:
        return decode_values(entity.lookups, change.unique)
    return values_in(entity.lookups, change.value[UP_TO_PAYLOAD:])


def lookup_changes_of(
    service: str, entity: Entity, key: str, head: bytes, values: Values
) -> list[SlotChange]:
    """Return the effect of a change of a row on the slots of the values that it now has.

    That of a value that it no longer has stays as it is: a read compares what a slot says with the row.

    Args:
        service: the name of the service.
        entity: the entity.
        key: the key of the row.
        head: the value of the row up to its payload; only up to the version if the rest is not known.
        values: the values that the row has.
    """
    content = head + key.encode() if len(head) == UP_TO_PAYLOAD else None
    return [
        SlotChange(
            slot_name(service, lookup_name(entity.name, name), text),
            head[VERSION],
            changed_content(entity.on_change, content),
            with_jitter(entity.ttl),
        )
        for name, text in values.items()
        if text is not None
    ]


def advance_of(entity: Entity, name: str, row: Row | None) -> SlotChange:
    """Return the effect of a row that was read from the database on its slot.

    A slot that should be empty, because there is no row, is emptied whatever its version: the version of the
    delete is unknown.

    Args:
        entity: the entity.
        name: the slot's Redis key.
        row: the row; None if there is none.
    """
    return SlotChange(
        name,
        HIGHEST_VERSION if row is None else encode_version(row.version),
        changed_content(entity.on_change, None if row is None else value_of(row)),
        with_jitter(entity.ttl),
    )


def changed_content(on_change: OnChange, value: bytes | None) -> bytes:
    """Return the new content of a slot whose row has changed.

    Args:
        on_change: the policy of the entity.
        value: the value of the row after the change; None after a delete, or if it is unknown.
    """
    return EMPTY if value is None or on_change == "invalidate" else value


def filled_content(entity: Entity, row: Row | None) -> tuple[bytes, int]:
    """Return the content with which a load fills the slot of a row, and its lifetime in milliseconds."""
    if row is None:
        return ABSENT, with_jitter(entity.absent_ttl)
    return value_of(row), with_jitter(entity.ttl)


def found_content(entity: Entity, row: Row | None) -> tuple[bytes, int]:
    """Return the content with which a load fills the slot of a lookup, and its lifetime in milliseconds."""
    return filled_content(entity, None if row is None else replace(row, payload=row.key.encode()))


def is_past(head: bytes, version: int) -> bool:
    """Return whether a slot is already at or past a version, so that a change of that version does nothing.

    Args:
        head: the first `HEAD_BYTES` of the slot; empty if the slot is empty.
        version: the version of the change.
    """
    if not head:
        return True
    return (is_value(head) or is_lease(head)) and head[VERSION] >= encode_version(version)


def with_jitter(ttl: timedelta) -> int:
    """Return a lifetime in milliseconds, shortened by up to a tenth.

    This way, slots that were filled together do not expire together.
    """
    return max(1, int(ttl.total_seconds() * 1000 * random.uniform(0.9, 1.0)))  # noqa: S311 - no secret


def new_token() -> str:
    """Return a unique token for a lease."""
    return secrets.token_hex(8)
