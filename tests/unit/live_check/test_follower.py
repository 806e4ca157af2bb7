"""What a follower adds up."""

from __future__ import annotations

import time
from contextlib import closing

from redis import Redis

from cachesync.live_check.cache import Cache
from cachesync.live_check.follower import Follower, more_reads
from cachesync.live_check.store import Unseen

HIT, MISS = ("student", "hit"), ("student", "miss")


def test_reads_are_counted_from_the_first_look_on_also_after_the_redis_began_anew() -> None:
    assert more_reads(None, {HIT: 7}) == {}
    assert more_reads({HIT: 7}, {HIT: 9, MISS: 1}) == {HIT: 2, MISS: 1}
    assert more_reads({HIT: 9, MISS: 1}, {HIT: 4}) == {HIT: 4}
    assert more_reads({HIT: 9, MISS: 1}, {HIT: 9, MISS: 1}) == {}


def test_open_violation_is_continued_also_if_its_change_is_the_oldest() -> None:
    violation = Unseen("sa", "student", "7", 19, "behind", 3, 60.0)
    with closing(Follower(Cache("sa", Redis))) as follower:
        follower.restore([violation, violation._replace(id=None)], time.monotonic())
        assert [one.violation for one in follower.judge.due(float("inf"))] == [3]
