"""The shipped scripts, run on the bytes of one slot by the Lua version of Redis, without Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from lupa import lua51

from cachesync.slots.layout import ABSENT, EMPTY, is_lease
from cachesync.slots.scripts import script
from cachesync.value import is_value
from tests.unit.protocol.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Name = Literal["lease", "fill", "change", "changes", "release", "repair", "advance"]

NO_STRING: Final = b"(a list)"
"""The content of a key of another Redis type."""

BLANK: Final = b"(blank)"
"""The content of a key with an empty string, which is not a key that does not exist."""

LASTING_LEASE: Final = b"L0000000000000000000lasting"
"""A lease that never ends."""

_NAMES: Final[tuple[Name, ...]] = ("lease", "fill", "change", "changes", "release", "repair", "advance")
_KEY: Final = b"service:entity:1"
_VERSION: Final = slice(1, 20)
_FINGERPRINT: Final = slice(20, 28)
_TOKEN: Final = slice(20, None)


class Effect(NamedTuple):
    """The effect of a script.

    Attributes:
        slot: the slot afterwards.
        answer: its return value; an error if Redis refused to store something.
        faults: the violations, regardless of earlier steps.
    """

    slot: bytes
    answer: bytes | int | RefusedError | None
    faults: frozenset[Fault]


class RefusedError(Exception):
    """The error reply of a script that emptied a slot, because Redis refused to store something."""


class _Redis:
    """The part of Redis that the scripts use: four commands on one key with a time to live.

    It can refuse to store anything, as a full Redis does.
    """

    slot = EMPTY
    written = False
    lasting = False
    refuses = False

    def __init__(self, lua: Any) -> None:
        self._lua = lua

    def pcall(self, command: bytes, key: bytes, *arguments: bytes) -> Any:
        if command == b"SET" and self.refuses:
            return self._lua.table_from({b"err": b"OOM"})
        if command == b"GET" and self.slot == NO_STRING:
            return self._lua.table_from({b"err": b"WRONGTYPE"})
        return self.call(command, key, *arguments)

    def error_reply(self, message: bytes) -> Any:
        return self._lua.table_from({b"err": message})

    def call(self, command: bytes, key: bytes, *arguments: bytes) -> Any:
        if key != _KEY:
            message = f"{key!r} is not the slot given to the script"
            raise AssertionError(message)
        match command, arguments:
            case b"GET", ():
                return self.slot.removeprefix(BLANK) if self.slot else False
            case b"PTTL", ():
                return -1 if self.slot == LASTING_LEASE else 1000
            case b"DEL", ():
                self._write(EMPTY, lasting=False)
                return 1
            case b"SET", (slot, b"PX", milliseconds) if int(milliseconds) > 0:
                self._write(slot, lasting=False)
            case b"SET", (slot, b"KEEPTTL"):
                self._write(slot, lasting=not self.slot)
            case b"SET", (slot,):
                self._write(slot, lasting=True)
            case _:
                message = f"unexpected command: {command!r} {arguments!r}"
                raise AssertionError(message)
        return self._lua.table_from({b"ok": b"OK"})

    def _write(self, slot: bytes, *, lasting: bool) -> None:
        self.slot = slot
        self.written = True
        self.lasting = lasting


class Scripts:
    """The shipped scripts, some of them edited if requested.

    The effect of a script depends only on the slot and its arguments, so each case runs only once.
    """

    def __init__(self, edited: Mapping[Name, str] | None = None) -> None:
        sources = {name: script(name).source for name in _NAMES} | dict(edited or {})
        self._lua: Any = lua51.LuaRuntime(encoding=None, register_eval=False, register_builtins=False)
        self._compiled = {name: self._lua.compile(source.encode()) for name, source in sources.items()}
        self._cases: dict[tuple[Name, bytes, tuple[bytes, ...], bool], Effect] = {}

    def run(self, name: Name, slot: bytes, *arguments: bytes, refuses: bool = False) -> Effect:
        """Return the effect of a script on a slot.

        Args:
            name: the name of the script.
            slot: the slot.
            arguments: the arguments of the script.
            refuses: whether Redis refuses to store anything.
        """
        case = (name, slot, arguments, refuses)
        effect = self._cases.get(case)
        if effect is None:
            effect = self._cases[case] = self._run(*case)
        return effect

    def _run(self, name: Name, slot: bytes, arguments: tuple[bytes, ...], refuses: bool) -> Effect:  # noqa: FBT001
        redis = _Redis(self._lua)
        redis.slot = slot
        redis.refuses = refuses
        names = self._lua.globals()
        functions = {b"call": redis.call, b"pcall": redis.pcall, b"error_reply": redis.error_reply}
        names[b"redis"] = self._lua.table_from(functions)
        names[b"KEYS"] = self._lua.table(_KEY)
        names[b"ARGV"] = self._lua.table(*arguments)
        answer = self._compiled[name]()
        faults = frozenset(_faults(name, slot, arguments, redis)) if redis.written else frozenset()
        if name == "changes":
            refused, effect = answer[1], answer[2]
            return Effect(redis.slot, RefusedError(refused) if refused else effect, faults)
        if lua51.lua_type(answer) == "table":
            return Effect(redis.slot, RefusedError(answer[b"err"]), faults)
        # Redis converts false to a nil reply.
        return Effect(redis.slot, None if answer is False else answer, faults)


def _faults(name: Name, before: bytes, arguments: tuple[bytes, ...], redis: _Redis) -> Iterator[Fault]:
    after = redis.slot
    # Events and advances have no token: their first argument is a lifetime.
    token = arguments[3] if name == "change" else arguments[0]
    holder = _holder(before)
    if redis.lasting:
        yield Fault.LASTING
    if is_value(before) and is_value(after) and after[_VERSION] < before[_VERSION]:
        yield Fault.BACKWARDS
    if holder not in (None, token) and _holder(after) != holder and not redis.refuses:
        yield Fault.STOLEN
    versioned = is_value(before) or holder not in (None, token)
    if name == "change" and versioned and arguments[0] <= before[_VERSION]:
        yield Fault.REWRITTEN
    if name == "changes" and versioned and arguments[1][_VERSION] <= before[_VERSION]:
        yield Fault.REWRITTEN
    if name == "lease":
        is_refuted = before in arguments[4:]
        serves_value = is_value(before) and before[_FINGERPRINT] == arguments[2] and not is_refuted
        if serves_value or (before == ABSENT and arguments[3] == b"read"):
            yield Fault.TAKEN


def _holder(slot: bytes) -> bytes | None:
    return slot[_TOKEN] if is_lease(slot) and slot != LASTING_LEASE else None
