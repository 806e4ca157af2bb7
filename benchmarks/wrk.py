"""`wrk`, which asks a server as fast as it answers."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Final

import typer

if TYPE_CHECKING:
    from rich.console import Console

_RATE: Final = re.compile(r"Requests/sec:\s+([\d.]+)")


def require(console: Console) -> None:
    """End the program where `wrk` is missing."""
    if shutil.which("wrk") is None:
        console.print("wrk is missing; install it (Debian: apt-get install wrk)")
        raise typer.Exit(1)


def command(url: str, connections: int, seconds: int, *options: str) -> list[str]:
    """One thread of it, with so many connections, for so long."""
    return ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", *options, url]


def requests_per_second(output: str) -> float:
    """What it counted."""
    rate = _RATE.search(output)
    assert rate is not None, output
    return float(rate[1])
