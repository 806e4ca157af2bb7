"""How the command reports mistakes in its arguments."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

import typer
from pydantic import ValidationError
from typer.core import TyperGroup
from typer.exceptions import TyperException

from cachesync.cli.options import console
from cachesync.mistakes import in_words

if TYPE_CHECKING:
    from collections.abc import Sequence


class OneLineErrors(TyperGroup):
    """Reports a mistake in the arguments as one line in words, as the commands report all other errors."""

    def main(  # type: ignore[override]  # its other parameters are passed on
        self, args: Sequence[str] | None = None, *, standalone_mode: bool = True, **extra: Any
    ) -> Any:
        """Run the command; exits with status 2 if an argument is invalid."""
        try:
            status = super().main(args, standalone_mode=False, **extra)
        except TyperException as error:
            if not standalone_mode:
                raise
            _print(error)
            sys.exit(error.exit_code)
        except typer.Abort:
            sys.exit(1)
        if standalone_mode:
            sys.exit(status or 0)
        return status


def _print(error: TyperException) -> None:
    if isinstance(error.__cause__, ValidationError):
        # typer validates with pydantic, and shows pydantic's own words.
        first = error.__cause__.errors(include_url=False)[0]
        words = in_words(first["type"], first["msg"], first.get("ctx", {}))
        error.message = words.removeprefix("is invalid: ")
    text = " ".join(error.format_message().split()).rstrip(".")
    if not text:  # The command was given no arguments, and typer has printed its help.
        return
    context = getattr(error, "ctx", None)
    hint = f"; see {context.command_path} --help" if context is not None else ""
    console.print(f"cachesync: {text}{hint}", style="red")
