"""Fixtures: an application on the stand-in for the library."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from falcon.testing import ASGIConductor

from tests.unit.serving.stand_in import METRICS_PORT, MemoryService, app_on, served

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


@pytest.fixture
def service() -> MemoryService:
    return MemoryService()


@pytest.fixture
async def client(service: MemoryService) -> AsyncIterator[ASGIConductor]:
    async with ASGIConductor(served(app_on(service))) as conductor:
        yield conductor


@pytest.fixture
async def internal(service: MemoryService) -> AsyncIterator[ASGIConductor]:
    """A client of the metrics port."""
    async with ASGIConductor(served(app_on(service), METRICS_PORT)) as conductor:
        yield conductor
