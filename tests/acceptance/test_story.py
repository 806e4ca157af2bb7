"""What the demo shows, on the whole system."""

from __future__ import annotations

from io import StringIO
from typing import TYPE_CHECKING

from rich.console import Console

from local.demo import Story

if TYPE_CHECKING:
    from local.system import System


def test_every_step_of_the_demos_story_goes_as_told(system: System) -> None:
    told = StringIO()
    Story(system, Console(file=told, width=200)).tell()
    assert told.getvalue().count(" ms  ") == 16
