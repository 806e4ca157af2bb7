"""A run: executes the workload and the faults, waits until the system is at rest, and checks the history."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import inf
from random import Random
from typing import TYPE_CHECKING

from tests.faults.history import own, rest
from tests.faults.history.checker import Finding, Wrong, check
from tests.faults.history.faults import Faults, restore_dump, take_dump
from tests.faults.history.record import Clock, Fault, History, Kind, Outcome
from tests.faults.history.schedule import episodes
from tests.faults.history.workload import Workload

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path
    from threading import Event

    from rich.console import Console

    from local.system import System
    from tests.faults.history.faults import Dump
    from tests.faults.history.record import Operation
    from tests.faults.links import Links

_CALM_SECONDS = 3.0
_LOOK_SECONDS = 0.5
# A restarted triggerer resumes its triggers within about 20 s on a busy machine.
_IN_STEP_SECONDS = 90.0
# Airflow's first runs begin a while after its components are ready.
_START_SECONDS = 300.0


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a run."""

    seed: int
    seconds: float
    history: History
    findings: list[Finding]

    @property
    def wrong(self) -> list[Finding]:
        """The findings that are not excused."""
        return [finding for finding in self.findings if not finding.excuse]

    def line(self) -> str:
        """Return the figures as one line of text."""
        operations = self.history.operations
        counts = Counter(finding.wrong for finding in self.wrong)
        lags: dict[float, float] = {}
        for fault in self.history.faults:
            # Faults that overlapped ended together.
            lag = fault.in_step - fault.repaired
            lags[fault.in_step] = min(lag, lags.get(fault.in_step, lag))
        figures: dict[str, object] = {
            "operations": len(operations),
            "acknowledged": sum(
                operation.kind in {Kind.UPSERT, Kind.DELETE} and operation.outcome is Outcome.DONE
                for operation in operations
            ),
            "lost": counts[Wrong.LOST],
            "wrong_rows": counts[Wrong.WRONG_ROW],
            "stale_own_reads": counts[Wrong.STALE_OWN_READ],
            "stale_at_rest": counts[Wrong.STALE_AT_REST],
            "max_lag_s": f"{max(lags.values()):.1f}",
            "faults": len(self.history.faults) - 1,
            "late_reads": counts[Wrong.LATE_READ],
            "backwards": counts[Wrong.BACKWARDS],
            "excused": len(self.findings) - len(self.wrong),
            "seed": self.seed,
            "minutes": f"{self.seconds / 60:.1f}",
        }
        return " ".join(f"{name}={figure}" for name, figure in figures.items())

    def keep(self, folder: Path) -> None:
        """Write the history and the findings to a directory, which must not exist."""
        folder.mkdir(parents=True)
        for name, items in (
            ("operations", self.history.operations),
            ("log", self.history.log),
            ("faults", self.history.faults),
            ("in-step", self.history.in_step),
            ("at-rest", self.history.at_rest),
            ("reconciled", self.history.reconciled),
            ("findings", self.findings),
        ):
            with (folder / f"{name}.jsonl").open("w") as file:
                file.writelines(
                    json.dumps(item if isinstance(item, tuple) else asdict(item)) + "\n" for item in items
                )
        (folder / "line.txt").write_text(self.line() + "\n")


def run(
    system: System,
    links: Links,
    console: Console,
    *,
    seed: int,
    minutes: float,
    rate: float = 200,
    stopping: Event | None = None,
) -> Result:
    """Run the workload and the faults, and check the history.

    Args:
        system: the running system.
        links: the proxies between its components.
        console: receives a line for each fault.
        seed: determines the faults, and what the clients do.
        minutes: how long the faults continue.
        rate: operations per second through the services.
        stopping: ends the run early when it is set.
    """
    clock = Clock()
    faults = Faults(system, links, clock, seed)
    workload = Workload(system, clock, rate=rate, seed=seed)
    watch = rest.Watch(system)
    rest.wait_consumed(system, _START_SECONDS)
    watch.wait(_IN_STEP_SECONDS)
    before = rest.row_versions(system.dsn)
    since = rest.last_version(system)
    started = time.monotonic()
    dumps: dict[str, Dump] = {}
    looks: list[tuple[float, float]] = []
    with watch, faults.supervised():
        with (
            workload.running(),
            _owning(system, clock, seed, workload.operations),
            _looking(system, clock, looks),
        ):
            for planned, calm in episodes(seed):
                _print(console, faults.episode(planned), system, watch, clock)
                dumps = dumps or {service: take_dump(url) for service, url in system.redis_urls.items()}
                time.sleep(calm)
                if time.monotonic() - started > 60 * minutes or (stopping and stopping.is_set()):
                    break
            time.sleep(_CALM_SECONDS)
        seconds = time.monotonic() - started
        console.print("waiting until the system is at rest")
        end = Fault(kind="end", part="workload", begin=clock(), repaired=clock())
        if watch.wait(_IN_STEP_SECONDS):
            end.in_step = clock()
        for fault in faults.done:
            # A fault whose recovery exceeded the limit.
            fault.in_step = min(fault.in_step, end.in_step)
        workload.read_all()
        at_rest = rest.differences(system.dsn, system.redis_urls)
    for service, dump in dumps.items():
        restore_dump(system.redis_urls[service], dump)
    drift = len(rest.differences(system.dsn, system.redis_urls))
    console.print(f"{drift} slots are wrong after restoring the dumps from the start of the run; reconciling")
    rest.reconcile(system, *system.services)
    history = History(
        operations=workload.operations,
        log=rest.logged_since(system.dsn, since),
        faults=[*faults.done, end],
        before=before,
        after=rest.row_versions(system.dsn),
        in_step=[*looks, (end.repaired, end.in_step)],
        at_rest=at_rest,
        reconciled=rest.differences(system.dsn, system.redis_urls),
        unburied=rest.unburied(system, faults.poison),
    )
    return Result(seed, seconds, history, check(history))


def _print(console: Console, faults: list[Fault], system: System, watch: rest.Watch, clock: Clock) -> None:
    """Wait until the system has recovered from the faults, and print them."""
    rest.wait_ready(system, _IN_STEP_SECONDS)
    in_step = clock() if watch.wait(_IN_STEP_SECONDS) else inf
    for fault in faults:
        fault.in_step = in_step
        console.print(
            f"{fault.kind:<15}{fault.part:<22}{fault.repaired - fault.begin:6.1f} s, "
            f"in step after {fault.in_step - fault.repaired:6.1f} s",
            highlight=False,
        )


@contextmanager
def _owning(system: System, clock: Clock, seed: int, operations: list[Operation]) -> Iterator[None]:
    """Let clients of the library share the caches of the services, and add their operations at the end."""
    stopping = threading.Event()
    opened = {service: threading.Event() for service in system.services}

    def serve(service: str) -> list[Operation]:
        names = [f"{service}-own-{number}" for number in range(own.CLIENTS)]
        randoms = {name: Random(f"{seed} {name}") for name in names}
        part = system.services[service]
        return asyncio.run(own.serve(part, system.dsn, clock, opened[service], stopping, randoms))

    with ThreadPoolExecutor() as threads:
        serving = [threads.submit(serve, service) for service in system.services]
        try:
            # A fault while they open would end them, as it ends a service that starts.
            for one in opened.values():
                one.wait(_START_SECONDS)
            yield
        finally:
            stopping.set()
        for client in serving:
            operations += client.result()


@contextmanager
def _looking(system: System, clock: Clock, looks: list[tuple[float, float]]) -> Iterator[None]:
    """Keep recording up to which moment the caches are in step."""
    stopping = threading.Event()

    def look() -> None:
        with rest.Watch(system) as watch:
            while not stopping.wait(_LOOK_SECONDS):
                committed = clock()
                if watch.wait(_IN_STEP_SECONDS):
                    looks.append((committed, clock()))

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield
    finally:
        stopping.set()
        thread.join()
