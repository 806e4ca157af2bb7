"""The load generator `pgbench`, which costs a tenth of the CPU time of one in Python."""

from __future__ import annotations

import asyncio
import re
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from local.postgres import client

if TYPE_CHECKING:
    from collections.abc import Mapping

_TPS: Final = re.compile(r"^tps = ([\d.]+)", re.MULTILINE)
_FAILED: Final = re.compile(r"^number of failed transactions: (\d+)", re.MULTILINE)


class Transaction(NamedTuple):
    """One transaction.

    Attributes:
        client: number of the session, from 0.
        number: number of the transaction in its session, from 1.
        seconds: time from its schedule, or from its start if there is none, to the response.
        ended: time of the response, in seconds since the epoch.
    """

    client: int
    number: int
    seconds: float
    ended: float


@dataclass(frozen=True)
class Load:
    """A script to run again and again.

    Attributes:
        script: the SQL, in which `:n` is the number of the transaction in its session, from `start` + 1.
        clients: number of sessions.
        seconds: how long to run.
        rate: transactions per second that are scheduled, however long each takes; None: as many as possible.
        start: the number before the first transaction.
        variables: values of further variables of the script.
    """

    script: str
    clients: int
    seconds: float
    rate: int | None = None
    start: int = 0
    variables: Mapping[str, int] | None = None


async def run(dsn: str, load: Load) -> tuple[float, list[Transaction]]:
    """Run a load; return its transactions per second and, if it has a rate, its transactions."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        script = folder / "script.sql"
        script.write_text(f"\\set n :n + 1\n{load.script}\n")
        variables = {"n": load.start, **(load.variables or {})}
        arguments = ["--no-vacuum", "--protocol=prepared", f"--client={load.clients}", "--jobs=1"]
        # The time includes opening the connections.
        arguments += [f"--time={round(load.seconds) + 1}", f"--file={script}"]
        arguments += [item for each in variables.items() for item in ("-D", "=".join(map(str, each)))]
        if load.rate is not None:
            arguments += [f"--rate={load.rate}", "--log", f"--log-prefix={folder / 'log'}"]
        command, environment = client("pgbench", dsn, *arguments)
        process = await asyncio.create_subprocess_exec(
            *command, env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        output, errors = (text.decode() for text in await process.communicate())
        tps, failed = _TPS.search(output), _FAILED.search(output)
        if process.returncode or tps is None or (failed is not None and failed[1] != "0"):
            message = f"pgbench failed: {errors or output}"
            raise RuntimeError(message)
        return float(tps[1]), _transactions(folder)


def _transactions(folder: Path) -> list[Transaction]:
    return [transaction_of(line) for log in folder.glob("log.*") for line in log.read_text().splitlines()]


def transaction_of(line: str) -> Transaction:
    """Return the transaction of a line of the log."""
    session, number, microseconds, _, seconds, fraction, *_ = map(int, line.split())
    return Transaction(session, number, microseconds / 1e6, seconds + fraction / 1e6)
