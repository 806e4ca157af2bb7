"""The demo, run on the whole system."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console

from local.demo import Story

if TYPE_CHECKING:
    from local.system import System


def test_every_step_of_the_demo_succeeds(system: System) -> None:
    output = StringIO()
    Story(system, Console(file=output, width=200)).run()
    assert output.getvalue().count(" ms  ") == 16
