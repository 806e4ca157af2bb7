"""The load generator `wrk`, which sends requests as fast as the server responds."""

from __future__ import annotations

import re
import shutil
from typing import TYPE_CHECKING, Final

import typer

if TYPE_CHECKING:
    from rich.console import Console

_RATE: Final = re.compile(r"Requests/sec:\s+([\d.]+)")


def require(console: Console) -> None:
    """Exit with a message if `wrk` is not installed."""
    if shutil.which("wrk") is None:
        console.print("wrk is missing; install it (Debian: apt-get install wrk)")
        raise typer.Exit(1)


def command(url: str, connections: int, seconds: int, *options: str) -> list[str]:
    """Return a `wrk` command line with one thread."""
    return ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", *options, url]


def requests_per_second(output: str) -> float:
    """Return the requests per second that `wrk` printed."""
    rate = _RATE.search(output)
    assert rate is not None, output
    return float(rate[1])
