"""CPU time of every process that takes part in a measurement, including the load generator's."""

from __future__ import annotations

import os
import resource
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import psutil

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from local.process import Process

#: The name of this process and its children that no component is, such as pgbench.
GENERATOR: Final = "load generator"
#: What the machine did that belongs to no component: other programs, and the kernel's own work.
OTHER: Final = "other"


@dataclass
class Usage:
    """CPU time during a block.

    Attributes:
        seconds: duration of the block.
        used: CPU seconds by component, plus `GENERATOR` and `OTHER`.
    """

    seconds: float = 0.0
    used: dict[str, float] = field(default_factory=dict)

    def total(self) -> float:
        """Return the CPU seconds of all components, without the load generator and other programs."""
        return sum(used for name, used in self.used.items() if name not in {GENERATOR, OTHER})

    def per(self, count: int) -> dict[str, float]:
        """Return the CPU time of each component by a number of changes or requests, in microseconds."""
        return {name: 1e6 * used / max(count, 1) for name, used in self.used.items()}


@contextmanager
def accounting(processes: Sequence[Process]) -> Iterator[Usage]:
    """Measure the CPU time that the block takes; the result is complete once the block has ended."""
    usage = Usage()
    began, busy, before = time.perf_counter(), _machine(), _by_component(processes)
    try:
        yield usage
    finally:
        usage.seconds = time.perf_counter() - began
        after = _by_component(processes)
        # A component that was restarted in between starts again at 0.
        usage.used = {name: max(0.0, used - before.get(name, 0.0)) for name, used in after.items()}
        usage.used[OTHER] = max(0.0, _machine() - busy - sum(usage.used.values()))


def of_tree(process: Process) -> float:
    """Return the CPU time of a process and its descendants, including those that have exited, in seconds."""
    total = 0.0
    for member in process.tree():
        with suppress(psutil.NoSuchProcess):
            times = member.cpu_times()
            total += sum(times[:4])
    return total


def _by_component(processes: Sequence[Process]) -> dict[str, float]:
    used: dict[str, float] = {}
    for process in processes:
        used[process.name] = used.get(process.name, 0.0) + of_tree(process)
    own = sum(os.times()[:2])
    # Of the children, only those that have been waited for count here; components still run.
    ended = resource.getrusage(resource.RUSAGE_CHILDREN)
    used[GENERATOR] = own + ended.ru_utime + ended.ru_stime
    return used


def _machine() -> float:
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0))
