"""Converts Airflow connections to the form that the library expects."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.redis.hooks.redis import RedisHook
from airflow.sdk import BaseHook
from redis import Redis

from cachesync.errors import SettingsError
from cachesync.slots.clients import translate_redis_errors

if TYPE_CHECKING:
    from cachesync.slots.clients import BlockingRedis


def database() -> str:
    """Return the URL of the database, from the connection `postgres_cachesync`."""
    return BaseHook.get_connection("postgres_cachesync").get_uri()


def brokers() -> dict[str, Any]:
    """Return librdkafka's settings for connecting to the brokers, from the connection `kafka_cachesync`."""
    return BaseHook.get_connection("kafka_cachesync").extra_dejson


def consumer(service: str) -> dict[str, Any]:
    """Return librdkafka's settings for a service's consumers, from the connection `kafka_{service}`.

    Raises:
        SettingsError: the connection does not name the consumer group.
    """
    settings: dict[str, Any] = BaseHook.get_connection(f"kafka_{service}").extra_dejson
    if not settings.get("group.id"):
        message = (
            f"the extra of the connection kafka_{service} must set group.id, such as cachesync-{service}"
        )
        raise SettingsError(message)
    return settings


def redis(service: str, seconds: float) -> BlockingRedis:
    """Return a client of a service's Redis or Redis Cluster, from the connection `redis_{service}`.

    Args:
        service: the service's name.
        seconds: the timeout for a response from one Redis. For a Redis Cluster it is always 5 s.

    Raises:
        CacheUnavailableError: the Redis Cluster did not respond.
    """
    with translate_redis_errors(service):
        client: BlockingRedis = RedisHook(f"redis_{service}").get_conn()
    # A cluster's client has one pool per node, and has already connected with redis-py's own timeout of 5 s.
    if isinstance(client, Redis):
        client.connection_pool.connection_kwargs.update(
            socket_timeout=seconds, socket_connect_timeout=seconds
        )
    return client
