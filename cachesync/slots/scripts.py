"""The Lua scripts that change slots, and the functions that run them.

A script is called by its digest. A Redis that was restarted or has flushed its scripts replies NOSCRIPT; the
call is then repeated with the source of the script, which loads it again.
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
        source: the text of the script.
        sha: the SHA-1 digest of the text, by which Redis identifies the script.
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

    A generator, so that blocking, pipelined and asynchronous clients can share it.

    Args:
        name: the name of the script.
        calls: for each call, the name of the slot and the arguments of the script.

    Yields:
        Commands. Send it their replies; an error reply is the exception that the client creates for it.

    Returns:
        One reply per call.
    """
    lua = script(name)
    replies = yield [("EVALSHA", lua.sha, 1, *call) for call in calls]
    unknown = [index for index, reply in enumerate(replies) if _is_unknown(reply)]
    if unknown:
        repeated = yield [("EVAL", lua.source, 1, *calls[index]) for index in unknown]
        for index, reply in zip(unknown, repeated, strict=True):
            replies[index] = reply
    return replies


def run_script(name: str, calls: Sequence[Command], send: Callable[[list[Command]], list[Any]]) -> list[Any]:
    """Run a script once per call with a blocking client.

    Args:
        name: the name of the script.
        calls: for each call, the name of the slot and the arguments of the script.
        send: sends commands and returns one reply for each.

    Returns:
        One reply per call.
    """
    if not calls:
        return []
    steps = script_calls(name, calls)
    commands = next(steps)
    while True:
        try:
            commands = steps.send(send(commands))
        except StopIteration as end:
            replies: list[Any] = end.value
            return replies


def _is_unknown(reply: object) -> bool:
    # redis-py has a class for this error; hiredis alone has only the text.
    return isinstance(reply, NoScriptError) or (
        isinstance(reply, ReplyError) and str(reply).startswith("NOSCRIPT")
    )
