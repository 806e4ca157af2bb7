"""The command `python -m tests.faults.history`: a long run on its own system."""

from __future__ import annotations

import logging
import os
import secrets
import signal
import threading
import time
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import structlog
import typer
from rich.console import Console

from cachesync.service.connections import Connections
from local.settings import REPOSITORY
from local.state import claim_any
from tests.faults.history.own import settle_nothing
from tests.faults.history.run import run
from tests.faults.links import Links, linked_system

if TYPE_CHECKING:
    from collections.abc import Iterator

    from local.system import System

app = typer.Typer(add_completion=False, pretty_exceptions_show_locals=False)
_STATE = REPOSITORY / ".local" / "faults"
_SWITCH = Path(__file__).with_name("switch")
# Several processes share each cache, its slots and its stream.
_SEVERAL = {"CACHESYNC_CONSUMERS_PER_CACHE": "3", "WORKERS": "2"}
_TOLD = 10


class Rule(StrEnum):
    """A rule of the product that can be disabled."""

    VERSION_CHECK = "version-check"
    LEASE = "lease"
    RELAY = "relay"
    SETTLE = "settle"


@app.command()
def main(
    minutes: Annotated[float, typer.Option(envvar="MINUTES", min=0.1)] = 10,
    seed: Annotated[int | None, typer.Option(envvar="SEED", help="Random by default.")] = None,
    rate: Annotated[float, typer.Option(envvar="RATE", min=1, help="Operations per second.")] = 200,
    switched_off: Annotated[
        Rule | None, typer.Option("--break", envvar="BREAK", help="A rule of the product to disable.")
    ] = None,
) -> None:
    """Inject faults into the whole system under load, and check the history of what its clients saw."""
    console = Console()
    seed = secrets.randbelow(10**6) if seed is None else seed
    console.print(f"seed {seed}, {minutes:g} minutes; Ctrl-C ends the run and checks the history so far")
    os.environ.update(_SEVERAL)
    # The consumers of the fault `join` run in this process, and their logs would mix with the run's output.
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR))
    with claim_any(_STATE) as state, Links() as links:
        system = linked_system(state, console, links)
        if switched_off is not None:
            _switch_off(switched_off, system)
        with system, _stopping(console) as stopping:
            result = run(system, links, console, seed=seed, minutes=minutes, rate=rate, stopping=stopping)
        console.print(result.line(), soft_wrap=True, highlight=False)
    if result.wrong:
        folder = _STATE / f"seed-{seed}-{time.strftime('%Y%m%d-%H%M%S')}"
        result.keep(folder)
        for finding in result.wrong[:_TOLD]:
            console.print(f"{finding.wrong}: {finding.text}", style="red", markup=False, highlight=False)
        console.print(f"history, faults and findings saved in {folder}", soft_wrap=True)
        raise typer.Exit(1)


def _switch_off(rule: Rule, system: System) -> None:
    environment = system.airflow.environment
    if rule is Rule.SETTLE:
        # The clients of the library are in this process.
        Connections.settle = settle_nothing  # type: ignore[method-assign, assignment]
        return
    if rule is Rule.RELAY:
        # The relay's address of the change log, at which nothing listens.
        environment["AIRFLOW_CONN_POSTGRES_CACHESYNC"] = "postgresql://worker@127.0.0.1:1/cachesync"
        return
    changed = {"HISTORY_BREAK": rule.value, "PYTHONPATH": f"{_SWITCH}{os.pathsep}{REPOSITORY}"}
    # The environment of the services and of all other processes started by this one.
    os.environ.update(changed)
    environment.update(changed)


@contextmanager
def _stopping(console: Console) -> Iterator[threading.Event]:
    """Yield an event that the first Ctrl-C sets; the second Ctrl-C interrupts."""
    stopping = threading.Event()

    def stop(*_: object) -> None:
        console.print(
            "stopping after the current faults are repaired; press Ctrl-C again to stop immediately"
        )
        stopping.set()
        for number in numbers:
            signal.signal(number, _interrupt)

    numbers = (signal.SIGINT, signal.SIGTERM)
    for number in numbers:
        signal.signal(number, stop)
    yield stopping


def _interrupt(*_: object) -> NoReturn:
    raise KeyboardInterrupt


if __name__ == "__main__":
    app()
