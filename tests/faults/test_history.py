"""A short run of the history test: while components fail, nothing is lost, and at rest nothing is wrong."""

from __future__ import annotations

import secrets
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from tests.faults.history.run import run

if TYPE_CHECKING:
    from pathlib import Path

    from local.system import System
    from tests.faults.links import Links


@pytest.mark.timeout(600)
def test_history_under_faults_is_correct(system: System, links: Links, tmp_path: Path) -> None:
    result = run(system, links, Console(), seed=secrets.randbelow(10**6), minutes=1)
    if result.wrong:
        result.keep(tmp_path / "history")
    assert not result.wrong, f"{result.line()}; history kept in {tmp_path}"
    assert result.history.faults
    print(result.line())  # noqa: T201 - shown by -rP
