"""The load generator `wrk`, which sends requests as fast as the server responds."""

from __future__ import annotations

import re
from typing import Final

from local.tools import require_wrk

_RATE: Final = re.compile(r"Requests/sec:\s+([\d.]+)")


def command(url: str, connections: int, seconds: int, *options: str) -> list[str]:
    """Return a `wrk` command line with one thread."""
    return [require_wrk(), "-t1", f"-c{connections}", f"-d{seconds}s", *options, url]


def requests_per_second(output: str) -> float:
    """Return the requests per second that `wrk` printed."""
    rate = _RATE.search(output)
    assert rate is not None, output
    return float(rate[1])
