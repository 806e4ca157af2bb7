"""Throughput of cached hits of one sb process, relative to a constant Falcon response on the same server.

The two take turns under `wrk` with 32 connections, so that changes in the machine's speed affect both. The
result is the ratio.

`python -m benchmarks.hits` starts the system, and a server with the constant response.
"""

from __future__ import annotations

import re
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Final

import httpx
import typer
from rich.console import Console

from benchmarks import wrk
from benchmarks.constant import PAYLOAD
from local.ports import HOST, free_port
from local.process import Process
from local.settings import REPOSITORY, Settings
from local.system import System

_CONNECTIONS: Final = 32
_WRONG: Final = re.compile(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)")


class Constant(Process):
    """gunicorn with the constant response, configured like the services."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        super().__init__("constant", folder, {"constant": self.port})

    def command(self) -> list[str]:
        """Return the `gunicorn` command line: one worker process with uvicorn's own protocol."""
        gunicorn = Path(sys.executable).with_name("gunicorn")
        options = ["--worker-class", "uvicorn_worker.UvicornWorker", "--no-control-socket"]
        return [str(gunicorn), *options, "--bind", f"{HOST}:{self.port}", "benchmarks.constant:app"]

    def working_folder(self) -> Path:
        """Return the repository, from which `benchmarks` can be imported."""
        return REPOSITORY

    def ready(self) -> bool:
        """Return whether the server responds."""
        try:
            return httpx.get(f"http://{HOST}:{self.port}/constant").is_success
        except httpx.TransportError:
            return False


def requests_per_second(url: str, seconds: int) -> float:
    """Run `wrk` on the URL and return its requests per second."""
    command = wrk.command(url, _CONNECTIONS, seconds)
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wrong = _WRONG.search(output)
    assert wrong is None, wrong
    return wrk.requests_per_second(output)


def main(rounds: int = 5, seconds: int = 6) -> None:
    """Measure cached hits relative to a constant response."""
    console = Console()
    wrk.require(console)
    with System(Settings(), console) as system, Constant(system.folder) as constant:
        system.airflow.stop()  # not needed, and it would use CPU time
        service = system.services["sb"]
        headers = {"content-type": "application/json"}
        httpx.put(f"{service.url}/students/1", content=PAYLOAD, headers=headers)
        answer = httpx.get(f"{service.url}/students/1")
        assert (answer.headers["x-cache"], answer.content) == ("HIT", PAYLOAD)
        urls = {"constant": f"http://{HOST}:{constant.port}/constant", "hit": f"{service.url}/students/1"}
        for url in urls.values():
            requests_per_second(url, 2)
        ratios = []
        for _ in range(rounds):
            rates = {name: requests_per_second(url, seconds) for name, url in urls.items()}
            ratios.append(rates["hit"] / rates["constant"])
            console.print(
                f"constant {rates['constant']:8.0f}/s   hit {rates['hit']:8.0f}/s   ratio {ratios[-1]:.2f}"
            )
    console.print(f"ratio of hits to constant responses, median of {rounds}: {statistics.median(ratios):.2f}")


if __name__ == "__main__":
    typer.run(main)
