"""Cached hits per second of one sb worker, against a constant Falcon response on the same server.

The two take turns under `wrk` (32 connections), so that a drift of the machine's speed meets both; the
figure is the ratio.

Run `python -m benchmarks.hits`: it starts the system, and a server with the constant response.
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
    """gunicorn with the constant response, set up as the services are."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        super().__init__("constant", folder, {"constant": self.port})

    def command(self) -> list[str]:
        """One `asgi` worker with uvloop and the fast parser."""
        gunicorn = Path(sys.executable).with_name("gunicorn")
        options = ["--worker-class", "asgi", "--asgi-loop", "uvloop", "--http-parser", "fast"]
        return [str(gunicorn), *options, "--bind", f"{HOST}:{self.port}", "benchmarks.constant:app"]

    def working_folder(self) -> Path:
        """The repository, where `benchmarks` can be imported."""
        return REPOSITORY

    def ready(self) -> bool:
        """Whether it answers."""
        try:
            return httpx.get(f"http://{HOST}:{self.port}/constant").is_success
        except httpx.TransportError:
            return False


def requests_per_second(url: str, seconds: int) -> float:
    """What `wrk` counts."""
    command = wrk.command(url, _CONNECTIONS, seconds)
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wrong = _WRONG.search(output)
    assert wrong is None, wrong
    return wrk.requests_per_second(output)


def main(rounds: int = 5, seconds: int = 6) -> None:
    """Measure hits against a constant response."""
    console = Console()
    wrk.require(console)
    with System(Settings(), console) as system, Constant(system.folder) as constant:
        system.airflow.stop()  # it has no part in this, and takes some of the processors
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
