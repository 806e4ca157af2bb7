"""Airflow's connections, by their names, as the library takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.redis.hooks.redis import RedisHook
from airflow.sdk import BaseHook
from redis import Redis

if TYPE_CHECKING:
    from cachesync.slots.clients import WorkerRedis


def database() -> str:
    """The address of the database, for the background work."""
    return BaseHook.get_connection("postgres_cachesync").get_uri()


def brokers() -> dict[str, Any]:
    """The settings that lead a Kafka client to the brokers."""
    return BaseHook.get_connection("kafka_cachesync").extra_dejson


def redis(service: str, seconds: float) -> WorkerRedis:
    """A service's Redis or Redis Cluster, with the longest wait for it; a cluster is waited for 5 s.

    Raises:
        RedisClusterException: the Redis Cluster does not answer.
    """
    client: WorkerRedis = RedisHook(f"redis_{service}").get_conn()
    # A cluster's client has a pool for each node, and has connected with redis-py's own 5 s by now.
    if isinstance(client, Redis):
        client.connection_pool.connection_kwargs.update(
            socket_timeout=seconds, socket_connect_timeout=seconds
        )
    return client
