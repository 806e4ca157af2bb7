"""Fixtures of the searches through the model."""

from __future__ import annotations

import gc
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture(autouse=True)
def _without_garbage_collection() -> Iterator[None]:
    """Save a sixth of the time: a search keeps all of its many states, and nothing in them is cyclic."""
    gc.disable()
    yield
    gc.enable()
