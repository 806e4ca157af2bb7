"""Run a retry as the DAG does, but kill the process with SIGKILL at one step."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import redis

from cachesync.dead_letters import retry
from cachesync.dead_letters.reader import DeadLetterReader
from cachesync.dead_letters.request import Request
from cachesync.dead_letters.service import DeadLetterService
from cachesync.entity import load_entities
from cachesync.slots.batch import Applier

if TYPE_CHECKING:
    from collections.abc import Callable

_STEPS: dict[str, tuple[Any, str]] = {
    "apply": (Applier, "apply"),
    "deliver": (retry, "deliver"),
    "record": (retry, "record"),
    "commit-offsets": (DeadLetterReader, "commit"),
}


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _killed(step: Callable[..., Any], when: str) -> Callable[..., Any]:
    def plain(*arguments: Any, **named: Any) -> Any:
        if when == "before":
            _die()
        step(*arguments, **named)
        _die()

    async def waiting(*arguments: Any, **named: Any) -> Any:
        if when == "before":
            _die()
        await step(*arguments, **named)
        _die()

    return waiting if asyncio.iscoroutinefunction(step) else plain


def main(step: str, when: str, *where: str) -> None:
    """Retry the letters of a service until the process is killed."""
    service, broker, redis_url, entities = where
    owner, name = _STEPS[step]
    setattr(owner, name, _killed(getattr(owner, name), when))
    dead_letters = DeadLetterService(
        os.environ["CACHESYNC_DSN"],
        {"bootstrap.servers": broker},
        {service: redis.Redis.from_url(redis_url)},
        load_entities(Path(entities)),
        "killed",
    )
    asyncio.run(dead_letters.carry_out(Request(services=(service,))))


if __name__ == "__main__":
    main(*sys.argv[1:])
