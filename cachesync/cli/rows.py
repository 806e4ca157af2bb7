"""Rows of output that can be read in a terminal of any width, and processed by other programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.padding import Padding
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence


def print_rows(rows: Sequence[Mapping[str, Any]], *, title: str = "") -> None:
    """Print rows on standard output.

    In a pipe or a file, each row is one line, however long it is. In a terminal that is too narrow for that,
    each row is a paragraph, in which no value is cut off.

    Args:
        rows: the rows, which all have the same columns; None is an empty cell.
        title: the column whose value begins the paragraph of a row.
    """
    output = Console(highlight=False, markup=False)
    cells = [{name: printable(value) for name, value in row.items()} for row in rows]
    if not cells:
        return
    widths = {name: max(len(name), *(len(row[name]) for row in cells)) for name in cells[0]}
    lines = [
        "  ".join(text.ljust(widths[name]) for name, text in row.items()).rstrip()
        for row in ({name: name for name in widths}, *cells)
    ]
    if not output.is_terminal or max(map(len, lines)) <= output.width:
        for line in lines:
            output.print(line, soft_wrap=True)
        return
    for row in cells:
        # Not wrapped, because users copy it.
        output.print(row.get(title, ""), soft_wrap=True)
        facts = ", ".join(f"{name} {text}" for name, text in row.items() if text and name != title)
        output.print(Padding(Text(facts), (0, 0, 0, 4)))


def printable(value: object) -> str:
    """Return a value as text that moves no cursor and ends no line.

    Args:
        value: the value; None is an empty text.
    """
    text = "" if value is None else str(value)
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
