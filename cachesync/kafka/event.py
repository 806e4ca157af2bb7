"""Events: changes as Kafka messages, in the binary content mode of CloudEvents 1.0.

Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md

The value of a message is the unchanged payload, and everything else is in the headers, so that a consumer
copies bytes and does not parse JSON. A delete is a tombstone, a message without a value.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from cachesync.change import Change, Operation
from cachesync.errors import UndecodableError

if TYPE_CHECKING:
    from confluent_kafka import Message

TRUNCATE_KEY: Final = b"\x00truncate"
"""The message key of a truncate: compaction requires a key, and the key of a row cannot contain NUL."""

_TYPE_PREFIX: Final = b"cachesync."
_TYPES: Final = {_TYPE_PREFIX + operation.value.encode(): operation for operation in Operation}
_MAX_VERSION: Final = (1 << 63) - 1
_MAX_VERSION_DIGITS: Final = 19
_FINGERPRINT_BYTES: Final = 8

Headers = list[tuple[str, str | bytes | None]]


def message_key(change: Change) -> bytes:
    """Return the message key of a change."""
    return TRUNCATE_KEY if change.key is None else change.key.encode()


def encode_headers(change: Change) -> Headers:
    """Return the message headers of a change."""
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
    """Return the headers of a consumed message, in order."""
    headers = message.headers() or []
    return list(headers.items()) if isinstance(headers, dict) else headers


def decode(entity: str, key: bytes | None, value: bytes | None, headers: Headers) -> Change:
    """Decode the change in a message.

    Args:
        entity: the name of the entity, which the topic determines.
        key: the key of the message.
        value: the value of the message; None for a tombstone.
        headers: the headers of the message.

    Raises:
        UndecodableError: the message is not a valid event; the text gives the reason.
    """
    fields = dict(headers)
    if fields.get("ce_specversion") != b"1.0":
        message = "not a CloudEvents 1.0 message: header ce_specversion is not '1.0'"
        raise UndecodableError(message)
    operation = _TYPES.get(_field(fields, "ce_type"))
    if operation is None:
        message = f"unknown ce_type {_field(fields, 'ce_type')!r}"
        raise UndecodableError(message)
    digits = _field(fields, "ce_rowversion")
    if not digits.isdigit() or len(digits) > _MAX_VERSION_DIGITS or not 0 < int(digits) <= _MAX_VERSION:
        message = f"ce_rowversion {digits!r} is not a row version"
        raise UndecodableError(message)
    fingerprint = None
    if operation is Operation.UPSERT:
        fingerprint = _field(fields, "ce_fingerprint")
        if len(fingerprint) != _FINGERPRINT_BYTES or value is None:
            message = "an upsert must have a value and a ce_fingerprint of 8 characters"
            raise UndecodableError(message)
    elif value is not None:
        message = f"a {operation} must not have a value"
        raise UndecodableError(message)
    if key is None or (operation is Operation.TRUNCATE) != (key == TRUNCATE_KEY):
        message = f"{key!r} cannot be the key of a {operation}"
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
        message = f"malformed header or key: {error}"
        raise UndecodableError(message) from error


def _field(fields: dict[str, str | bytes | None], name: str) -> bytes:
    value = fields.get(name)
    if not isinstance(value, bytes):
        message = f"header {name} is missing"
        raise UndecodableError(message)
    return value
