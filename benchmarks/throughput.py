"""Requests per second of the services relative to a bare Falcon application on the same server.

The two take turns under `wrk` with 32 connections, so that changes in the machine's speed affect both.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Final

import httpx

from benchmarks import wrk
from benchmarks.bare import PAYLOAD
from benchmarks.cpu import accounting
from local.ports import HOST, free_port
from local.process import Process
from local.settings import REPOSITORY

if TYPE_CHECKING:
    from local.service import Service

    _Pairs = dict[str, tuple["Service | Bare", str]]

CONNECTIONS: Final = 32
_WRONG: Final = re.compile(r"Non-2xx or 3xx responses: (\d+)|Socket errors: (.*)")
_POST: Final = """
local id = {first}
request = function()
    id = id + 1
    local body = '{{"id":' .. id .. ',"name":"Ann","age":20}}'
    return wrk.format('POST', '{path}', {{["Content-Type"] = 'application/json'}}, body)
end
"""


class Bare(Process):
    """gunicorn with the bare application, configured like the services."""

    def __init__(self, folder: Path, dsn: str | None = None) -> None:
        self.port = free_port()
        self._dsn = dsn
        super().__init__("bare Falcon", folder, {"bare": self.port})

    @property
    def url(self) -> str:
        """The base URL."""
        return f"http://{HOST}:{self.port}"

    def command(self) -> list[str]:
        """Return the `gunicorn` command line: one worker process with uvicorn's own protocol."""
        gunicorn = Path(sys.executable).with_name("gunicorn")
        options = ["--worker-class", "uvicorn_worker.UvicornWorker", "--no-control-socket"]
        return [str(gunicorn), *options, "--bind", f"{HOST}:{self.port}", "benchmarks.bare:app"]

    def environment(self) -> dict[str, str]:
        """Return the caller's environment with the address of the database."""
        return os.environ | ({} if self._dsn is None else {"DSN": self._dsn})

    def working_folder(self) -> Path:
        """Return the repository, from which `benchmarks` can be imported."""
        return REPOSITORY

    def ready(self) -> bool:
        """Return whether the server responds."""
        try:
            return httpx.get(f"{self.url}/constant").is_success
        except httpx.TransportError:
            return False


def hits(service: Service, bare: Bare, rounds: int, seconds: int) -> list[dict[str, float]]:
    """Return, by round, cached hits and constant responses per second, and their ratio."""
    headers = {"content-type": "application/json"}
    httpx.put(f"{service.url}/students/1", content=PAYLOAD, headers=headers)
    answer = httpx.get(f"{service.url}/students/1")
    assert (answer.headers["x-cache"], answer.content) == ("HIT", PAYLOAD)
    pairs: _Pairs = {"constant": (bare, "/constant"), "hit": (service, "/students/1")}
    return [
        _compared({name: rate(server, path, seconds) for name, (server, path) in pairs.items()})
        for seconds in (1, *[seconds] * rounds)
    ][1:]


def posts(service: Service, bare: Bare, rounds: int, seconds: int) -> list[dict[str, float]]:
    """Return, by round, POSTs per second of both, their ratio, and the CPU time of each."""
    pairs: _Pairs = {"insert": (bare, "/rows"), "post": (service, "/students")}
    return [
        _compared({name: rate(server, path, seconds, post=True) for name, (server, path) in pairs.items()})
        for seconds in (1, *[seconds] * rounds)
    ][1:]


def _compared(rates: dict[str, tuple[float, float]]) -> dict[str, float]:
    """Return the figures of two servers, the bare one first; each is a rate and microseconds per request."""
    (_, (base, _)), (_, (own, _)) = rates.items()
    figures = {f"{name}_per_s": rate for name, (rate, _) in rates.items()}
    return figures | {f"{name}_cpu_us": cpu for name, (_, cpu) in rates.items()} | {"ratio": own / base}


def rate(
    server: Service | Bare, path: str, seconds: int, *, connections: int = CONNECTIONS, post: bool = False
) -> tuple[float, float]:
    """Run `wrk`; return requests per second, and the server's microseconds of CPU time per request."""
    command = wrk.command(f"{server.url}{path}", connections, seconds, "--timeout", "10s")
    if post:
        script = server.folder / "post.lua"
        # Lua writes numbers with up to 14 digits. At up to 10,000 rows/s, no later run has the same keys.
        script.write_text(_POST.format(first=time.time_ns() // 100_000, path=path))
        command[1:1] = ["-s", str(script)]
    with accounting([server]) as usage:
        output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    wrong = _WRONG.search(output)
    assert wrong is None, wrong
    per_second = wrk.requests_per_second(output)
    return per_second, usage.per(round(per_second * usage.seconds))[server.name]
