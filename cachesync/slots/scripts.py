"""The Lua scripts that change slots, and the functions that run them.

A script is called by its digest. A Redis that was restarted or has flushed its scripts replies NOSCRIPT; the
call is then repeated with the source of the script, which loads it again.
"""

from __future__ import annotations

import re
from functools import cache
from hashlib import sha1
from importlib import resources
from typing import TYPE_CHECKING, Any, Final

from hiredis import ReplyError
from redis.exceptions import NoScriptError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Generator, Sequence

Command = tuple[bytes | str | int, ...]
"""A Redis command: its name and its arguments."""

# With this, a script reports that Redis refused the new content of a slot, and that it has emptied the slot.
_REFUSED: Final = "REFUSED "
_PLACE_IN_SCRIPT: Final = re.compile(r"^.*@user_script: ?\d+: -?")


class Script:
    """A Lua script of this package.

    Attributes:
        source: the text of the script, which begins with `lua/slot.lua`.
        sha: the SHA-1 digest of the text, by which Redis identifies the script.
    """

    def __init__(self, name: str) -> None:
        folder = resources.files("cachesync.slots") / "lua"
        self.source = "\n".join(
            (folder / f"{part}.lua").read_text(encoding="utf-8") for part in ("slot", name)
        )
        self.sha = sha1(self.source.encode(), usedforsecurity=False).hexdigest()


@cache
def script(name: str) -> Script:
    """Return the script `lua/{name}.lua`."""
    return Script(name)


def script_calls(
    name: str, calls: Sequence[Command], slots: Sequence[int] | None = None
) -> Generator[list[Command], list[Any], list[Any]]:
    """Run a script once per call, independently of how commands are sent.

    A generator, so that blocking, pipelined and asynchronous clients can share it.

    Args:
        name: the name of the script.
        calls: for each call, the names of the slots and the arguments of the script.
        slots: the number of slots of each call; None if each has one.

    Yields:
        Commands. Send it their replies; an error reply is the exception that the client creates for it.

    Returns:
        One reply per call.
    """
    lua = script(name)
    numbered: list[Command] = [
        (number, *call) for number, call in zip(slots or [1] * len(calls), calls, strict=True)
    ]
    replies = yield [("EVALSHA", lua.sha, *call) for call in numbered]
    unknown = [index for index, reply in enumerate(replies) if _is_unknown(reply)]
    if unknown:
        repeated = yield [("EVAL", lua.source, *numbered[index]) for index in unknown]
        for index, reply in zip(unknown, repeated, strict=True):
            replies[index] = reply
    return replies


def run_script(
    name: str,
    calls: Sequence[Command],
    send: Callable[[list[Command]], list[Any]],
    slots: Sequence[int] | None = None,
) -> list[Any]:
    """Run a script once per call with a blocking client.

    Args:
        name: the name of the script.
        calls: for each call, the names of the slots and the arguments of the script.
        send: sends commands and returns one reply for each.
        slots: the number of slots of each call; None if each has one.

    Returns:
        One reply per call.
    """
    if not calls:
        return []
    steps = script_calls(name, calls, slots)
    commands = next(steps)
    while True:
        try:
            commands = steps.send(send(commands))
        except StopIteration as end:
            replies: list[Any] = end.value
            return replies


async def call_script(name: str, call: Command, send: Callable[..., Awaitable[Any]], slots: int = 1) -> Any:
    """Run a script once with an asynchronous client.

    Args:
        name: the name of the script.
        call: the names of the slots and the arguments of the script.
        send: sends a command and returns its reply.
        slots: the number of slots.

    Returns:
        The reply.
    """
    steps = script_calls(name, [call], [slots])
    (command,) = next(steps)
    while True:
        try:
            reply = await send(*command)
        except NoScriptError as error:
            reply = error
        try:
            (command,) = steps.send([reply])
        except StopIteration as end:
            return end.value[0]


def refusal_of(error: object) -> str:
    """Return the reason in an error reply."""
    return _PLACE_IN_SCRIPT.sub("", str(error).removeprefix(_REFUSED))


def is_emptied(error: object) -> bool:
    """Return whether an error reply means that the script emptied the slot, because it could not fill it."""
    return str(error).startswith(_REFUSED)


def _is_unknown(reply: object) -> bool:
    # redis-py has a class for this error; hiredis alone has only the text.
    return isinstance(reply, NoScriptError) or (
        isinstance(reply, ReplyError) and str(reply).startswith("NOSCRIPT")
    )
