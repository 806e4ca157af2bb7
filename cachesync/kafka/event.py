"""Events: changes as Kafka messages.

An upsert is a message without headers. Its value is the row's value, as a slot holds it, and its timestamp is
the time of the change, so that a consumer moves bytes and decodes nothing.

All other changes are events in the binary content mode of CloudEvents 1.0, whose headers have the version. A
delete is a tombstone, a message without a value. An upsert that is too large for Kafka has an empty value; it
empties the slot, and a header has the values of the row in unique lookups. Earlier versions of this library
sent all upserts as events, with the payload as the value.

Source: https://github.com/cloudevents/spec/blob/v1.0.2/cloudevents/bindings/kafka-protocol-binding.md
"""

from __future__ import annotations

import gc
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Final

from cachesync.change import EPOCH, MILLISECOND, Change, Event, Operation, event_of
from cachesync.errors import UndecodableError
from cachesync.value import UP_TO_PAYLOAD, VERSION, encode_head, encode_value, is_value, version_of

if TYPE_CHECKING:
    from collections.abc import Mapping

    from confluent_kafka import Message

TRUNCATE_KEY: Final = b"\x00truncate"
"""The message key of a truncate: compaction requires a key, and the key of a row cannot contain NUL."""

_TYPE_PREFIX: Final = b"cachesync."
_TYPES: Final = {_TYPE_PREFIX + operation.value.encode(): operation for operation in Operation}
_LAST_MILLISECOND: Final = (datetime(9999, 1, 1, tzinfo=UTC) - EPOCH) // MILLISECOND
_MAX_VERSION: Final = (1 << 63) - 1
_MAX_VERSION_DIGITS: Final = 19
_BEFORE_FIRST: Final = encode_head(0)
_LAST: Final = encode_head(_MAX_VERSION)
_FINGERPRINT_BYTES: Final = 8
_UNIQUE: Final = "ce_unique"

_PAYLOAD_HEADERS: Final = frozenset({"ce_fingerprint", "content-type"})

Headers = list[tuple[str, str | bytes | None]]

_UNREADABLE: Final[Headers] = [("unreadable-headers", b"")]


def message_key(change: Change) -> bytes:
    """Return the message key of a change."""
    return TRUNCATE_KEY if change.key is None else change.key.encode()


def message_value(change: Change) -> bytes | None:
    """Return the message value of a change.

    It is empty for an upsert without a value: compaction would treat a message without a value as a delete.
    """
    return b"" if change.value is None and change.operation is Operation.UPSERT else change.value


def time_of(milliseconds: int) -> datetime:
    """Return the time of a message.

    Kafka accepts almost any number. If it is not a time, the nearest one is returned.
    """
    return EPOCH + max(0, min(milliseconds, _LAST_MILLISECOND)) * MILLISECOND


def encode_headers(change: Change) -> Headers:
    """Return the message headers of a change."""
    if change.value is not None:
        return []
    headers: Headers = [
        ("ce_specversion", b"1.0"),
        ("ce_id", b"%d" % change.version),
        ("ce_source", b"/cachesync/" + change.source.encode()),
        ("ce_type", _TYPE_PREFIX + change.operation.encode()),
        ("ce_time", change.changed_at.isoformat().encode()),
        ("ce_rowversion", b"%d" % change.version),
    ]
    if change.unique:
        headers.append((_UNIQUE, change.unique))
    return headers


def without_value(value: bytes, headers: Headers, milliseconds: int) -> Headers:
    """Return the headers of the same change without its value.

    Args:
        value: the value of the message.
        headers: the headers of the message.
        milliseconds: the timestamp of the message.
    """
    if _is_event(dict(headers)) or not is_value(value):
        return [header for header in headers if header[0] not in _PAYLOAD_HEADERS]
    bare = Change("", None, version_of(value), Operation.UPSERT, None, "", time_of(milliseconds))
    return [*encode_headers(bare), *headers]


def headers_of(message: Message) -> Headers:
    """Return the headers of a consumed message, in order.

    If the name of a header is not UTF-8, none can be read, and the only header returned says so.
    """
    # The client then returns, in the middle of raising an error, a list with a null pointer in place of the
    # name, which would crash the process if it were read. The garbage collector skips it.
    try:
        headers = message.headers() or []
        if not headers:
            return []
        readable = len(gc.get_referents(*headers)) == 2 * len(headers)
    except (SystemError, UnicodeDecodeError):
        readable = False
    if not readable:
        headers = _UNREADABLE
        message.set_headers(headers)
    return list(headers.items()) if isinstance(headers, dict) else headers


def decode_event(entity: str, message: Message) -> Event:
    """Decode what a cache needs to know of the change in a consumed message.

    Args:
        entity: the name of the entity, which the topic determines.
        message: the message.

    Raises:
        UndecodableError: as for `decode_message`.
    """
    key, value = message.key(), message.value()
    # An upsert without headers, which is what most messages are, needs no decoding.
    if (
        value is not None
        and len(value) > UP_TO_PAYLOAD
        and _BEFORE_FIRST < value[: VERSION.stop] <= _LAST
        and value[VERSION].isdigit()
        and key is not None
        and key.isascii()
        and key != TRUNCATE_KEY
        and not headers_of(message)
    ):
        return Event(entity, key, value, message.timestamp()[1])
    return event_of(decode_message(entity, message))


def decode_message(entity: str, message: Message) -> Change:
    """Decode the change in a consumed message.

    Args:
        entity: the name of the entity, which the topic determines.
        message: the message.

    Raises:
        UndecodableError: the message is not a valid event; the text gives the reason.
    """
    return decode(entity, message.key(), message.value(), headers_of(message), message.timestamp()[1])


def decode(
    entity: str, key: bytes | None, value: bytes | None, headers: Headers, milliseconds: int
) -> Change:
    """Decode the change in a message.

    Args:
        entity: the name of the entity, which the topic determines.
        key: the key of the message.
        value: the value of the message; None for a tombstone.
        headers: the headers of the message.
        milliseconds: the timestamp of the message.

    Raises:
        UndecodableError: the message is not a valid event; the text gives the reason.
    """
    fields = dict(headers)
    if headers == _UNREADABLE:
        message = "the name of a header is not UTF-8"
        raise UndecodableError(message)
    if value is not None and is_value(value) and not _is_event(fields):
        return _decode_value(entity, key, value, milliseconds)
    if fields.get("ce_specversion") != b"1.0":
        message = "neither a value without headers nor a CloudEvents 1.0 message with ce_specversion '1.0'"
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
            value=None if not value or fingerprint is None else encode_value(int(digits), fingerprint, value),
            source=_field(fields, "ce_source").decode().removeprefix("/cachesync/"),
            changed_at=datetime.fromisoformat(_field(fields, "ce_time").decode()).astimezone(UTC),
            unique=_unique(fields),
        )
    except (ValueError, OverflowError) as error:
        message = f"malformed header or key: {error}"
        raise UndecodableError(message) from error


def _decode_value(entity: str, key: bytes | None, value: bytes, milliseconds: int) -> Change:
    version = version_of(value)
    if not 0 < version <= _MAX_VERSION:
        message = f"{version} is not a row version"
        raise UndecodableError(message)
    if key is None or key == TRUNCATE_KEY:
        message = f"{key!r} cannot be the key of an upsert"
        raise UndecodableError(message)
    try:
        text = key.decode()
    except UnicodeDecodeError as error:
        message = f"malformed key: {error}"
        raise UndecodableError(message) from error
    return Change(entity, text, version, Operation.UPSERT, value, "", time_of(milliseconds))


def _is_event(fields: Mapping[str, str | bytes | None]) -> bool:
    return "ce_specversion" in fields


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


def _unique(fields: Mapping[str, str | bytes | None]) -> bytes:
    """Return the values of the row in unique lookups; empty if the message does not have them."""
    unique = fields.get(_UNIQUE)
    return unique if isinstance(unique, bytes) else b""


def _field(fields: dict[str, str | bytes | None], name: str) -> bytes:
    value = fields.get(name)
    if not isinstance(value, bytes):
        message = f"header {name} is missing"
        raise UndecodableError(message)
    return value
