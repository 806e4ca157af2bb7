"""What all tests of the installation share."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from local.postgres import Postgres


@pytest.fixture(autouse=True)
def _skip_merge(request: pytest.FixtureRequest) -> None:
    """Skip the cases of MERGE on PostgreSQL 14, which does not have it."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is None or "merge" not in callspec.id:
        return
    postgres: Postgres = request.getfixturevalue("postgres")
    if postgres.major < 15:
        pytest.skip("PostgreSQL 14 has no MERGE")
