"""Round trips whose commands cannot even be sent."""

from __future__ import annotations

import asyncio

import pytest
from redis.asyncio import Redis

from cachesync.errors import CacheUnavailableError
from cachesync.slots.condition import Condition
from cachesync.slots.round_trips import RoundTrips


@pytest.mark.parametrize("name", ["sa:student:\ud800", object()], ids=["surrogate", "no text"])
async def test_a_command_that_cannot_be_packed_leaves_no_caller_waiting(name: str) -> None:
    """The commands of one round trip fail together, and closing does not wait for them."""
    round_trips = RoundTrips(Redis.from_url("redis://127.0.0.1:1"), "sa:student:\0", Condition())
    replies = [round_trips.call("GET", "sa:student:1"), round_trips.call("GET", name)]
    async with asyncio.timeout(10):
        for reply in replies:
            with pytest.raises(CacheUnavailableError):
                await reply
        await round_trips.close()
