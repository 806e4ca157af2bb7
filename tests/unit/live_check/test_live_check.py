"""How the live check divides its looks."""

from __future__ import annotations

import pytest

from cachesync.entity import CANARY
from cachesync.live_check.live_check import LiveCheck


@pytest.mark.parametrize("number", [1, 2, 3, 4])
def test_slots_of_every_entity_are_compared_whatever_their_number(number: int) -> None:
    """A follower reads slots every two seconds, and the live check ticks every second."""
    entities = {f"e{index}": CANARY for index in range(number)}
    check = LiveCheck(None, {}, entities)
    sampled = {check._sampled_in(tick) for tick in range(0, 2 * number, 2)}  # noqa: SLF001
    assert sampled == entities.keys()
