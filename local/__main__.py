"""The command `python -m local`."""

from __future__ import annotations

import signal
import threading
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from rich.console import Console

from local.demo import Story, describe
from local.errors import LocalError
from local.kafka import fetch_jars
from local.settings import Settings
from local.system import System
from local.tools import require_java

app = typer.Typer(no_args_is_help=True, add_completion=False, pretty_exceptions_show_locals=False)
_console = Console()


@app.callback()
def _local() -> None:
    """The whole system on this machine, without containers."""


@app.command()
def up() -> None:
    """Start the whole system; it stays up until Ctrl-C."""
    # A stop by a service manager or `kill` is the same as one by Ctrl-C.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with System(Settings(), _console):
            _console.print("up; Ctrl-C stops it")
            threading.Event().wait()
    except KeyboardInterrupt:
        _console.print("stopped")


@app.command()
def demo(
    *, once: Annotated[bool, typer.Option(envvar="DEMO_ONCE", help="End after the story.")] = False
) -> None:
    """Start the whole system and tell its story; it stays up until Ctrl-C."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with System(Settings(), _console) as system:
            _console.print()
            Story(system, _console).tell()
            describe(system, _console)
            if not once:
                _console.print("up; Ctrl-C stops it")
                threading.Event().wait()
    except KeyboardInterrupt:
        _console.print("stopped")


@app.command("install-tools")
def install_tools() -> None:
    """Get now what the first start would get: Java, and the jars of Kafka."""
    _console.print(require_java(), fetch_jars(Settings().state / "kafka"), sep="\n")


def main() -> None:
    """Run the command; an error that its user can mend is told without a traceback."""
    try:
        app()
    except ValidationError as error:
        _fail("\n".join(f"LOCAL_{one['loc'][0]}: {one['msg']}".upper() for one in error.errors()))
    except LocalError as error:
        _fail(str(error))


def _fail(message: str) -> NoReturn:
    Console(stderr=True).print(message, style="red", markup=False, highlight=False, soft_wrap=True)
    raise SystemExit(1)


if __name__ == "__main__":
    main()
