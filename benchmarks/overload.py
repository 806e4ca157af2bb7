"""What an overloaded service does: throughput and latency of admitted requests at multiples of its capacity.

First, 32 clients that wait for each response measure the capacity. Then requests are sent on schedule (open
loop), at up to three times that rate, whether or not earlier ones have been answered: over up to 900
connections that stay open, and finally over a new connection for each request. Latencies include the wait for
a connection, and are only those of requests that are not refused.

The service has a core of its own; the load generator and all other components share the other cores. This
needs Linux.

`python -m benchmarks.overload` starts the system.
"""

from __future__ import annotations

import os
import random
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Final

import typer
from rich.console import Console

from benchmarks import vegeta
from benchmarks.percentiles import in_milliseconds
from benchmarks.vegeta import Target
from local.settings import Settings
from local.system import System

if TYPE_CHECKING:
    from collections.abc import Callable

    from local.service import Service

_CLIENTS: Final = 32
_CONNECTIONS: Final = 900
# More than a worker process can answer per second.
_MAX_RATE: Final = 10_000
_REFUSED: Final = 503
_FIRST_ERROR: Final = 500
_FACTORS: Final = (0.5, 1, 2, 3)
_CLOSED_LOOP: Final = ("-rate=0", f"-workers={_CLIENTS}", f"-max-workers={_CLIENTS}")
_OPEN: Final = (f"-connections={_CONNECTIONS}", f"-max-connections={_CONNECTIONS}")
_NEW: Final = ("-keepalive=false",)


def _miss(url: str) -> Target:
    return Target("GET", f"{url}/students/{random.randint(10**6, 10**12)}")


def _write(url: str) -> Target:
    body = b'{"name":"Ann","age":%d}' % random.randint(0, 99)
    return Target("PUT", f"{url}/students/{random.randint(0, 1999)}", body)


_LOADS: Final = {"misses": _miss, "writes": _write}


class Load:
    """A kind of request, sent to a service.

    Args:
        url: the base URL of the service.
        make: makes a request.
        seconds: how long to send requests.
        folder: receives the files of the load generator.
    """

    def __init__(self, url: str, make: Callable[[str], Target], seconds: int, folder: Path) -> None:
        self._url = url
        self._make = make
        self._seconds = seconds
        self._folder = folder

    def capacity(self) -> float:
        """Return how many requests per second are answered if clients wait for each response."""
        results = self._attack(_MAX_RATE, *_CLOSED_LOOP)
        return sum(0 < result.status < _FIRST_ERROR for result in results) / self._seconds

    def overload(self, rate: int, *options: str) -> str:
        """Send requests on schedule, and return their outcome as a line of text."""
        results = self._attack(rate, f"-rate={rate}", *options)
        admitted = [result.seconds for result in results if 0 < result.status < _FIRST_ERROR]
        refused = sum(result.status == _REFUSED for result in results)
        return (
            f"admitted {len(admitted) / self._seconds:6.0f}/s  refused {refused / self._seconds:6.0f}/s"
            f"  failed {len(results) - len(admitted) - refused}  {in_milliseconds(admitted)}"
        )

    def _attack(self, rate: int, *options: str) -> list[vegeta.Result]:
        targets = [self._make(self._url) for _ in range(rate * self._seconds)]
        return vegeta.attack(self._folder, targets, self._seconds, *options)


def move(service: Service, core: int) -> None:
    """Let the service use only this core."""
    for process in service.tree():
        for thread in process.threads():
            os.sched_setaffinity(thread.id, {core})


def main(seconds: int = 10) -> None:
    """Measure an sb worker process under overload."""
    console = Console(soft_wrap=True, highlight=False)
    vegeta.require(console)
    core, *others = os.sched_getaffinity(0)
    os.sched_setaffinity(0, others)
    with System(Settings(), console) as system, tempfile.TemporaryDirectory() as folder:
        system.airflow.stop()  # not needed, and it would use CPU time
        service = system.services["sb"]
        move(service, core)
        for name, make in _LOADS.items():
            load = Load(service.url, make, seconds, Path(folder))
            load.capacity()  # warms up
            capacity = load.capacity()
            console.print(f"{name}: capacity {capacity:.0f}/s")
            for factor in _FACTORS:
                console.print(f"{name} {factor:3} x  {load.overload(round(factor * capacity), *_OPEN)}")
            console.print(f"{name}   3 x, new connections  {load.overload(round(3 * capacity), *_NEW)}")


if __name__ == "__main__":
    typer.run(main)
