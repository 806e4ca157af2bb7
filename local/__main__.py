"""The command `python -m local`."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from local.demo import Story, describe
from local.errors import LocalError
from local.kafka import POM
from local.settings import Settings
from local.system import System
from local.tools import fetch_jars, require_java

if TYPE_CHECKING:
    from collections.abc import Iterator

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
_console = Console()


@app.callback()
def _local() -> None:
    """The whole system on this machine, without containers."""


@app.command()
def up() -> None:
    """Start the whole system; it stays up until Ctrl-C."""
    with _running():
        _stay_up()


@app.command()
def demo(
    *, once: Annotated[bool, typer.Option(envvar="DEMO_ONCE", help="End after the story.")] = False
) -> None:
    """Start the whole system and tell its story; it stays up until Ctrl-C."""
    with _running() as system:
        _console.print()
        Story(system, _console).tell()
        describe(system, _console)
        if not once:
            _stay_up()


@contextmanager
def _running() -> Iterator[System]:
    # A stop by `kill` is the same as one by Ctrl-C.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    try:
        with System(Settings(), _console) as system:
            yield system
    except KeyboardInterrupt:
        _console.print("stopped")
        raise typer.Exit from None


def _interrupt(*_: object) -> NoReturn:
    # Stopping takes some seconds; an impatient second Ctrl-C must not leave half of it running.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    raise KeyboardInterrupt


def _stay_up() -> None:
    _console.print("up; Ctrl-C stops it")
    threading.Event().wait()


@app.command("install-tools")
def install_tools() -> None:
    """Get now what the first start would get: Java, and the jars of Kafka."""
    _console.print(require_java(), fetch_jars(Settings().state / "kafka", POM), sep="\n")


def main() -> None:
    """Run the command; an error that its user can mend is told without a traceback."""
    try:
        app()
    except ValidationError as error:
        _fail("\n".join(f"LOCAL_{str(one['loc'][0]).upper()}: {one['msg']}" for one in error.errors()))
    except LocalError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    Console(stderr=True).print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
