"""Airflow's connections, by their names, as the library takes them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from airflow.providers.redis.hooks.redis import RedisHook
from airflow.sdk import BaseHook

if TYPE_CHECKING:
    from redis import Redis


def database() -> str:
    """The address of the database, for the background work."""
    return BaseHook.get_connection("postgres_cachesync").get_uri()


def brokers() -> dict[str, Any]:
    """The settings that lead a Kafka client to the brokers."""
    return BaseHook.get_connection("kafka_cachesync").extra_dejson


def redis(service: str, seconds: float) -> Redis:
    """A service's Redis, with the longest wait for it."""
    client: Redis = RedisHook(f"redis_{service}").get_conn()
    client.connection_pool.connection_kwargs.update(socket_timeout=seconds, socket_connect_timeout=seconds)
    return client
