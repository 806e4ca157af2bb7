"""Takes the members out of a consumer group, and deletes it; the clients do not learn why."""

from __future__ import annotations

import socket
import struct
import time
from typing import TYPE_CHECKING, Final

from confluent_kafka import KafkaException
from confluent_kafka.admin import AdminClient

if TYPE_CHECKING:
    from collections.abc import Collection

_SECONDS: Final = 10.0
_LEAVE_GROUP: Final = 13
_VERSION: Final = 3


def delete_group(bootstrap_servers: str, group: str) -> bool:
    """Remove all members of a consumer group, as its coordinator does with silent ones, and delete the group.

    Its consumers still believe that they are members, and the offsets that they committed are gone.

    Returns:
        Whether the group was deleted; it is not if Kafka is unavailable, or if its consumers keep rejoining.
    """
    admin = AdminClient({"bootstrap.servers": bootstrap_servers, "log_level": 0})
    deadline = time.monotonic() + _SECONDS
    while time.monotonic() < deadline:
        try:
            described = admin.describe_consumer_groups([group], request_timeout=_SECONDS)[group].result()
            _remove(bootstrap_servers, group, [member.member_id for member in described.members])
            admin.delete_consumer_groups([group], request_timeout=_SECONDS)[group].result()
        except (KafkaException, OSError):
            time.sleep(0.1)
        else:
            return True
    return False


def _remove(bootstrap_servers: str, group: str, members: Collection[str]) -> None:
    """Send a LeaveGroup request for the members; no client of Python can send one for others."""
    host, _, port = bootstrap_servers.rpartition(":")
    # Each member has a null `group.instance.id`.
    named = b"".join(_text(member) + struct.pack("!h", -1) for member in members)
    body = _text(group) + struct.pack("!i", len(members)) + named
    request = struct.pack("!hhi", _LEAVE_GROUP, _VERSION, 1) + _text("history") + body
    with socket.create_connection((host, int(port)), _SECONDS) as connection:
        connection.sendall(struct.pack("!i", len(request)) + request)
        # The response says what the next request to the group shows anyway.
        connection.recv(4)


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("!h", len(encoded)) + encoded
