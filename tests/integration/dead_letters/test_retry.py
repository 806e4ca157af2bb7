"""Dead letters are retried, parked, replayed and discarded on a real PostgreSQL, Redis and Kafka.

Tests share the topics, so each uses its own service names.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
import redis as redis_client

from cachesync.backoff import Backoff
from cachesync.dead_letters.audit import closed
from cachesync.dead_letters.letter import Letter, RetryPolicy
from cachesync.entity import CANARY
from cachesync.errors import CacheUnavailableError
from cachesync.kafka.topics import DEAD_LETTERS, PARKING_LOT
from cachesync.value import encode_value
from tests.integration.post import LONG_AGO, PAYLOAD, Post, content_headers
from tests.integration.raw_message import send
from tests.integration.refusals import denying

if TYPE_CHECKING:
    from cachesync.kafka.event import Headers


def value(version: int) -> bytes:
    return encode_value(version, b"01234567", b"{}")


def lease(floor: int) -> bytes:
    return b"L%019dtoken" % floor


@pytest.mark.parametrize(
    ("before", "action", "after"),
    [
        ("older", "resolved", "row"),
        ("same", "superseded", "same"),
        ("newer", "superseded", "newer"),
        ("empty", "superseded", "empty"),
        ("absent", "resolved", "empty"),
        ("low lease", "resolved", "lease"),
        ("lease", "superseded", "lease"),
        ("junk", "resolved", "empty"),
    ],
)
async def test_retry_brings_the_current_row_to_a_slot_that_is_behind(
    post: Post, before: str, action: str, after: str
) -> None:
    version, row = await post.insert(7)
    states = {
        "row": row,
        "older": value(version - 1),
        "same": value(version),
        "newer": value(version + 1),
        "empty": None,
        "absent": b"A",
        "low lease": lease(version - 1),
        "lease": lease(version),
        "junk": b"junk",
    }
    slot = states[before]
    if slot is not None:
        post.slots.set(f"{post.service}:student:7", slot, px=60_000)
    post.put(b"7", version)
    assert await post.retry() == [action]
    assert post.slots.get(f"{post.service}:student:7") == states[after]
    (row_of_audit,) = await post.audit()
    assert row_of_audit["action"] == action


async def test_retry_brings_the_current_row_to_the_slots_of_its_unique_values(post: Post) -> None:
    await post.admin.execute("INSERT INTO grade VALUES (7, 'a', 1, NULL, 'c/1')")
    name = f"{post.service}:grade@certificate:c/1"
    post.slots.set(name, b"A")
    # Nobody has read the row, so that its own slot says nothing of the change.
    post.put(b"7/a", 20, original_topic="cachesync.grade")
    assert await post.retry() == ["resolved"]
    assert post.slots.get(name) is None


async def test_retry_brings_the_row_of_the_live_check_to_its_slot(post: Post) -> None:
    version = await post.admin.fetchval("INSERT INTO cachesync.canary (id) VALUES (7) RETURNING row_version")
    post.slots.set(f"{post.service}:{CANARY.name}:7", value(version - 1))
    post.put(b"7", version, original_topic=CANARY.topic)
    assert await post.retry() == ["resolved"]
    slot = post.slots.get(f"{post.service}:{CANARY.name}:7")
    assert isinstance(slot, bytes)
    assert slot.endswith(b'{"id":7}')


async def test_retry_empties_the_slot_of_a_deleted_row(post: Post) -> None:
    post.slots.set(f"{post.service}:student:7", value(10))
    post.slots.set(f"{post.service}:student:8", value(10))
    post.put(b"7", 20)
    post.put(b"8", 20, "delete")
    assert await post.retry() == ["resolved", "resolved"]
    assert post.slots.exists(f"{post.service}:student:7", f"{post.service}:student:8") == 0


async def test_retry_of_a_truncate_empties_older_slots(post: Post) -> None:
    post.slots.set(f"{post.service}:student:7", value(10))
    post.slots.set(f"{post.service}:student:8", value(30))
    post.put(b"\x00truncate", 20, "truncate")
    assert await post.retry() == ["resolved"]
    assert post.slots.get(f"{post.service}:student:7") is None
    assert post.slots.get(f"{post.service}:student:8") == value(30)


async def test_retry_finds_the_row_of_a_key_of_several_columns(post: Post) -> None:
    await post.admin.execute("INSERT INTO grade VALUES (7, 'a/b', 1), (7, '~', 2)")
    version = await post.admin.fetchval("SELECT version FROM cachesync.grade WHERE key = '7/a~1b'")
    names = [f"{post.service}:grade:{key}" for key in ("7/a~1b", "7/gone", "7/~0", "7")]
    post.slots.mset(dict.fromkeys(names, value(10)))
    for key in (b"7/a~1b", b"7/gone", b"7"):
        post.put(key, 20, original_topic="cachesync.grade")
    assert await post.retry() == ["resolved", "resolved", "retried"]
    row, gone, other, _ = post.slots.mget(names)
    assert isinstance(row, bytes)
    assert (int(row[1:20]), gone, other) == (version, None, value(10))
    assert "no row can have the key '7': a key has a part for each of" in post.letters()[-1].error


@pytest.mark.parametrize(
    ("key", "fields", "stage", "error"),
    [
        (b"7", {}, "cache", "to access"),
        (b"no number", {}, "row", "no row can have the key 'no number'"),
        (b"nul \x00", {}, "row", "no row can have the key"),
        (b"7", {"original_topic": "cachesync.other"}, "row", "entity 'other' is not declared"),
    ],
)
async def test_letter_that_fails_again_is_sent_again_unchanged_with_a_delay(
    post: Post, key: bytes, fields: dict[str, str], stage: str, error: str
) -> None:
    post.slots.set(f"{post.service}:student:{key.decode()}", value(10))
    post.put(key, 20, **fields)
    started = datetime.now(UTC)
    with denying(post.slots, "7"):
        assert await post.retry() == ["retried"]
    first, second = post.letters()
    assert (second.key, second.value, second.headers) == (key, PAYLOAD, content_headers(20))
    kept = ("service", "original-topic", "original-partition", "original-offset", "original-timestamp")
    for name in (*kept, "original-group", "maximum", "first-failed-at"):
        assert second.fields[name] == first.fields[name]
    assert (second.attempt, second.stage) == (2, stage)
    assert error in second.error
    assert started <= second.last_failed_at <= second.not_before <= started + timedelta(seconds=65)
    (row,) = await post.audit()
    assert (row["action"], row["attempt"], row["error"]) == ("retried", 2, second.error)


async def test_only_letters_that_are_due_are_retried(post: Post) -> None:
    post.put(b"1", 20, not_before=(datetime.now(UTC) + timedelta(hours=1)).isoformat())
    post.put(b"2", 20)
    with post.open() as (retrying, watching):
        await retrying.retry(post.mine)
        await retrying.retry(post.mine)
    assert [entry.letter.key for entry in watching.entries] == [b"2"]
    assert len(post.letters()) == 2
    assert [row["key"] for row in await post.audit()] == ["2"]


async def test_letter_is_parked_unchanged_after_the_last_attempt(post: Post) -> None:
    post.put(b"7", 20, maximum="4")
    policy = RetryPolicy(backoff=Backoff(first=0, longest=0))
    with denying(post.slots, "7"), post.open(policy=policy) as (retrying, watching):
        for _ in range(5):
            await retrying.retry(post.mine)
    assert watching.actions == ["retried", "retried", "parked"]
    (parked,) = post.letters(PARKING_LOT)
    assert (parked.key, parked.value, parked.headers) == (b"7", PAYLOAD, content_headers(20))
    assert parked.attempt == 4
    assert parked.first_failed_at == LONG_AGO
    assert parked.fields["original-offset"] == "77"
    assert [row["attempt"] for row in await post.audit()] == [2, 3, 4]


async def test_undecodable_letter_is_parked_at_once(post: Post) -> None:
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    post.put(b"7", b"junk", stage="decode", not_before=later)
    assert await post.retry() == ["parked"]
    (open_letter,) = post.letters()
    (parked,) = post.letters(PARKING_LOT)
    assert (parked.key, parked.value, parked.headers) == (b"7", PAYLOAD, content_headers(b"junk"))
    assert parked.fields == open_letter.fields


async def test_message_that_is_not_a_letter_is_parked_with_its_bytes(post: Post) -> None:
    key = post.service.encode()
    headers: Headers = [("dead-letter-service", key), ("dead-letter-attempt", b"-1")]
    post.send(DEAD_LETTERS, key, PAYLOAD, headers)
    with post.open() as (retrying, watching):
        await retrying.retry(lambda letter: letter.key == key)
    assert watching.actions == ["parked"]
    (parked,) = (one for one in post.letters(PARKING_LOT, "") if one.key == key)
    assert (parked.value, parked.headers) == (PAYLOAD, headers)
    assert parked.original_topic == DEAD_LETTERS
    assert "not a dead letter: header" in parked.error


@pytest.mark.parametrize(
    "message",
    [
        {"headers": [(b"\xff", b"x"), (b"dead-letter-service", b"x")]},
        {"headers": [], "timestamp": -(2**62)},
        {"headers": [(b"dead-letter-service", b"x" * 999_000)], "key": b"\xff"},
        {"headers": [(b"dead-letter-service", b"\xff" * 500_000)], "value": b"x" * 400_000},
        {"headers": [(b"dead-letter-service", b"x"), *[(b"dead-letter-%d" % n, b"x") for n in range(999)]]},
        {"headers": [(b"dead-letter-service", b"x"), (b"dead-letter-original-topic", b"x" * 9000)]},
        {"headers": [], "key": b"x" * 999_000},
    ],
)
async def test_nothing_in_a_message_stops_the_retries(post: Post, message: dict[str, Any]) -> None:
    hostile = message.get("key") or post.service.encode()
    send(post.kafka["bootstrap.servers"], DEAD_LETTERS, **{"key": hostile, **message})
    post.put(b"7", 20)
    with post.open() as (retrying, watching):
        await retrying.retry(lambda letter: post.mine(letter) or letter.key == hostile)
    assert sorted(watching.actions) == ["parked", "superseded"]
    with post.open() as (retrying, watching):
        await retrying.retry(lambda letter: post.mine(letter) or letter.key == hostile)
    assert watching.actions == []


@pytest.mark.parametrize("timestamp", [-(2**62), -1, -5])
async def test_letter_with_any_time_is_retried_and_closed(post: Post, timestamp: int) -> None:
    version, row = await post.insert(7)
    post.slots.set(f"{post.service}:student:7", value(10))
    post.put(b"7", version, timestamp=timestamp)
    assert await post.retry() == ["resolved"]
    assert post.slots.get(f"{post.service}:student:7") == row
    assert await post.retry() == []


async def test_every_action_is_recorded_in_full(post: Post) -> None:
    post.put(b"7", 20)
    with post.open() as (retrying, watching):
        await retrying.discard([DEAD_LETTERS], post.mine, "seen to by hand")
    (entry,) = watching.entries
    (row,) = await post.audit()
    assert row.pop("id") > 0
    assert abs(row.pop("at") - datetime.now(UTC)) < timedelta(minutes=1)
    assert row == {
        "actor": "test",
        "action": "discarded",
        "reason": "seen to by hand",
        "letter_topic": DEAD_LETTERS,
        "letter_partition": 0,
        "letter_offset": entry.letter.id.offset,
        "letter_sent_at": entry.letter.id.sent_at,
        "service": post.service,
        "original_topic": "cachesync.student",
        "original_partition": 3,
        "original_offset": 77,
        "entity": "student",
        "key": "7",
        "version": 20,
        "attempt": 1,
        "error": "the first error",
    }


async def test_letter_in_a_recreated_topic_is_not_closed_by_an_older_one_with_its_offset(post: Post) -> None:
    post.put(b"7", 20)
    (letter,) = post.letters()
    with post.open() as (retrying, _):
        await retrying.retry(post.mine)
    assert await closed(post.worker, [letter]) == {letter.id}
    later = replace(letter, id=replace(letter.id, sent_at=datetime.now(UTC)))
    assert await closed(post.worker, [later]) == set()


async def test_letters_wait_while_their_redis_is_unavailable_and_others_are_retried(post: Post) -> None:
    away = f"{post.service}-away"
    post.put(b"7", 20, service=away)
    post.put(b"7", 20)

    def both(letter: Letter) -> bool:
        return letter.service.startswith(post.service)

    clients = {away: redis_client.Redis.from_url("redis://127.0.0.1:1"), post.service: post.slots}
    unanswered = pytest.raises(CacheUnavailableError, match=f"{away}: Redis is unavailable")
    with post.open(clients=clients) as (retrying, watching), unanswered:
        await retrying.retry(both)
    assert [entry.letter.service for entry in watching.entries] == [post.service]
    assert await post.audit(away) == []
    with post.open(clients={away: post.slots}) as (retrying, watching):
        await retrying.retry(both)
    assert watching.actions == ["superseded"]


async def test_letters_of_a_service_without_a_configured_redis_stay_open(post: Post) -> None:
    post.put(b"7", 20, count=2)
    with post.open(clients={"other": post.slots}) as (retrying, watching):
        await retrying.retry(post.mine)
    assert retrying.without_redis == {post.service: {letter.id for letter in post.letters()}}
    assert watching.entries == []
    assert await post.audit() == []


async def test_replay_tries_open_and_parked_letters_at_once_and_keeps_those_that_fail(post: Post) -> None:
    version, row = await post.insert(7)
    post.slots.set(f"{post.service}:student:7", value(10))
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    post.put(b"7", version, topic=PARKING_LOT, attempt="5")
    post.put(b"8", version, topic=PARKING_LOT, attempt="5")
    post.put(b"9", version, not_before=later)

    with denying(post.slots, "8"), post.open() as (retrying, watching):
        await retrying.replay([PARKING_LOT, DEAD_LETTERS], post.mine, dry_run=True)
        assert watching.actions == ["resolved", "replayed", "superseded"]
        assert await post.audit() == []
        assert post.slots.get(f"{post.service}:student:7") == value(10)
        await retrying.replay([PARKING_LOT, DEAD_LETTERS], post.mine, rate=1000)
        assert watching.actions[3:] == ["resolved", "replayed", "superseded"]
        assert post.slots.get(f"{post.service}:student:7") == row
        await retrying.replay([PARKING_LOT, DEAD_LETTERS], post.mine)
    assert watching.actions[6:] == ["replayed"]
    assert [(row["key"], row["action"]) for row in await post.audit()] == [
        ("7", "resolved"),
        ("8", "replayed"),
        ("9", "superseded"),
        ("8", "replayed"),
    ]
    assert len(post.letters(PARKING_LOT)) == 2


async def test_thousands_of_letters_are_discarded_in_one_run(post: Post) -> None:
    post.put(b"7", 20, count=3000)
    with post.open() as (retrying, watching):
        await retrying.discard([DEAD_LETTERS], post.mine, "a bad release")
        assert len(watching.entries) == 3000
        await retrying.retry(post.mine)
    assert Counter(row["action"] for row in await post.audit()) == {"discarded": 3000}


async def test_concurrent_runs_close_each_letter_once(post: Post, sample: str) -> None:
    post.put(b"7", 20, count=1200)
    second = await asyncpg.connect(sample)
    with denying(post.slots, "7"), post.open() as (one, _), post.open(second) as (other, _):
        await asyncio.gather(one.retry(post.mine), other.retry(post.mine))
    await second.close()
    assert Counter(row["action"] for row in await post.audit()) == {"retried": 1200}
    assert Counter(letter.attempt for letter in post.letters()) == {1: 1200, 2: 1200}
