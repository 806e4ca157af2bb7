"""Fixtures of the fault tests."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.faults.load import Load

if TYPE_CHECKING:
    from local.system import System


@pytest.fixture
def load(system: System) -> Load:
    """A load of writes on the whole system, not yet running."""
    return Load(system)
