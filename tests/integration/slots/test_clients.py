"""The translation of redis-py errors into errors of this library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from redis.exceptions import RedisClusterException, RedisError

from cachesync.change import Operation
from cachesync.errors import CacheUnavailableError, SettingsError
from cachesync.slots.batch import Applier
from cachesync.slots.clients import blocking_client, pipelined, scan
from cachesync.slots.single import Slots
from tests.integration.changes import change, value

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachesync.change import Change
    from cachesync.entity import Entity
    from cachesync.slots.clients import BlockingRedis
    from local.redis import Redis

NOT_REDIS = [
    "http://127.0.0.1",
    "127.0.0.1:6379",
    "",
    "redis://127.0.0.1:port",
    "redis+cluster://127.0.0.1:port",
]
CHANGES = [change("1", 20), change("2", 20)]


@pytest.fixture
def client(redis_sb: Redis) -> Iterator[BlockingRedis]:
    """A client with a connection to a Redis that has been stopped."""
    with blocking_client(redis_sb.url, 1) as client:
        client.set("sb:student:1", value(10))
        redis_sb.stop()
        try:
            yield client
        finally:
            redis_sb.start()


@pytest.mark.parametrize(
    "changes", [CHANGES, [change(None, 20, Operation.TRUNCATE)]], ids=["rows", "truncate"]
)
def test_apply_fails_while_redis_is_down(
    client: BlockingRedis, entities: dict[str, Entity], changes: list[Change]
) -> None:
    applier = Applier(client, "sb", entities)
    with pytest.raises(CacheUnavailableError) as unavailable:
        applier.apply(changes)
    assert isinstance(unavailable.value.__cause__, RedisError)


def test_reads_fail_while_redis_is_down(client: BlockingRedis, entities: dict[str, Entity]) -> None:
    with pytest.raises(CacheUnavailableError):
        Applier(client, "sb", entities).heads(CHANGES)
    with pytest.raises(CacheUnavailableError):
        list(scan(client, "sb:*", 10))
    with pytest.raises(CacheUnavailableError):
        pipelined(client, [("a", ("GET", "a"))])


def test_cluster_client_needs_a_node_that_responds() -> None:
    with pytest.raises(CacheUnavailableError) as unavailable:
        blocking_client("redis+cluster://127.0.0.1:1", 1)
    assert isinstance(unavailable.value.__cause__, RedisError | RedisClusterException)


@pytest.mark.parametrize("url", NOT_REDIS)
async def test_malformed_url_is_a_settings_error(url: str) -> None:
    with pytest.raises(SettingsError):
        blocking_client(url, 1)
    with pytest.raises(SettingsError):
        await Slots.open(url, 1, "sa:student:")
