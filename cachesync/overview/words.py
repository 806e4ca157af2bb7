"""Times and numbers in words."""

from __future__ import annotations

import re
import shlex
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from datetime import datetime

START_RELAY: Final = "Start the DAG outbox_relay, or run `cachesync relay`."
"""What to do if no relay runs."""

# With what the errors of a server begin.
_SERVER: Final = re.compile(r"^(?:Kafka|the Redis of \S+ is unavailable): ")
_UNITS: Final = ((86_400, "days"), (3600, "h"), (60, "min"), (1, "s"))


def duration(seconds: float) -> str:
    """Return a time in the largest unit of which there are at least two, such as `42 s` or `3 min`."""
    whole = max(0, int(seconds))
    for size, unit in _UNITS:
        if whole >= 2 * size:
            return f"{whole // size:,} {unit}"
    return f"{whole} s" if seconds >= 1 else "less than a second"


def ago(now: datetime, at: datetime) -> str:
    """Return how long ago something was, such as `42 s ago`."""
    return f"{duration((now - at).total_seconds())} ago"


def counted(number: int, one: str) -> str:
    """Return a number of things, such as `1 message` or `2,000 messages`."""
    return f"{number:,} {one}{'' if number == 1 else 's'}"


def waiting(number: int, one: str) -> str:
    """Return that things wait, such as `1 message waits` or `2,000 messages wait`."""
    return f"{counted(number, one)} {'waits' if number == 1 else 'wait'}"


def show_command(entity: str, key: str) -> str:
    """Return the command that shows a key, as it can be pasted into a shell."""
    return f"`cachesync show {entity} {'-- ' if key.startswith('-') else ''}{shlex.quote(key)}`"


def brief(problems: str) -> str:
    """Return the first of several problems, and how many more there are.

    Args:
        problems: the problems, with a semicolon and a blank between them.
    """
    first, *others = sentence(problems).split("; ")
    return f"{first} (and {counted(len(others), 'more problem')})" if others else first


def sentence(text: str) -> str:
    """Return a text that another program or server wrote as the end of a sentence."""
    return text.strip().rstrip(".")


def cause(error: str) -> str:
    """Return why a server does not respond as the end of a sentence that names the server.

    Args:
        error: the text of the error.
    """
    return sentence(_SERVER.sub("", error))
