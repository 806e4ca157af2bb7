"""What each Redis says: whether it accepts writes, how full it is, and what a slot holds."""

from __future__ import annotations

from itertools import count
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from cachesync.errors import CacheUnavailableError
from cachesync.overview.verdict import Slot
from cachesync.slots.clients import pipelined, pipelined_at, primaries, translate_redis_errors
from cachesync.slots.layout import ABSENT, is_lease, is_lease_lifetime
from cachesync.slots.scripts import refusal_of, run_script
from cachesync.value import FINGERPRINT, UP_TO_PAYLOAD, VERSION, is_value, version_of

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cachesync.overview.models import RedisState
    from cachesync.slots.clients import BlockingRedis
    from cachesync.slots.scripts import Command

# The content of an unreadable slot can be anything, however long.
_SHOWN_BYTES: Final = 200


class CacheState(NamedTuple):
    """What a Redis says.

    Attributes:
        redis, problem: whether it responds and accepts writes, and what it says if not.
        keys: the number of its keys.
        memory_bytes: the memory that it uses.
    """

    redis: RedisState
    problem: str | None = None
    keys: int | None = None
    memory_bytes: int | None = None


def look_at_cache(client: BlockingRedis, service: str) -> CacheState:
    """Return whether a Redis or every primary of a Redis Cluster can be used, and how full it is."""
    try:
        with translate_redis_errors(f"the Redis of {service}"):
            nodes = [
                pipelined_at(name, node, [("DBSIZE",), ("INFO", "memory")])
                for name, node in primaries(client).items()
            ]
            problem = _refusal(client, service)
    except CacheUnavailableError as error:
        return CacheState("unavailable", str(error.__cause__ or error))
    keys = _total(reply[0] for reply in nodes)
    memory = _total(reply[1]["used_memory"] if isinstance(reply[1], dict) else None for reply in nodes)
    return CacheState("ok" if problem is None else "refuses writes", problem, keys, memory)


def _total(numbers: Iterable[Any]) -> int | None:
    """Return the sum of the replies of all primaries; None if one has refused to reply."""
    listed = list(numbers)
    return sum(listed) if all(isinstance(one, int) for one in listed) else None


def _refusal(client: BlockingRedis, service: str) -> str | None:
    """Return why a primary refuses what the scripts do; None if none does."""
    # No key of a row contains NUL, and no entity is named @.
    names = (f"{service}:@:\0{number}" for number in count())
    if isinstance(client, Redis):
        probes = [next(names)]
    else:
        found: dict[str, str] = {}
        while len(found) < len(client.get_primaries()):
            name = next(names)
            found.setdefault(client.get_node_from_key(name).name, name)
        probes = list(found.values())

    def send(commands: list[Command]) -> list[Any]:
        return pipelined(client, [(str(command[3]), command) for command in commands])

    replies = run_script("probe", [(name,) for name in probes], send)
    return next((refusal_of(reply) for reply in replies if isinstance(reply, RedisError)), None)


def look_at_slot(client: BlockingRedis, name: str) -> Slot:
    """Return what a slot holds.

    Args:
        client: the Redis or Redis Cluster.
        name: the slot's Redis key.

    Raises:
        CacheUnavailableError: Redis did not respond.
    """
    content, lifetime = pipelined(client, [(name, ("GET", name)), (name, ("PTTL", name))])
    ttl_ms = lifetime if isinstance(lifetime, int) and lifetime >= 0 else None
    ttl_s = None if ttl_ms is None else ttl_ms / 1000
    if content is None:
        return Slot("empty")
    if not isinstance(content, bytes):
        # Another type of key is what reads replace; what this login may not read, others can.
        return Slot(
            "unknown" if isinstance(content, NoPermissionError) else "unreadable",
            payload=str(content),
            ttl_s=ttl_s,
        )
    if content == ABSENT:
        return Slot("absent", ttl_s=ttl_s)
    if is_lease(content) and ttl_ms is not None and is_lease_lifetime(ttl_ms):
        return Slot("lease", int(content[VERSION]), ttl_s=ttl_s)
    if is_value(content):
        fingerprint = content[FINGERPRINT].decode(errors="backslashreplace")
        payload = content[UP_TO_PAYLOAD:].decode(errors="backslashreplace")
        return Slot("value", version_of(content), fingerprint, payload, ttl_s)
    return Slot("unreadable", payload=content[:_SHOWN_BYTES].decode(errors="backslashreplace"), ttl_s=ttl_s)
