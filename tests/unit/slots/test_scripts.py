"""Running the Lua scripts by digest, and by source if Redis does not know the digest."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hiredis import ReplyError
from redis.exceptions import NoScriptError, ResponseError

from cachesync.slots.scripts import run_script, script, script_calls

if TYPE_CHECKING:
    from cachesync.slots.scripts import Command

CALLS: list[Command] = [("slot:1", "a", 1), ("slot:2", b"b", 2), ("slot:3", "c", 3)]


class Redis:
    """Records the commands, and replies to each script call with its slot's name or the given reply."""

    def __init__(self, **by_digest: object) -> None:
        self.sent: list[list[Command]] = []
        self._by_digest = {name.replace("_", ":"): reply for name, reply in by_digest.items()}

    def send(self, commands: list[Command]) -> list[Any]:
        self.sent.append(commands)
        return [self._reply(str(command[0]), str(command[3])) for command in commands]

    def _reply(self, name: str, slot: str) -> object:
        return self._by_digest.get(slot, slot) if name == "EVALSHA" else f"{slot} again"


def by_digest(*calls: Command) -> list[Command]:
    return [("EVALSHA", script("change").sha, 1, *call) for call in calls]


def by_source(*calls: Command) -> list[Command]:
    return [("EVAL", script("change").source, 1, *call) for call in calls]


def test_known_scripts_are_called_by_digest_alone() -> None:
    redis = Redis()
    assert run_script("change", CALLS, redis.send) == ["slot:1", "slot:2", "slot:3"]
    assert redis.sent == [by_digest(*CALLS)]


@pytest.mark.parametrize(
    "unknown",
    [
        NoScriptError("No matching script. Please use EVAL."),
        ReplyError("NOSCRIPT No matching script. Please use EVAL."),
    ],
    ids=["redis-py", "hiredis"],
)
def test_only_calls_of_unknown_scripts_are_repeated_by_source(unknown: Exception) -> None:
    redis = Redis(slot_1=unknown, slot_3=unknown)
    assert run_script("change", CALLS, redis.send) == ["slot:1 again", "slot:2", "slot:3 again"]
    assert redis.sent == [by_digest(*CALLS), by_source(CALLS[0], CALLS[2])]


@pytest.mark.parametrize(
    "error",
    [
        ResponseError("WRONGTYPE Operation against a key holding the wrong kind of value"),
        ReplyError("WRONGTYPE Operation against a key holding the wrong kind of value"),
        ReplyError("ERR in a script: NOSCRIPT"),
        ConnectionError("NOSCRIPT"),
    ],
    ids=["redis-py", "hiredis", "text elsewhere", "other class"],
)
def test_other_errors_are_returned_in_place(error: Exception) -> None:
    redis = Redis(slot_2=error)
    assert run_script("change", CALLS, redis.send) == ["slot:1", error, "slot:3"]
    assert redis.sent == [by_digest(*CALLS)]


def test_error_of_a_repeated_call_is_returned() -> None:
    def send(commands: list[Command]) -> list[Any]:
        return [unknown if command[0] == "EVALSHA" else wrong for command in commands]

    unknown, wrong = NoScriptError("No matching script."), ResponseError("WRONGTYPE")
    assert run_script("change", CALLS[:1], send) == [wrong]


def test_nothing_is_sent_for_no_calls() -> None:
    def send(commands: list[Command]) -> list[Any]:
        pytest.fail(f"sent {commands}")

    assert run_script("change", [], send) == []


def test_script_calls_yields_commands_and_returns_the_replies() -> None:
    steps = script_calls("change", CALLS)
    assert next(steps) == by_digest(*CALLS)
    assert steps.send(["first", NoScriptError("No matching script."), "third"]) == by_source(CALLS[1])
    with pytest.raises(StopIteration) as end:
        steps.send(["second"])
    assert end.value.value == ["first", "second", "third"]
