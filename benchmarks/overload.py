"""What an overloaded service does: throughput and latency of admitted requests at multiples of its capacity.

First, 32 clients that wait for each response measure the capacity. Then requests are sent on schedule (open
loop), at up to three times that rate, whether or not earlier ones have been answered. Latencies are counted
from the scheduled time, and only for requests that are not refused.

`python -m benchmarks.overload` starts the system.
"""

from __future__ import annotations

import asyncio
import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import typer
import uvloop
from rich.console import Console

from benchmarks.http_client import Client
from benchmarks.percentiles import in_milliseconds
from local.ports import HOST
from local.settings import Settings
from local.system import System

if TYPE_CHECKING:
    from collections.abc import Callable

_CLIENTS: Final = 32
_TIMEOUT_SECONDS: Final = 20
_REFUSED: Final = 503
_FIRST_ERROR: Final = 500
_FACTORS: Final = (0.5, 1, 2, 3)


def _miss() -> tuple[str, str, bytes]:
    return "GET", f"/students/{random.randint(10**6, 10**12)}", b""


def _write() -> tuple[str, str, bytes]:
    return "PUT", f"/students/{random.randint(0, 1999)}", b'{"name":"Ann","age":%d}' % random.randint(0, 99)


_LOADS: Final = {"misses": _miss, "writes": _write}


@dataclass
class Outcome:
    """The responses to a load: the durations of those admitted, and how many were refused or failed."""

    admitted: list[float] = field(default_factory=list)
    refused: int = 0
    failed: int = 0


async def send(client: Client, request: Callable[[], tuple[str, str, bytes]], outcome: Outcome) -> None:
    """Send a request that is due now, and record its outcome."""
    due = time.perf_counter()
    try:
        async with asyncio.timeout(_TIMEOUT_SECONDS):
            status = (await client.request(*request())).status
    except (OSError, TimeoutError, EOFError):
        outcome.failed += 1
        return
    if status == _REFUSED:
        outcome.refused += 1
    elif status >= _FIRST_ERROR:
        outcome.failed += 1
    else:
        outcome.admitted.append(time.perf_counter() - due)


async def capacity(port: int, request: Callable[[], tuple[str, str, bytes]], seconds: float) -> float:
    """Return how many requests per second are answered if clients wait for each response."""
    client, outcome = Client(HOST, port), Outcome()
    end = time.perf_counter() + seconds

    async def repeat() -> None:
        while time.perf_counter() < end:
            await send(client, request, outcome)

    await asyncio.gather(*(repeat() for _ in range(_CLIENTS)))
    await client.close()
    return len(outcome.admitted) / seconds


async def open_loop(
    port: int, request: Callable[[], tuple[str, str, bytes]], rate: float, seconds: float
) -> Outcome:
    """Send requests at a rate, whether or not earlier ones have been answered."""
    client, outcome = Client(HOST, port), Outcome()
    began, sent = time.perf_counter(), 0
    async with asyncio.TaskGroup() as group:
        while (passed := time.perf_counter() - began) < seconds:
            while sent < passed * rate:
                group.create_task(send(client, request, outcome))
                sent += 1
            await asyncio.sleep(0.001)
    await client.close()
    return outcome


def measure(port: int, seconds: float, console: Console) -> None:
    """Measure each load at multiples of its capacity."""
    for name, request in _LOADS.items():
        uvloop.run(capacity(port, request, 2))
        peak = uvloop.run(capacity(port, request, seconds))
        console.print(f"{name}: capacity {peak:.0f}/s")
        for factor in _FACTORS:
            outcome = uvloop.run(open_loop(port, request, factor * peak, seconds))
            console.print(
                f"{name} {factor:3} x  admitted {len(outcome.admitted) / seconds:6.0f}/s"
                f"  refused {outcome.refused / seconds:6.0f}/s  failed {outcome.failed}"
                f"  {in_milliseconds(outcome.admitted)}",
                soft_wrap=True,
                highlight=False,
            )


def main(seconds: float = 10) -> None:
    """Measure an sb worker process under overload."""
    console = Console()
    with System(Settings(), console) as system:
        system.airflow.stop()  # not needed, and it would use CPU time
        measure(system.services["sb"].port, seconds, console)


if __name__ == "__main__":
    typer.run(main)
