"""The load generator `vegeta`, which sends requests on schedule, however slow the responses are."""

from __future__ import annotations

import base64
import csv
import io
import json
import shutil
import subprocess
from typing import TYPE_CHECKING, NamedTuple

import typer

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from rich.console import Console


class Target(NamedTuple):
    """A request to send; a body is JSON."""

    method: str
    url: str
    body: bytes = b""


class Result(NamedTuple):
    """The status of a response, 0 if there was none, and the seconds that it took."""

    status: int
    seconds: float


def require(console: Console) -> None:
    """Exit with a message if `vegeta` is not installed."""
    if shutil.which("vegeta") is None:
        console.print("vegeta is missing; install it (go install github.com/tsenart/vegeta/v12@v12.13.0)")
        raise typer.Exit(1)


def attack(folder: Path, targets: Iterable[Target], seconds: float, *options: str) -> list[Result]:
    """Send each request once, until there are no more or the time is over, and return the results.

    Args:
        folder: receives the files that `vegeta` reads and writes.
        targets: the requests, in the order in which they are sent.
        seconds: the time.
        options: options of `vegeta attack`.
    """
    requests, results = folder / "targets.json", folder / "results.bin"
    with requests.open("w") as file:
        for target in targets:
            line = {
                "method": target.method,
                "url": target.url,
                "body": base64.b64encode(target.body).decode(),
                "header": {"Content-Type": ["application/json"]} if target.body else {},
            }
            file.write(json.dumps(line) + "\n")
    files = [f"-targets={requests}", f"-output={results}"]
    command = ["vegeta", "attack", "-format=json", "-lazy", "-max-body=0", f"-duration={seconds}s"]
    subprocess.run([*command, *files, *options], check=True)
    encode = ["vegeta", "encode", "-to=csv", str(results)]
    output = subprocess.run(encode, check=True, capture_output=True, text=True).stdout
    # The first columns are the time, the status and the latency in nanoseconds.
    return [Result(int(row[1]), int(row[2]) / 1e9) for row in csv.reader(io.StringIO(output))]
