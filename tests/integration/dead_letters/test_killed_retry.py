"""A retry that is killed at any step loses no dead letter."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import TYPE_CHECKING

import pytest

from cachesync.dead_letters.audit import closed
from cachesync.kafka.topics import PARKING_LOT
from cachesync.value import encode_value
from tests.integration.conftest import ENTITIES_FILE, REPOSITORY
from tests.integration.post import PAYLOAD, Post, content_headers
from tests.integration.refusals import denying

if TYPE_CHECKING:
    from cachesync.dead_letters.letter import Letter
    from cachesync.kafka.event import Headers
    from local.redis import Redis


# In execution order. The database transaction is committed between the fourth and the fifth.
@pytest.mark.parametrize(
    ("when", "step"),
    [
        ("before", "apply"),
        ("after", "apply"),
        ("after", "deliver"),
        ("after", "record"),
        ("before", "commit-offsets"),
        ("after", "commit-offsets"),
    ],
)
async def test_retry_killed_at_any_step_loses_no_letter(
    post: Post, worker_dsn: str, redis_sb: Redis, when: str, step: str
) -> None:
    version, row = await post.insert(7)
    behind = f"{post.service}:student:7"
    post.slots.set(behind, encode_value(version - 1, b"01234567", b"{}"))
    post.put(b"7", version)
    post.put(b"8", 20)
    post.put(b"8", 21, attempt="4")
    post.put(b"9", b"junk", stage="decode")

    with denying(post.slots, "8"):
        killed = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.integration.dead_letters.killed_retry", step, when),
            *(post.service, post.kafka["bootstrap.servers"], redis_sb.url, str(ENTITIES_FILE)),
            cwd=REPOSITORY,
            env=os.environ | {"CACHESYNC_DSN": worker_dsn},
        )
        assert await killed.wait() == -signal.SIGKILL

        await post.retry()
    assert post.slots.get(behind) == row
    firsts, waiting = post.letters()[:4], post.letters()[4:]
    assert await closed(post.worker, firsts) == {letter.id for letter in firsts}
    assert (b"8", PAYLOAD, content_headers(20), 2) in map(_content, waiting)
    assert not await closed(post.worker, waiting)
    parked = list(map(_content, post.letters(PARKING_LOT)))
    assert (b"8", PAYLOAD, content_headers(21), 5) in parked
    assert (b"9", PAYLOAD, content_headers(b"junk"), 1) in parked
    assert not await closed(post.worker, post.letters(PARKING_LOT))


def _content(letter: Letter) -> tuple[bytes | None, bytes | None, Headers, int]:
    return letter.key, letter.value, letter.headers, letter.attempt
