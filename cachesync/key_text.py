"""The text of several values as one, from which each of them can be read again.

The text of one value stays as it is. Several are joined by `/`. Within each of them, `~` is written as `~0`,
and `/` as `~1`, as in a JSON Pointer (RFC 6901), so that the values are found by splitting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

SEPARATOR: Final = "/"


def joined(parts: Sequence[str]) -> str:
    """Return the text of these values."""
    return parts[0] if len(parts) == 1 else SEPARATOR.join(map(_escaped, parts))


def split(text: str, parts: int) -> list[str]:
    """Return the values in a text of so many; if it has another number of them, those that it has."""
    return [text] if parts == 1 else list(map(_unescaped, text.split(SEPARATOR)))


def _escaped(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")


def _unescaped(part: str) -> str:
    return part.replace("~1", "/").replace("~0", "~")
