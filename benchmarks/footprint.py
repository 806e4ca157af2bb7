"""CPU and memory usage of one service pod under each kind of load, by the size of its connection pool.

`wrk` sends requests to one sb process as fast as it responds. The output has requests/s, the 99th percentile
of the latency, the cores in use, the maximum memory of gunicorn's master and worker processes (PSS, which
counts shared memory once), and the maximum numbers of open and busy connections to PostgreSQL.

`python -m benchmarks.footprint` starts the system.
"""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import httpx
import typer
from rich.console import Console

from benchmarks import wrk
from local.postgres import run_sql
from local.service import Service
from local.settings import Settings
from local.system import System

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    import psutil

_ROWS: Final = 2000
# Each sample costs 50 ms of CPU time.
_SAMPLE_SECONDS: Final = 1.0
_HEADERS: Final = {"content-type": "application/json"}
_LOADS: Final = {
    "hits": "wrk.path = '/students/1'",
    # Random keys without rows, so that nearly every request is a miss.
    "misses": "request = function() return wrk.format('GET', '/students/' .. math.random(10^6, 10^12)) end",
    "writes": """
request = function()
    local body = '{"name":"Ann","age":' .. math.random(99) .. '}'
    local headers = {["Content-Type"] = 'application/json'}
    return wrk.format('PUT', '/students/' .. math.random(0, 1999), headers, body)
end""",
    "pages": "wrk.path = '/students?limit=1000'",
}
_P99: Final = re.compile(r"99%\s+(\S+)")
_REFUSED: Final = re.compile(r"Non-2xx or 3xx responses: (\d+)")
_SESSIONS: Final = (
    "SELECT count(*), count(*) FILTER (WHERE state <> 'idle') FROM pg_stat_activity"
    " WHERE application_name = 'cachesync-sb'"
)


@dataclass
class Peak:
    """Maximum values over all samples."""

    master: float = 0
    worker: float = 0
    connections: int = 0
    busy: int = 0


def watch(service: Service, dsn: str, load: subprocess.Popen[str]) -> Peak:
    """Sample the service until the load ends."""
    peak = Peak()
    while load.poll() is None:
        master, *workers = service.tree()
        peak.master = max(peak.master, _megabytes([master]))
        peak.worker = max(peak.worker, _megabytes(workers))
        connections, busy = map(int, run_sql(dsn, _SESSIONS).split("|"))
        peak.connections = max(peak.connections, connections)
        peak.busy = max(peak.busy, busy)
        time.sleep(_SAMPLE_SECONDS)
    return peak


def _megabytes(processes: list[psutil.Process]) -> float:
    return float(sum(each.memory_full_info().pss for each in processes)) / 2**20


def cpu_seconds(service: Service) -> float:
    """Return the CPU time that the service's processes have used so far, in seconds."""
    return float(sum(sum(each.cpu_times()[:2]) for each in service.tree()))


def measured(service: Service, dsn: str, script: Path, connections: int, seconds: int) -> str:
    """Run a load and return its figures as a line of text."""
    before, began = cpu_seconds(service), time.monotonic()
    command = wrk.command(service.url, connections, seconds, "--latency", "-s", str(script))
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as load:
        peak = watch(service, dsn, load)
        output = load.stdout.read() if load.stdout else ""
    cores = (cpu_seconds(service) - before) / (time.monotonic() - began)
    rate, p99 = wrk.requests_per_second(output), _P99.search(output)
    assert p99 is not None, output
    # A read of a row that does not exist returns 404; under the other loads, no request may fail.
    refused = _REFUSED.search(output)
    other = f"  failed {refused[1]}" if refused and script.stem != "misses" else ""
    return (
        f"{rate:8.0f}/s  p99 {p99[1]:>8}  cores {cores:4.2f}  master {peak.master:4.0f} MB"
        f"  worker {peak.worker:4.0f} MB  connections {peak.connections:2} busy {peak.busy:2}{other}"
    )


def _services(system: System, pools: list[int]) -> Iterator[tuple[int, Service]]:
    for pool in pools:
        yield (
            pool,
            Service(
                system.folder,
                "sb",
                dsn=system.dsn,
                redis_url=system.redis_urls["sb"],
                bootstrap_servers=system.bootstrap_servers,
                environment={"DB_POOL": str(pool)},
            ),
        )


def main(pools: str = "2,5,10", connections: int = 32, seconds: int = 10) -> None:
    """Measure the resource usage of a service under load."""
    console = Console()
    with System(Settings(), console) as system:
        system.airflow.stop()  # not needed, and it would use CPU time
        for service in system.services.values():
            service.stop()
        for pool, service in _services(system, [int(pool) for pool in pools.split(",")]):
            with service:
                idle = Peak()
                master, *workers = service.tree()
                idle.master, idle.worker = _megabytes([master]), _megabytes(workers)
                console.print(
                    f"pool {pool:2}  idle  master {idle.master:.0f} MB  worker {idle.worker:.0f} MB"
                )
                with httpx.Client(base_url=service.url, headers=_HEADERS) as client:
                    for key in range(_ROWS):
                        answer = client.put(f"/students/{key}", content=b'{"name":"Ann","age":20}')
                        answer.raise_for_status()
                for name, text in _LOADS.items():
                    script = system.folder / f"{name}.lua"
                    script.write_text(text)
                    line = measured(service, system.dsn, script, connections, seconds)
                    console.print(f"pool {pool:2}  {name:7}{line}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    typer.run(main)
