"""Examines the Redis of a service."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoPermissionError, ResponseError

from cachesync.doctor.clock import judge_clock
from cachesync.errors import CacheUnavailableError, SettingsError
from cachesync.lookup import lookup_name
from cachesync.slots.clients import blocking_client, pipelined, primaries, translate_redis_errors
from cachesync.slots.layout import slot_name
from cachesync.slots.scripts import refusal_of, run_script
from cachesync.slots.single import Slots

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from redis import Redis

    from cachesync.doctor.finding import Part
    from cachesync.entity import Entity
    from cachesync.slots.clients import BlockingRedis
    from cachesync.slots.scripts import Command

_SECONDS: Final = 5.0
_OLDEST: Final = (6, 2)
_NEWEST_MAJOR: Final = 8
_EVICTS_WELL: Final = frozenset({"allkeys-lru", "allkeys-lfu", "allkeys-lrm"})
_SET_POLICY: Final = "set maxmemory-policy to allkeys-lru or allkeys-lfu"
# Without eviction, a Redis that is fuller than this soon refuses writes.
_HALF: Final = 0.5
_FULL: Final = 0.9
# No key of a row contains NUL.
_NEVER_A_KEY: Final = "\0doctor"
# Position of the only key in the command of a script.
_KEY_POSITION: Final = 3
_STARTS_EMPTY: Final = (
    "a cache must start empty after a failure, or values reappear that are older than acknowledged writes"
)


async def examine_cache(part: Part, service: str, url: str, entities: Mapping[str, Entity]) -> None:
    """Examine the Redis or Redis Cluster of a service. A key that is never a slot is written and deleted.

    Args:
        part: takes the findings.
        service: the service.
        url: the URL of its Redis.
        entities: the declared entities, by name.
    """
    try:
        await asyncio.to_thread(_examine, part, service, url, entities)
    except (CacheUnavailableError, SettingsError) as error:
        part.error("connection", str(error), f"check the address and the login (--redis {service}=URL)")
        return
    slots = await Slots.open(url, _SECONDS, f"{service}:")
    try:
        problem = await slots.problem()
    finally:
        await slots.close()
    if problem is None:
        part.ok("write access", "it reads, writes and deletes")
    else:
        part.error(
            "write access",
            f"it refuses what a service does: {problem}",
            "free memory or disk space, use the address of the primary, or give the login the commands "
            "that it lacks",
        )


def _examine(part: Part, service: str, url: str, entities: Mapping[str, Entity]) -> None:
    with blocking_client(url, _SECONDS) as client:
        for node, redis in primaries(client).items():
            with translate_redis_errors():
                redis.ping()
            _examine_node(part, redis, "" if node is None else f"{node}: ", in_cluster=node is not None)
        with part.looking("access"):
            _examine_access(part, client, service, entities)


def _examine_node(part: Part, redis: Redis, node: str, *, in_cluster: bool) -> None:
    with part.looking("info"), translate_redis_errors(f"{node}INFO"):
        info: Any = redis.info("all")
        judge_version(part, info, node)
        judge_memory(part, info, node)
        judge_replication(part, info, node)
        with_cluster = bool(info.get("cluster_enabled"))
        if with_cluster and not in_cluster:
            part.error(
                "cluster",
                f"{node}it is a node of a Redis Cluster, but the URL is that of a single Redis",
                "use redis+cluster:// or rediss+cluster:// in all settings",
            )
        _examine_persistence(part, redis, info, node)
    if in_cluster:
        with part.looking("cluster"), translate_redis_errors(f"{node}CLUSTER INFO"):
            _examine_cluster(part, redis, node)
    with part.looking("clock"), translate_redis_errors(f"{node}TIME"):
        before = time.time()
        seconds, microseconds = redis.time()
        judge_clock(part, seconds + microseconds / 1e6 - (before + time.time()) / 2, node)
    _examine_login(part, redis, node)


def judge_version(part: Part, info: Mapping[str, Any], node: str = "") -> None:
    """Record what the version of a Redis means.

    Args:
        part: takes the finding.
        info: the reply to INFO.
        node: how the finding begins.
    """
    if "valkey_version" in info:
        part.ok("version", f"{node}Valkey {info['valkey_version']}")
        return
    version = str(info.get("redis_version", ""))
    try:
        major, minor = (int(number) for number in version.split(".")[:2])
    except ValueError:
        part.not_checked("version", f"{node}it does not report its version")
        return
    if (major, minor) < _OLDEST:
        part.error("version", f"{node}Redis {version}", "upgrade it to Redis 6.2 or newer, or to Valkey")
    elif major > _NEWEST_MAJOR:
        part.warning(
            "version",
            f"{node}Redis {version} is newer than every tested version",
            "use Redis 6.2 to 8 or Valkey, or test it yourself",
        )
    else:
        part.ok("version", f"{node}Redis {version}")


def judge_memory(part: Part, info: Mapping[str, Any], node: str = "") -> None:
    """Record what happens when the memory of a Redis is full.

    Args:
        part: takes the finding.
        info: the reply to INFO.
        node: how the finding begins.
    """
    used, limit = int(info.get("used_memory", 0)), int(info.get("maxmemory", 0))
    policy = str(info.get("maxmemory_policy", ""))
    if not limit:
        part.warning(
            "memory",
            f"{node}it has no maxmemory, so that it grows until the operating system ends it",
            f"set maxmemory, and {_SET_POLICY}",
        )
        return
    share = f"{used / 2**20:,.0f} of {limit / 2**20:,.0f} MiB are used"
    if policy in _EVICTS_WELL:
        part.ok("memory", f"{node}{policy}, {share}")
    elif policy.startswith("volatile-"):
        part.warning(
            "memory",
            f"{node}{policy} evicts only keys with a lifetime; if other keys fill the memory, it refuses "
            "writes, and volatile-ttl evicts leases first",
            _SET_POLICY,
        )
    elif policy != "noeviction":
        part.warning("memory", f"{node}{policy} evicts slots whether they are read or not", _SET_POLICY)
    elif used >= _FULL * limit:
        part.error(
            "memory", f"{node}noeviction, and {share}: when it is full, it refuses writes", f"{_SET_POLICY}"
        )
    elif used >= _HALF * limit:
        part.warning(
            "memory", f"{node}noeviction, and {share}: when it is full, it refuses writes", _SET_POLICY
        )
    else:
        part.ok("memory", f"{node}noeviction, with room: {share}")


def judge_replication(part: Part, info: Mapping[str, Any], node: str = "") -> None:
    """Record what the role of a Redis means.

    Args:
        part: takes the finding.
        info: the reply to INFO.
        node: how the finding begins.
    """
    replicas = int(info.get("connected_slaves", 0))
    if info.get("role") == "slave":
        part.error(
            "replication", f"{node}it is a replica, which refuses writes", "use the address of the primary"
        )
    elif replicas:
        part.warning(
            "replication",
            f"{node}{replicas} replicas follow it; {_STARTS_EMPTY}, and a failover to a replica keeps them",
            "remove the replicas, or see that no failover is automatic and the cache is flushed after one",
        )
    else:
        part.ok("replication", f"{node}it is a primary without replicas")


def _examine_persistence(part: Part, redis: Redis, info: Mapping[str, Any], node: str) -> None:
    remedy = 'run CONFIG SET appendonly no and CONFIG SET save "", and set the same in its configuration'
    if info.get("aof_enabled"):
        part.error("persistence", f"{node}it has an append-only file; {_STARTS_EMPTY}", remedy)
        return
    try:
        snapshots = redis.config_get("save").get("save", "")
    except ResponseError as error:
        part.not_checked(
            "persistence",
            f"{node}it does not say whether it makes snapshots: {error}",
            f"see that it makes none; {_STARTS_EMPTY}",
        )
        return
    if snapshots:
        part.error("persistence", f"{node}it makes snapshots (save {snapshots}); {_STARTS_EMPTY}", remedy)
    else:
        part.ok("persistence", f"{node}off, so that it starts empty")


def _examine_cluster(part: Part, redis: Redis, node: str) -> None:
    reply: Any = redis.execute_command("CLUSTER INFO")
    state = str(reply.get("cluster_state"))
    failed = int(reply.get("cluster_slots_fail", 0)) + int(reply.get("cluster_slots_pfail", 0))
    if state == "ok" and not failed:
        part.ok("cluster", f"{node}all hash slots are served")
    else:
        part.error(
            "cluster",
            f"{node}the state of the cluster is {state!r}, and {failed} hash slots have failed",
            "see CLUSTER NODES; while a hash slot has no primary, the database answers for its rows",
        )


def _examine_login(part: Part, redis: Redis, node: str) -> None:
    """Look whether anyone who reaches the Redis can write; only an administrator may ask that."""
    try:
        default: Any = redis.acl_getuser("default")
    except ResponseError:
        part.ok("login", f"{node}its login is no administrator")
        return
    flags = set(default["flags"])
    if {"on", "nopass"} <= flags:
        part.warning(
            "login",
            f"{node}anyone who can connect can write, without a password; a value that parses is trusted",
            "give the service and the background work a login each, and turn the user 'default' off",
        )
    else:
        part.ok("login", f"{node}it asks for a password")


def _examine_access(part: Part, client: BlockingRedis, service: str, entities: Mapping[str, Entity]) -> None:
    """Try the scripts under the name of each entity and lookup, for which a login can lack access."""
    names = [name for entity in entities.values() for name in (entity.name, *_lookups(entity))]

    def send(commands: list[Command]) -> list[Any]:
        return pipelined(client, [(str(command[_KEY_POSITION]), command) for command in commands])

    calls: list[Command] = [(slot_name(service, name, _NEVER_A_KEY),) for name in names]
    problems = 0
    for name, reply in zip(names, run_script("probe", calls, send), strict=True):
        if isinstance(reply, NoPermissionError):
            problems += 1
            part.error(
                "access",
                f"the login may not change the slots of {name!r}: {refusal_of(reply)}",
                f"run ACL SETUSER for it, with ~{service}:*",
            )
    if names and not problems:
        part.ok("access", "the login may change the slots of every entity")


def _lookups(entity: Entity) -> Iterable[str]:
    return [lookup_name(entity.name, name) for name in entity.lookups]
