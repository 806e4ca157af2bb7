"""Applying batches of changes to a Redis that refuses some of them."""

from __future__ import annotations

import random
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest
from hiredis import ReplyError
from prometheus_client import REGISTRY
from redis import Redis as Client
from structlog.testing import capture_logs

from cachesync.change import Operation
from cachesync.errors import CacheUnavailableError
from cachesync.slots import batch
from cachesync.slots.batch import Applier
from cachesync.slots.bulk import Bulk
from cachesync.slots.clients import blocking_client, scan
from tests.integration.changes import change, value
from tests.integration.refusals import DELETES, READS_ONLY, denying, refusing

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachesync.entity import Entity
    from local.redis import Redis

GARBAGE = [
    b"",
    b"V",
    b"V" + b"x" * 19 + b"01234567{}",
    b"V+000000000000000001" + b"01234567{}",
    b"V" + b"0" * 19,
    b"V" + b"0" * 19 + b"01234567",
    b"L" + b"0" * 19,
    b"L" + b"0" * 18 + b" token",
    b"L" + b"0" * 19 + b"a lease that never ends",
    b"AA",
    b"a",
    b"\x00\xff",
]


@pytest.fixture
def client(redis_sb: Redis) -> Iterator[Client]:
    with blocking_client(redis_sb.url, 5) as client:
        assert isinstance(client, Client)
        yield client


@pytest.fixture
def applier(client: Client, entities: dict[str, Entity]) -> Applier:
    return Applier(client, "sb", entities)


def counted(service: str = "sb") -> dict[str, float]:
    """Return how many changes were applied so far, by effect, and how many lags were counted."""
    effects = ("advanced", "emptied", "raised", "repeated", "older", "empty", "refused")
    found = {
        effect: REGISTRY.get_sample_value("cachesync_applied_total", {"service": service, "effect": effect})
        or 0
        for effect in effects
    }
    return found | {
        "lags": REGISTRY.get_sample_value("cachesync_lag_seconds_count", {"service": service}) or 0
    }


def counted_since(before: dict[str, float]) -> dict[str, float]:
    return {name: now - before[name] for name, now in counted().items() if now != before[name]}


def test_each_change_of_a_large_batch_counts_although_only_the_newest_of_a_row_is_applied(
    client: Client, applier: Applier
) -> None:
    keys = [str(key) for key in range(1000)]
    client.mset({f"sb:student:{key}": value(10) for key in keys})
    before = counted()
    batch = [change(key, version) for key in keys for version in (20, 30, 40)]
    batch += [change("0", 40), change("missing", 20), change("1", 50, Operation.DELETE)]
    random.shuffle(batch)
    assert applier.apply(batch) == []
    assert client.mget([f"sb:student:{key}" for key in keys]) == [value(40), None, *[value(40)] * 998]
    assert counted_since(before) == {
        "advanced": 999,
        "emptied": 1,
        "empty": 1,
        "older": 2001,
        "repeated": 1,
        "lags": 3003,
    }


def test_scripts_that_redis_has_forgotten_are_loaded_again(client: Client, applier: Applier) -> None:
    client.set("sb:student:1", value(10))
    for version in (20, 30):
        client.script_flush()
        assert applier.apply([change("1", version)]) == []
        assert client.get("sb:student:1") == value(version)


def test_connection_that_redis_has_closed_is_replaced(client: Client, applier: Applier) -> None:
    client.set("sb:student:1", value(10))
    for version in (20, 30):
        client.execute_command("CLIENT KILL TYPE normal SKIPME yes")
        assert applier.apply([change("1", version)]) == []
    assert client.get("sb:student:1") == value(30)


def test_large_rows_are_applied(client: Client, applier: Applier) -> None:
    large = [change(str(key), 20) for key in range(10)]
    large = [replace(one, value=(one.value or b"") + b" " * 100_000) for one in large]
    client.mset({f"sb:student:{key}": value(10) for key in range(10)})
    assert applier.apply(large) == []
    assert client.mget([f"sb:student:{key}" for key in range(10)]) == [one.value for one in large]


def test_messages_that_redis_pushes_are_not_taken_for_replies(redis_sb: Redis) -> None:
    with (
        Client.from_url(redis_sb.url, protocol=3) as client,
        Bulk(client, "Redis") as bulk,
    ):
        tracked = bulk.call([("CLIENT", "TRACKING", "ON", "BCAST"), ("SET", "x", "1"), ("GET", "x"), ("NO",)])
        assert tracked[:3] == [b"OK", b"OK", b"1"]
        assert isinstance(tracked[3], ReplyError)
        assert bulk.call([("GET", "x")]) == [b"1"]


@pytest.mark.parametrize("how", DELETES)
def test_slots_that_cannot_be_advanced_are_emptied(client: Client, applier: Applier, how: str) -> None:
    client.set("sb:student:1", value(10), px=60_000)
    client.set("sb:student:2", b"L0000000000000000010token", px=60_000)
    client.set("sb:student:3", value(30), px=60_000)
    with refusing(client, how), capture_logs() as logs:
        assert applier.apply([change("1", 20), change("2", 20), change("4", 20)]) == []
        for version in range(21, 30):
            assert applier.apply([change("3", version)]) == []
        assert client.get("sb:student:1") is None
        assert client.get("sb:student:2") is None
    assert [one["event"] for one in logs].count("cache refuses commands") == 1
    assert len(logs) == 1
    client.set("sb:student:1", value(10), px=60_000)
    applier.apply([change("1", 20)])
    assert client.get("sb:student:1") == value(20)


@pytest.mark.parametrize("how", READS_ONLY)
def test_cache_that_cannot_even_be_emptied_is_unavailable_until_it_can(
    client: Client, applier: Applier, how: str
) -> None:
    client.set("sb:student:1", value(10), px=60_000)
    for changes in ([change("1", 20)], [change(None, 20, Operation.TRUNCATE)]):
        with refusing(client, how), pytest.raises(CacheUnavailableError, match=r"read only|'del' command"):
            applier.apply(changes)
    assert client.get("sb:student:1") == value(10)
    assert applier.apply([change("1", 20)]) == []
    assert client.get("sb:student:1") == value(20)


def test_slot_that_the_login_may_not_access_does_not_hold_up_the_others(
    client: Client, applier: Applier
) -> None:
    client.mset({"sb:student:7": value(10), "sb:student:8": value(10)})
    first, second = change("7", 20), change("8", 20)
    with denying(client, "7"):
        ((denied, reason),) = applier.apply([first, second])
        assert denied is first
        assert "to access" in reason
        assert applier.heads([first, second]) == [reason, value(20)[:29]]
    assert client.mget("sb:student:7", "sb:student:8") == [value(10), value(20)]


def test_every_change_of_a_slot_that_the_login_may_not_access_is_denied(
    client: Client, applier: Applier
) -> None:
    client.mset({"sb:student:7": value(10), "sb:student:8": value(10)})
    changes = [change("7", 20), change("8", 20), change("7", 30), change("8", 30), change("7", 30)]
    before = counted()
    with denying(client, "7"):
        assert [one for one, _ in applier.apply(changes)] == [changes[0], changes[2], changes[4]]
    assert counted_since(before) == {"advanced": 1, "older": 1, "lags": 2}


def test_full_redis_empties_every_slot_that_it_does_not_advance(client: Client, applier: Applier) -> None:
    names = [f"sb:student:{key}" for key in range(500)]
    client.mset(dict.fromkeys(names, value(10)))
    before = counted()
    with refusing(client, "full"):
        assert applier.apply([change(str(key), 20) for key in range(500)]) == []
        assert client.mget(names) == [None] * 500
    assert counted_since(before) == {"refused": 500, "lags": 500}


@pytest.mark.parametrize("garbage", GARBAGE)
def test_unreadable_slot_is_emptied_by_a_change(client: Client, applier: Applier, garbage: bytes) -> None:
    client.set("sb:student:1", garbage)
    assert applier.apply([change("1", 20)]) == []
    assert client.get("sb:student:1") is None


def test_key_of_another_redis_type_is_emptied_by_a_change(client: Client, applier: Applier) -> None:
    client.hset("sb:student:1", "not", "a slot")
    client.rpush("sb:student:2", "not a slot")
    assert applier.heads([change("1", 20)]) == [b"not a string"]
    assert applier.apply([change("1", 20), change(None, 20, Operation.TRUNCATE)]) == []
    assert client.exists("sb:student:1", "sb:student:2") == 0


def test_only_the_newest_truncate_of_each_entity_scans_the_slots(
    client: Client, applier: Applier, monkeypatch: pytest.MonkeyPatch
) -> None:
    scans: list[str] = []

    def counted(redis: Client, pattern: str, count: int) -> Iterator[bytes]:
        scans.append(pattern)
        return scan(redis, pattern, count)

    monkeypatch.setattr(batch, "scan", counted)
    for key, version in (("1", 10), ("2", 25), ("3", 40)):
        client.set(f"sb:student:{key}", value(version))
    client.set("sb:course:1", value(10))
    client.set(b"sb:student:\xff", b"of another program")
    applier.apply([change(None, version, Operation.TRUNCATE) for version in (20, 30, 11)])
    assert scans == ["sb:student:*"]
    kept = client.mget("sb:student:1", "sb:student:2", "sb:student:3", "sb:course:1")
    assert kept == [None, None, value(40), value(10)]
