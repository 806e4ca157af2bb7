"""The Lua scripts that change slots, and the one way to run them.

A script is called by its digest. A Redis that was restarted or has flushed its scripts answers NOSCRIPT;
the call is then repeated with the script's source, which loads it again.
"""

from __future__ import annotations

from functools import cache
from hashlib import sha1
from importlib import resources
from typing import TYPE_CHECKING, Any

from hiredis import ReplyError
from redis.exceptions import NoScriptError

if TYPE_CHECKING:
    from collections.abc import Callable, Generator, Sequence

Command = tuple[bytes | str | int, ...]
"""A Redis command: its name and its arguments."""


class Script:
    """A Lua script of this package.

    Attributes:
        source: its text.
        sha: the digest by which Redis knows it.
    """

    def __init__(self, name: str) -> None:
        self.source = (resources.files("cachesync.slots") / "lua" / f"{name}.lua").read_text(encoding="utf-8")
        self.sha = sha1(self.source.encode(), usedforsecurity=False).hexdigest()


@cache
def script(name: str) -> Script:
    """Return the script `lua/{name}.lua`."""
    return Script(name)


def script_calls(name: str, calls: Sequence[Command]) -> Generator[list[Command], list[Any], list[Any]]:
    """Run a script once per call, independently of how commands are sent.

    A generator, so that blocking, pipelined and asynchronous clients share it: it yields commands, is
    sent their answers (an error reply as the exception that the client makes of it), and returns one
    answer per call.

    Args:
        name: the script.
        calls: for each call the slot's name and the script's arguments.
    """
    lua = script(name)
    answers = yield [("EVALSHA", lua.sha, 1, *call) for call in calls]
    unknown = [place for place, answer in enumerate(answers) if _is_unknown(answer)]
    if unknown:
        repeated = yield [("EVAL", lua.source, 1, *calls[place]) for place in unknown]
        for place, answer in zip(unknown, repeated, strict=True):
            answers[place] = answer
    return answers


def run_script(name: str, calls: Sequence[Command], send: Callable[[list[Command]], list[Any]]) -> list[Any]:
    """Run a script once per call through a function that sends commands and returns their answers."""
    if not calls:
        return []
    steps = script_calls(name, calls)
    commands = next(steps)
    while True:
        try:
            commands = steps.send(send(commands))
        except StopIteration as end:
            answers: list[Any] = end.value
            return answers


def _is_unknown(answer: object) -> bool:
    # redis-py has a class for it; hiredis by itself has only the text.
    return isinstance(answer, NoScriptError) or (
        isinstance(answer, ReplyError) and str(answer).startswith("NOSCRIPT")
    )
