"""The command `python -m local`."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NoReturn

import psutil
import typer
from pydantic import ValidationError
from rich.console import Console

from local.demo import Story
from local.errors import LocalError
from local.kafka import fetch_kafka
from local.settings import Settings
from local.supervisor import Supervisor
from local.system import System
from local.tools import require_java

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
_console = Console()


@app.callback()
def _local() -> None:
    """Run the whole system on this machine, without containers."""


@app.command()
def up() -> None:
    """Start the whole system and keep it running until Ctrl-C."""
    with _running() as system:
        _describe(system)
        _stay_up()


@app.command()
def demo(
    *, once: Annotated[bool, typer.Option(envvar="DEMO_ONCE", help="Exit after the demo.")] = False
) -> None:
    """Start the whole system, run the demo, and keep the system running until Ctrl-C."""
    with _running() as system:
        _console.print()
        Story(system, _console).run()
        _describe(system)
        if not once:
            _stay_up()


@contextmanager
def _running() -> Iterator[System]:
    # `kill` stops the system as Ctrl-C does.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        with System(Settings(), _console) as system, Supervisor(system.processes, _console):
            yield system
    except KeyboardInterrupt:
        _console.print("stopped")
        raise typer.Exit from None


def _interrupt(*_: object) -> NoReturn:
    # Stopping takes a few seconds; an impatient second Ctrl-C must not leave half of the system running.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _describe(system: System) -> None:
    """Print the addresses, the log locations and the memory in use."""
    _console.print("\nAddresses")
    width = max(map(len, system.addresses)) + 2
    for name, address in system.addresses.items():
        _console.print(f"  {name:<{width}}{address}", markup=False, highlight=False, soft_wrap=True)
    sa = system.services["sa"]
    urls = f"{sa.url}/students   {sa.url}/openapi.json"
    _console.print(f"  try       curl -i {urls}", soft_wrap=True)
    addresses = [service.metrics_url for service in system.services.values()]
    _console.print("Metrics    ", *addresses, system.airflow.metrics_url, soft_wrap=True)
    _console.print(f"Logs        {system.folder}/*.log  {system.folder}/airflow/*.log", soft_wrap=True)
    _console.print(f"Memory      {_memory() / 2**20:.0f} MiB in all processes (PSS)\n")


def _memory() -> int:
    total = 0
    for process in psutil.Process().children(recursive=True):
        try:
            total += process.memory_full_info().pss
        except (psutil.Error, AttributeError):  # the process has exited, or the platform has no PSS
            continue
    return total


def _stay_up() -> None:
    _console.print("The system is running; press Ctrl-C to stop it.")
    threading.Event().wait()


@app.command("install-tools")
def install_tools() -> None:
    """Install the tools that the first start needs, Java and Kafka's jars, and print their paths."""
    _console.print(require_java(), fetch_kafka(Settings().state / "kafka"), sep="\n")


def main() -> None:
    """Run the command line; errors that the user can fix are printed without a traceback."""
    try:
        app()
    except ValidationError as error:
        _fail("\n".join(f"{_variable(str(one['loc'][0]))}: {one['msg']}" for one in error.errors()))
    except LocalError as error:
        _fail(str(error))


def _variable(setting: str) -> str:
    return setting if setting.isupper() else f"LOCAL_{setting.upper()}"


def _fail(message: str) -> NoReturn:
    Console(stderr=True).print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
