"""A change as a Kafka message: CloudEvents 1.0, Kafka protocol binding, binary content mode.

Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md

The payload is the message's value, untouched, and everything else is a header, so that a consumer
moves bytes and parses no JSON. A delete is a tombstone, a message without a value.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from cachesync.change import Change, Operation
from cachesync.errors import UndecodableError

if TYPE_CHECKING:
    from confluent_kafka import Message

TRUNCATE_KEY: Final = b"\x00truncate"
"""The message key of a truncate: compaction needs one, and no row's key holds a NUL."""

_TYPE_PREFIX: Final = b"cachesync."
_TYPES: Final = {_TYPE_PREFIX + operation.value.encode(): operation for operation in Operation}
_LARGEST_VERSION: Final = (1 << 63) - 1
_LONGEST_VERSION: Final = 19

Headers = list[tuple[str, str | bytes | None]]


def message_key(change: Change) -> bytes:
    """The key of the change's message."""
    return TRUNCATE_KEY if change.key is None else change.key.encode()


def encode_headers(change: Change) -> Headers:
    """The headers of the change's message."""
    headers: Headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"%d" % change.version),
        ("ce_source", b"/cachesync/" + change.source.encode()),
        ("ce_type", _TYPE_PREFIX + change.operation.encode()),
        ("ce_time", change.changed_at.isoformat().encode()),
        ("ce_rowversion", b"%d" % change.version),
    ]
    if change.fingerprint is not None:
        headers.append(("ce_fingerprint", change.fingerprint))
        headers.append(("content-type", b"application/json"))
    return headers


def headers_of(message: Message) -> Headers:
    """The headers of a consumed message, in order."""
    headers = message.headers() or []
    return list(headers.items()) if isinstance(headers, dict) else headers


def decode(entity: str, key: bytes | None, value: bytes | None, headers: Headers) -> Change:
    """The change that a message carries.

    Raises:
        UndecodableError: it carries none; the text says why.
    """
    fields = dict(headers)
    if fields.get("ce_specversion") != b"1.0":
        message = "no CloudEvents 1.0 message: header ce_specversion is not '1.0'"
        raise UndecodableError(message)
    operation = _TYPES.get(_field(fields, "ce_type"))
    if operation is None:
        message = f"unknown ce_type {_field(fields, 'ce_type')!r}"
        raise UndecodableError(message)
    digits = _field(fields, "ce_rowversion")
    if not digits.isdigit() or len(digits) > _LONGEST_VERSION or not 0 < int(digits) <= _LARGEST_VERSION:
        message = f"ce_rowversion {digits!r} is no row version"
        raise UndecodableError(message)
    fingerprint = None
    if operation is Operation.UPSERT:
        fingerprint = _field(fields, "ce_fingerprint")
        if len(fingerprint) != 8 or value is None:  # noqa: PLR2004 - the length of a fingerprint
            message = "an upsert needs a value and a ce_fingerprint of 8 characters"
            raise UndecodableError(message)
    elif value is not None:
        message = f"a {operation} has no value"
        raise UndecodableError(message)
    if key is None or (operation is Operation.TRUNCATE) != (key == TRUNCATE_KEY):
        message = f"{key!r} cannot be the key of this {operation}"
        raise UndecodableError(message)
    try:
        return Change(
            entity=entity,
            key=None if operation is Operation.TRUNCATE else key.decode(),
            version=int(digits),
            operation=operation,
            fingerprint=fingerprint,
            payload=value,
            source=_field(fields, "ce_source").decode().removeprefix("/cachesync/"),
            changed_at=datetime.fromisoformat(_field(fields, "ce_time").decode()).astimezone(UTC),
        )
    except (ValueError, OverflowError) as error:
        message = f"a header or the key is malformed: {error}"
        raise UndecodableError(message) from error


def _field(fields: dict[str, str | bytes | None], name: str) -> bytes:
    value = fields.get(name)
    if not isinstance(value, bytes):
        message = f"header {name} is missing"
        raise UndecodableError(message)
    return value
