"""Latency of a cached hit through the library, relative to the Redis client's own GET of the same slot.

One caller waits for each response; the two take turns in short runs in one process on uvloop.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final
from urllib.parse import unquote, urlsplit

import redis.asyncio

from benchmarks.percentiles import milliseconds
from cachesync import Outcome, Service, ServiceSettings
from local.service import credentials
from local.settings import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

_RUNS: Final = 20
_KEY: Final = "1"


async def measure(
    dsn: str, redis_url: str, bootstrap_servers: str, rounds: int, reads: int = 200
) -> list[dict[str, float]]:
    """Return, by round, the median latencies in microseconds and their ratio; row 1 must be cached in sb."""
    database, login = urlsplit(dsn), credentials("sb")
    settings = ServiceSettings.load(
        service="sb",
        cachesync_entities=REPOSITORY / "entities.toml",
        db_host=database.hostname,
        db_port=database.port,
        db_name=unquote(database.path.removeprefix("/")),
        db_username=login.username,
        db_password=login.password,
        redis_url=redis_url,
        kafka_bootstrap_servers=bootstrap_servers,
    )
    service = await Service.open(settings)
    client = redis.asyncio.Redis.from_url(redis_url)
    students = service.caches["student"]
    # On a busy machine, Redis can respond too late to the first calls.
    outcomes = [(await students.read(_KEY)).outcome for _ in range(_RUNS)]
    assert outcomes[-1] is Outcome.HIT, outcomes
    calls: dict[str, Callable[[], Awaitable[object]]] = {
        "get": lambda: client.get(f"sb:student:{_KEY}"),
        "read": lambda: students.read(_KEY),
    }
    results = []
    for _ in range(rounds):
        seconds: dict[str, list[float]] = {name: [] for name in calls}
        for _ in range(_RUNS):
            for name, call in calls.items():
                for _ in range(reads):
                    began = time.perf_counter()
                    await call()
                    seconds[name].append(time.perf_counter() - began)
        medians = {f"{name}_p50_us": 1000 * milliseconds(taken, 0.5) for name, taken in seconds.items()}
        results.append(medians | {"ratio": medians["read_p50_us"] / medians["get_p50_us"]})
    await service.close()
    await client.aclose()
    return results
