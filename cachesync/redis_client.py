"""Clients of a service's Redis, or Redis Cluster, by its URL.

`redis://`, `rediss://` (TLS) and `unix://` lead to one Redis, as redis-py has them; `redis+cluster://` and
`rediss+cluster://` to a Redis Cluster, by way of any one node.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

from redis import Redis, RedisCluster
from redis import asyncio as asyncio_redis
from redis.asyncio.retry import Retry as AsyncioRetry
from redis.backoff import NoBackoff
from redis.exceptions import (
    AskError,
    ConnectionError,  # noqa: A004 - redis-py's, which is no OSError
    RedisClusterException,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004
    TryAgainError,
)
from redis.retry import Retry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis.cluster import ClusterNode

_CLUSTER: Final = "+cluster"
# A round trip carries all that one turn of the event loop asks for; more than a few in flight gain nothing.
_SERVICE_CONNECTIONS: Final = 8

WorkerRedis = Redis | RedisCluster
Command = tuple[bytes | str | int, ...]


def is_cluster(url: str) -> bool:
    """Whether a URL leads to a Redis Cluster."""
    return urlsplit(url).scheme.endswith(_CLUSTER)


def node_url(url: str, host: str, port: int) -> str:
    """The URL of one node, given that of its Redis Cluster."""
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return urlunsplit(
        parts._replace(scheme=parts.scheme.removesuffix(_CLUSTER), netloc=f"{login}{at}{address}")
    )


def service_client(url: str, seconds: float) -> asyncio_redis.Redis:
    """A client of one Redis for a service, with the longest wait for an answer.

    Raises:
        ValueError: the URL is none of a Redis.
    """
    pool = asyncio_redis.BlockingConnectionPool.from_url(
        url,
        max_connections=_SERVICE_CONNECTIONS,
        timeout=seconds,
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        # No second tries: the database answers instead, and a lease that is asked for again with the same
        # token could be taken although others have changed the row since the first time.
        retry=AsyncioRetry(NoBackoff(), 0),
    )
    return asyncio_redis.Redis.from_pool(pool)


def worker_client(url: str, seconds: float) -> WorkerRedis:
    """A client for the background work, with the longest wait for an answer.

    Raises:
        ValueError: the URL is none of a Redis.
        RedisError: it leads to a Redis Cluster, which does not answer; a Redis is connected to later.
    """
    if not is_cluster(url):
        return Redis.from_url(url, socket_timeout=seconds, socket_connect_timeout=seconds)
    try:
        return RedisCluster.from_url(
            url.replace(_CLUSTER, "", 1),
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            # Who asks tries again as a whole; tries for each command would add up.
            retry=Retry(NoBackoff(), 0),
            require_full_coverage=False,
        )
    except RedisClusterException as error:
        raise ConnectionError(str(error)) from error


def primaries(client: WorkerRedis) -> dict[str | None, Redis]:
    """Each Redis that has a share of the keys, by its `host:port`; a Redis that has all goes by None."""
    if isinstance(client, Redis):
        return {None: client}
    return {node.name: client.get_redis_connection(node) for node in client.get_primaries()}


def scan(client: WorkerRedis, pattern: str, count: int) -> Iterator[bytes]:
    """The names of all keys that match, on every primary.

    Raises:
        RedisError: a primary does not answer.
    """
    with _finding_again(client):
        for primary in primaries(client).values():
            yield from primary.scan_iter(match=pattern, count=count)


def pipelined(client: WorkerRedis, commands: Sequence[tuple[str, Command]]) -> list[Any]:
    """Send commands about one key each, all together.

    redis-py's own pipeline over a Redis Cluster sends each command for a node that is away once more, by
    itself, and waits for each.

    Args:
        client: the Redis or Redis Cluster.
        commands: each with its key.

    Returns:
        The answers; a ResponseError for a command that was refused.

    Raises:
        RedisError: a primary does not answer; some of the commands may have been carried out.
    """
    if isinstance(client, Redis):
        return _pipelined(client, [command for _, command in commands])
    answers: list[Any] = [None] * len(commands)
    with _finding_again(client):
        places: dict[ClusterNode, list[int]] = {}
        for place, (key, _) in enumerate(commands):
            places.setdefault(client.get_node_from_key(key), []).append(place)
        for node, its in places.items():
            asked = [commands[place][1] for place in its]
            answered = _pipelined(client.get_redis_connection(node), asked)
            for place, command, answer in zip(its, asked, answered, strict=True):
                redirected = isinstance(answer, (AskError, TryAgainError))
                answers[place] = _followed(client, command) if redirected else answer
    return answers


def _pipelined(client: Redis, commands: Sequence[Command]) -> list[Any]:
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    return pipeline.execute(raise_on_error=False)


def _followed(client: RedisCluster, command: Command) -> Any:
    """The answer to a command whose key is at another node by now, or about to be."""
    try:
        return client.execute_command(*command)
    except ResponseError as error:
        return error


@contextmanager
def _finding_again(client: WorkerRedis) -> Iterator[None]:
    """Where a node of a cluster does not answer, find out who has its keys now, for the next attempt."""
    try:
        yield
    except (RedisClusterException, ConnectionError, TimeoutError) as error:
        if isinstance(client, RedisCluster):
            with suppress(RedisClusterException, RedisError):
                client.nodes_manager.initialize()
        # RedisClusterException is no RedisError.
        raise ConnectionError(str(error)) from error
