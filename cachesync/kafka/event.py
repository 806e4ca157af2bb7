"""Events: changes as Kafka messages, in the binary content mode of CloudEvents 1.0.

Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md

The value of a message is the unchanged payload, and everything else is in the headers, so that a consumer
copies bytes and does not parse JSON. A delete is a tombstone, a message without a value. An upsert whose
payload is too large for Kafka has an empty value and no fingerprint; it empties the slot.
"""

from __future__ import annotations

import gc
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

_PAYLOAD_HEADERS: Final = frozenset({"ce_fingerprint", "content-type"})

Headers = list[tuple[str, str | bytes | None]]

_UNREADABLE: Final[Headers] = [("unreadable-headers", b"")]


def message_key(change: Change) -> bytes:
    """Return the message key of a change."""
    return TRUNCATE_KEY if change.key is None else change.key.encode()


def message_value(change: Change) -> bytes | None:
    """Return the message value of a change.

    It is empty for an upsert without a payload: compaction would treat a message without a value as a delete.
    """
    return b"" if change.payload is None and change.operation is Operation.UPSERT else change.payload


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


def without_payload(headers: Headers) -> Headers:
    """Return the headers of the same change without its payload."""
    return [header for header in headers if header[0] not in _PAYLOAD_HEADERS]


def headers_of(message: Message) -> Headers:
    """Return the headers of a consumed message, in order.

    If the name of a header is not UTF-8, none can be read, and the only header returned says so.
    """
    # The client then returns, in the middle of raising an error, a list with a null pointer in place of the
    # name, which would crash the process if it were read. The garbage collector skips it.
    try:
        headers = message.headers() or []
        readable = len(gc.get_referents(*headers)) == 2 * len(headers)
    except (SystemError, UnicodeDecodeError):
        readable = False
    if not readable:
        headers = _UNREADABLE
        message.set_headers(headers)
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
    if headers == _UNREADABLE:
        message = "the name of a header is not UTF-8"
        raise UndecodableError(message)
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
    fingerprint = _fingerprint(operation, value, fields)
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
            payload=value or None,
            source=_field(fields, "ce_source").decode().removeprefix("/cachesync/"),
            changed_at=datetime.fromisoformat(_field(fields, "ce_time").decode()).astimezone(UTC),
        )
    except (ValueError, OverflowError) as error:
        message = f"malformed header or key: {error}"
        raise UndecodableError(message) from error


def _fingerprint(
    operation: Operation, value: bytes | None, fields: dict[str, str | bytes | None]
) -> bytes | None:
    """Return the fingerprint of the payload; None if there is no payload."""
    if operation is not Operation.UPSERT:
        if value is not None:
            message = f"a {operation} must not have a value"
            raise UndecodableError(message)
        return None
    # An upsert without a payload has an empty value, which programs that copy messages may turn into none.
    if not value and "ce_fingerprint" not in fields:
        return None
    fingerprint = _field(fields, "ce_fingerprint")
    if len(fingerprint) != _FINGERPRINT_BYTES or not value:
        message = "an upsert must have a value and a ce_fingerprint of 8 characters, or neither"
        raise UndecodableError(message)
    return fingerprint


def _field(fields: dict[str, str | bytes | None], name: str) -> bytes:
    value = fields.get(name)
    if not isinstance(value, bytes):
        message = f"header {name} is missing"
        raise UndecodableError(message)
    return value
