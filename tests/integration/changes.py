"""Changes of made-up rows, and the slot values that result from them."""

from __future__ import annotations

from datetime import UTC, datetime

from cachesync.change import Change, Operation
from cachesync.value import encode_value

FINGERPRINT = b"abcdef01"


def change(key: str | None, version: int, operation: Operation = Operation.UPSERT) -> Change:
    upsert = operation is Operation.UPSERT
    return Change(
        entity="student",
        key=key,
        version=version,
        operation=operation,
        value=value(version) if upsert else None,
        source="test",
        changed_at=datetime.now(UTC),
    )


def value(version: int) -> bytes:
    return encode_value(version, FINGERPRINT, b'{"version":%d}' % version)
