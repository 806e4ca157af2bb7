"""Ways in which a Redis that can be read refuses commands."""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from collections.abc import Iterator

    from redis import Redis

    from cachesync.slots.clients import BlockingRedis

DELETES: Final = ("full", "no SET", "no scripts")
"""Those in which slots can still be deleted."""

READS_ONLY: Final = ("replica", "no deletes")
"""Those in which nothing can be changed."""

_ACLS: Final = {"no SET": "-set", "no scripts": "-eval -evalsha", "no deletes": "-eval -evalsha -del"}


@contextmanager
def refusing(client: Redis, how: str) -> Iterator[None]:
    """Let a Redis refuse commands."""
    usual = client.config_get("maxmemory*")
    if how == "full":
        client.config_set("maxmemory-policy", "noeviction")
        client.config_set("maxmemory", 1)
    elif how == "replica":
        client.replicaof("127.0.0.1", 1)
    else:
        client.execute_command(f"ACL SETUSER default {_ACLS[how]}")
    try:
        yield
    finally:
        client.replicaof("no", "one")
        client.execute_command("ACL SETUSER default +@all")
        for name in ("maxmemory", "maxmemory-policy"):
            client.config_set(name, str(usual[name]))


@contextmanager
def denying(client: BlockingRedis, last: str) -> Iterator[None]:
    """Deny access to the keys whose last character is the given one."""
    send: Any = client.execute_command
    send(f"ACL SETUSER default resetkeys ~*[^{last}]")
    try:
        yield
    finally:
        send("ACL SETUSER default allkeys")
