"""The shipped scripts, run on the bytes of one slot by the Lua version of Redis, without Redis."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple

from lupa import lua51

from cachesync.slots.layout import EMPTY
from cachesync.slots.scripts import script
from tests.unit.protocol.faults import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Name = Literal["lease", "fill", "change", "release", "repair"]

_NAMES: Final[tuple[Name, ...]] = ("lease", "fill", "change", "release", "repair")
_KEY: Final = b"service:entity:1"
_VERSION: Final = slice(1, 20)
_FINGERPRINT: Final = slice(20, 28)
_TOKEN: Final = slice(20, None)


class Effect(NamedTuple):
    """The effect of a script.

    Attributes:
        slot: the slot afterwards.
        answer: its return value.
        faults: the violations, regardless of earlier steps.
    """

    slot: bytes
    answer: bytes | int | None
    faults: frozenset[Fault]


class _Redis:
    """The part of Redis that the scripts use: three commands on one key with a time to live."""

    slot = EMPTY
    written = False
    lasting = False

    def call(self, command: bytes, key: bytes, *arguments: bytes) -> bytes | bool:
        if key != _KEY:
            message = f"{key!r} is not the slot given to the script"
            raise AssertionError(message)
        match command, arguments:
            case b"GET", ():
                return self.slot or False
            case b"DEL", ():
                self._write(EMPTY, lasting=False)
            case b"SET", (slot, b"PX", milliseconds) if int(milliseconds) > 0:
                self._write(slot, lasting=False)
            case b"SET", (slot, b"KEEPTTL"):
                self._write(slot, lasting=not self.slot)
            case b"SET", (slot,):
                self._write(slot, lasting=True)
            case _:
                message = f"unexpected command: {command!r} {arguments!r}"
                raise AssertionError(message)
        return True

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
        self._cases: dict[tuple[Name, bytes, tuple[bytes, ...]], Effect] = {}

    def run(self, name: Name, slot: bytes, *arguments: bytes) -> Effect:
        """Return the effect of a script on a slot."""
        case = (name, slot, arguments)
        effect = self._cases.get(case)
        if effect is None:
            effect = self._cases[case] = self._run(name, slot, arguments)
        return effect

    def _run(self, name: Name, slot: bytes, arguments: tuple[bytes, ...]) -> Effect:
        redis = _Redis()
        redis.slot = slot
        names = self._lua.globals()
        names[b"redis"] = self._lua.table_from({b"call": redis.call})
        names[b"KEYS"] = self._lua.table(_KEY)
        names[b"ARGV"] = self._lua.table(*arguments)
        answer = self._compiled[name]()
        faults = frozenset(_faults(name, slot, arguments, redis)) if redis.written else frozenset()
        # Redis converts false to a nil reply.
        return Effect(redis.slot, None if answer is False else answer, faults)


def _faults(name: Name, before: bytes, arguments: tuple[bytes, ...], redis: _Redis) -> Iterator[Fault]:
    after = redis.slot
    token = arguments[3] if name == "change" else arguments[0]
    holder = _holder(before)
    if redis.lasting:
        yield Fault.LASTING
    if before[:1] == b"V" == after[:1] and after[_VERSION] < before[_VERSION]:
        yield Fault.BACKWARDS
    if holder not in (None, token) and _holder(after) != holder:
        yield Fault.STOLEN
    versioned = before[:1] == b"V" or holder not in (None, token)
    if name == "change" and versioned and arguments[0] <= before[_VERSION]:
        yield Fault.REWRITTEN
    if name == "lease":
        serves_value = before[:1] == b"V" and before[_FINGERPRINT] == arguments[2]
        if serves_value or (before[:1] == b"A" and arguments[3] == b"read"):
            yield Fault.TAKEN


def _holder(slot: bytes) -> bytes | None:
    return slot[_TOKEN] if slot[:1] == b"L" else None
