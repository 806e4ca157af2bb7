"""What a follower adds up."""

from __future__ import annotations

from cachesync.live_check.follower import more_reads

HIT, MISS = ("student", "hit"), ("student", "miss")


def test_reads_are_counted_from_the_first_look_on_also_after_the_redis_began_anew() -> None:
    assert more_reads(None, {HIT: 7}) == {}
    assert more_reads({HIT: 7}, {HIT: 9, MISS: 1}) == {HIT: 2, MISS: 1}
    assert more_reads({HIT: 9, MISS: 1}, {HIT: 4}) == {HIT: 4}
    assert more_reads({HIT: 9, MISS: 1}, {HIT: 9, MISS: 1}) == {}
