"""Clients of a service's Redis or Redis Cluster.

As in redis-py, `redis://`, `rediss://` (TLS) and `unix://` are the URLs of a single Redis. `redis+cluster://`
and `rediss+cluster://` are the URLs of a Redis Cluster, with the address of any one of its nodes.
"""

from __future__ import annotations

from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import urlsplit, urlunsplit

from redis import ConnectionPool, Redis, RedisCluster
from redis import asyncio as asyncio_redis
from redis.asyncio.retry import Retry as AsyncioRetry
from redis.backoff import NoBackoff
from redis.driver_info import DriverInfo
from redis.exceptions import (
    AskError,
    ConnectionError,  # noqa: A004 - redis-py's own, which is not an OSError
    RedisClusterException,
    RedisError,
    ResponseError,
    TimeoutError,  # noqa: A004
    TryAgainError,
)
from redis.retry import Retry

from cachesync.errors import CacheUnavailableError, SettingsError
from cachesync.slots.url_options import option_problems

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from redis.cluster import ClusterNode

    from cachesync.slots.scripts import Command

_CLUSTER: Final = "+cluster"
_NOT_A_URL: Final = (
    "not a Redis URL such as redis://user:password@host:6379/0; percent-encode special characters in the "
    "password"
)
# All commands of one event loop turn share a round trip, so more than a few connections gain nothing.
_SERVICE_CONNECTIONS: Final = 8
# What redis-py tells a Redis about itself. By default, it reads its metadata again for every connection.
_DRIVER: Final = DriverInfo()

BlockingRedis = Redis | RedisCluster


def is_cluster(url: str) -> bool:
    """Return whether a URL is that of a Redis Cluster."""
    return url.partition("://")[0].lower().endswith(_CLUSTER)


def node_url(url: str, host: str, port: int) -> str:
    """Return the URL of one node of a Redis Cluster.

    Args:
        url: the URL of the cluster, which gives the scheme, the login and the options.
        host: the host of the node.
        port: its port.
    """
    parts = urlsplit(url)
    login, at, _ = parts.netloc.rpartition("@")
    address = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    return urlunsplit(
        parts._replace(scheme=parts.scheme.removesuffix(_CLUSTER), netloc=f"{login}{at}{address}")
    )


def service_client(url: str, seconds: float) -> asyncio_redis.Redis:
    """Return an asynchronous client of one Redis, for a service.

    Args:
        url: the URL of the Redis, to which the client connects on the first command.
        seconds: the timeout for a connection and for a reply.

    Raises:
        SettingsError: the URL is not a Redis URL.
    """
    check_url(url)
    pool = asyncio_redis.BlockingConnectionPool.from_url(
        url,
        max_connections=_SERVICE_CONNECTIONS,
        timeout=seconds,
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        # No retries: the database answers instead, and a lease that is requested again with the same token
        # could be granted although others have changed the row since the first attempt.
        retry=AsyncioRetry(NoBackoff(), 0),
        driver_info=_DRIVER,
    )
    return asyncio_redis.Redis.from_pool(pool)


def reading_client(url: str, seconds: float) -> Redis:
    """Return a blocking client of one Redis, for the reads of a service in any thread.

    Args:
        url: the URL of the Redis, to which the client connects on the first command.
        seconds: the timeout for a connection and for a reply.
    """
    return Redis.from_url(
        url,
        socket_timeout=seconds,
        socket_connect_timeout=seconds,
        retry=Retry(NoBackoff(), 0),
        driver_info=_DRIVER,
    )


def blocking_client(url: str, seconds: float) -> BlockingRedis:
    """Return a blocking client, for the background work.

    Args:
        url: the URL of a Redis, to which the client connects on the first command, or of a Redis Cluster, to
            which it connects immediately.
        seconds: the timeout for a connection and for a reply.

    Raises:
        SettingsError: the URL is not a Redis URL.
        CacheUnavailableError: the Redis Cluster did not respond.
    """
    check_blocking_url(url)
    with translate_redis_errors():
        if not is_cluster(url):
            return Redis.from_url(
                url, socket_timeout=seconds, socket_connect_timeout=seconds, driver_info=_DRIVER
            )
        return RedisCluster.from_url(
            url.replace(_CLUSTER, "", 1),
            socket_timeout=seconds,
            socket_connect_timeout=seconds,
            # Callers retry whole batches; retries of single commands would add up.
            retry=Retry(NoBackoff(), 0),
            require_full_coverage=False,
            driver_info=_DRIVER,
        )


def without_retries(client: BlockingRedis) -> BlockingRedis:
    """Make a client give up after one timeout, and return it: for looks that are repeated anyway.

    A client that was not made from a URL would repeat a command for 14 s and more.
    """
    if isinstance(client, Redis):
        client.set_retry(Retry(NoBackoff(), 0))
    return client


def primaries(client: BlockingRedis) -> dict[str | None, Redis]:
    """Return the primaries of a Redis Cluster by `host:port`, or a single Redis under the key None."""
    if isinstance(client, Redis):
        return {None: client}
    return {node.name: client.get_redis_connection(node) for node in client.get_primaries()}


def scan(client: BlockingRedis, pattern: str, count: int) -> Iterator[bytes]:
    """Yield the names of all keys that match a pattern, on every primary.

    Args:
        client: the Redis or Redis Cluster.
        pattern: a glob-style pattern, as in SCAN.
        count: the number of keys that each SCAN examines.

    Raises:
        CacheUnavailableError: a primary did not respond.
    """
    with _rediscovering(client):
        for name, primary in primaries(client).items():
            with naming(name):
                yield from primary.scan_iter(match=pattern, count=count)


def pipelined(client: BlockingRedis, commands: Sequence[tuple[str, Command]]) -> list[Any]:
    """Send commands with one key each in one round trip per primary.

    redis-py's own cluster pipeline is not used, because it retries the commands for an unavailable node one
    by one and waits for each.

    Args:
        client: the Redis or Redis Cluster.
        commands: pairs of a key and the command.

    Returns:
        One reply per command; a ResponseError for a command that was rejected.

    Raises:
        CacheUnavailableError: a primary did not respond; some of the commands may have been executed.
    """
    if not commands:
        return []
    if isinstance(client, Redis):
        with translate_redis_errors():
            return pipelined_at(None, client, [command for _, command in commands])
    replies: list[Any] = [None] * len(commands)
    with _rediscovering(client):
        indexes_by_node: dict[ClusterNode, list[int]] = {}
        for index, (key, _) in enumerate(commands):
            indexes_by_node.setdefault(client.get_node_from_key(key), []).append(index)
        for node, indexes in indexes_by_node.items():
            batch = [commands[index][1] for index in indexes]
            batch_replies = pipelined_at(node.name, client.get_redis_connection(node), batch)
            for index, command, reply in zip(indexes, batch, batch_replies, strict=True):
                redirected = isinstance(reply, (AskError, TryAgainError))
                replies[index] = _redirected(client, command) if redirected else reply
    return replies


def pipelined_at(node: str | None, client: Redis, commands: Sequence[Command]) -> list[Any]:
    """Send commands to one Redis in one round trip; return a ResponseError for a command that was rejected.

    Args:
        node: its name among `primaries`, for the error if it does not respond.
        client: the Redis.
        commands: the commands.
    """
    pipeline = client.pipeline(transaction=False)
    for command in commands:
        pipeline.execute_command(*command)
    with naming(node):
        return pipeline.execute(raise_on_error=False)


def _redirected(client: RedisCluster, command: Command) -> Any:
    """Return the reply to a command whose key has moved to another node or is being moved."""
    try:
        return client.execute_command(*command)
    except ResponseError as error:
        return error


@contextmanager
def naming(node: str | None) -> Iterator[None]:
    """Name the node of a Redis Cluster in the error if it does not respond.

    Args:
        node: its `host:port`; None for a single Redis.
    """
    try:
        yield
    except (ConnectionError, TimeoutError) as error:
        if node is not None and node not in str(error):
            error.args = (f"node {node}: {str(error) or type(error).__name__}",)
        raise


@contextmanager
def translate_redis_errors(redis: str = "Redis") -> Iterator[None]:
    """Raise errors of redis-py and of its connections as a CacheUnavailableError.

    Args:
        redis: the name of the Redis in the error text.

    Raises:
        CacheUnavailableError: the Redis did not respond or rejected a command.
    """
    try:
        yield
    # RedisClusterException is not a RedisError; a host that cannot be looked up is a UnicodeError.
    except (RedisError, RedisClusterException, OSError, UnicodeError) as error:
        message = f"{redis} is unavailable: {str(error) or type(error).__name__}"
        raise CacheUnavailableError(message) from error


@contextmanager
def _rediscovering(client: BlockingRedis) -> Iterator[None]:
    """Translate errors; if a cluster node did not respond, refresh the hash slot map for the next attempt."""
    with translate_redis_errors():
        try:
            yield
        except (RedisClusterException, ConnectionError, TimeoutError):
            if isinstance(client, RedisCluster):
                with suppress(RedisClusterException, RedisError):
                    client.nodes_manager.initialize()
            raise


def check_blocking_url(url: str) -> None:
    """Check the URL of a Redis or Redis Cluster for `blocking_client` without connecting.

    Raises:
        SettingsError: a client cannot use it; the text quotes nothing that can be part of a password.
    """
    _check_url(url, ConnectionPool)


def check_url(url: str) -> None:
    """Check the URL of a service's Redis or Redis Cluster without connecting.

    Raises:
        SettingsError: a client cannot use it; the text quotes nothing that can be part of a password.
    """
    _check_url(url, asyncio_redis.BlockingConnectionPool)


def _check_url(url: str, pool_class: type[ConnectionPool | asyncio_redis.BlockingConnectionPool]) -> None:
    try:
        parts = urlsplit(url)
        node = node_url(url, parts.hostname or "", parts.port or 6379) if is_cluster(url) else url
        pool = pool_class.from_url(node.partition("?")[0], driver_info=_DRIVER)
        pool.connection_class(**pool.connection_kwargs)
        # With an @ after it, what looks like an option is part of a password that is not encoded.
        malformed = "@" in parts.query or bool(parts.fragment) or (parts.scheme == "unix" and not parts.path)
    except Exception:  # noqa: BLE001 - redis-py raises many kinds, whose texts can quote the password
        malformed = True
    if malformed:
        raise SettingsError(_NOT_A_URL)
    pooled = issubclass(pool_class, asyncio_redis.BlockingConnectionPool)
    problems = "; ".join(option_problems(url, pool=pooled))
    if problems:
        raise SettingsError(problems)
