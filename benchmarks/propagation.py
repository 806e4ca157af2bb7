"""Time from a write's acknowledgement to the entry in sb's cache: percentiles under open-loop load.

Writes are sent at a fixed rate, regardless of how long earlier ones take, to rows that sb has cached. Redis
reports each change of sb's slots as a keyspace notification. The time of a write is the time from its
acknowledgement to the notification after which the slot holds its version or a later one.

With `--psql`, the writes are SQL statements that bypass the services; the acknowledgement is the commit.

`python -m benchmarks.propagation` starts the whole system, measures, and stops it. With `--running`, it uses
the system that `make demo` or `make up` has started.
"""

from __future__ import annotations

import asyncio
import random
import time
from contextlib import nullcontext
from http import HTTPStatus
from math import inf
from typing import Annotated

import asyncpg
import redis.asyncio
import typer
import uvloop
from rich.console import Console

from benchmarks.http_client import Client
from benchmarks.percentiles import in_milliseconds
from local.settings import Settings
from local.system import System

ROWS = 2000
_LAG_LIMIT_SECONDS = 30.0


class Watch:
    """Records when versions appear in sb's slots.

    Attributes:
        lags: the time each expected version took to appear, in seconds.
    """

    def __init__(self, url: str) -> None:
        self._client = redis.asyncio.Redis.from_url(url, protocol=2)
        self._awaited: dict[str, list[tuple[int, float]]] = {}
        self._seen: dict[str, int] = {}
        self.lags: list[float] = []

    async def start(self) -> asyncio.Task[None]:
        """Subscribe to the notifications and return the task that processes them."""
        await self._client.config_set("notify-keyspace-events", "K$g")
        pubsub = self._client.pubsub()
        await pubsub.psubscribe("__keyspace@*__:sb:student:*")
        return asyncio.create_task(self._listen(pubsub))

    def expect(self, key: str, version: int, acknowledged: float) -> None:
        """Record that a write has been acknowledged at the given time."""
        if self._seen.get(key, 0) >= version:
            # The version appeared before the acknowledgement.
            self.lags.append(0.0)
            return
        self._awaited.setdefault(key, []).append((version, acknowledged))

    @property
    def missing(self) -> int:
        """The number of expected versions that have not appeared yet."""
        return sum(map(len, self._awaited.values()))

    async def _listen(self, pubsub: redis.asyncio.client.PubSub) -> None:
        async for message in pubsub.listen():
            if message["type"] != "pmessage":
                continue
            now = time.perf_counter()
            key = message["channel"].rpartition(b":")[2].decode()
            version = self._seen[key] = await self._version(key)
            self._settle(key, version, now)

    def _settle(self, key: str, version: int, appeared: float) -> None:
        """Record the lags of the expected versions up to this one, which appeared at the given time."""
        waiting = self._awaited.pop(key, [])
        self.lags += [max(0.0, appeared - when) for expected, when in waiting if expected <= version]
        later = [one for one in waiting if one[0] > version]
        if later:
            self._awaited[key] = later

    async def _version(self, key: str) -> int:
        """Return the version of the value that the slot holds, or 0 if it holds none."""
        slot = await self._client.getrange(f"sb:student:{key}", 0, 19)
        assert isinstance(slot, bytes)
        return int(slot[1:]) if slot.startswith(b"V") else 0

    async def sweep(self) -> None:
        """Find the versions that appeared before they were expected; their lag is 0."""
        for key in list(self._awaited):
            self._settle(key, await self._version(key), -inf)


class Service:
    """Writes through sa."""

    def __init__(self, settings: Settings) -> None:
        self._client = Client("127.0.0.1", settings.sa_port)

    async def write(self, key: int) -> int | None:
        """Change a row; return its new version, or None if the write failed."""
        try:
            answer = await self._client.request(
                "PUT", f"/students/{key}", b'{"name":"Ann","age":%d}' % random.randrange(99)
            )
        except OSError:  # more concurrent connections than the server accepts
            return None
        return int(answer.headers[b"etag"].strip(b'"')) if answer.status == HTTPStatus.OK else None

    async def close(self) -> None:
        """Close the connections."""
        await self._client.close()


class Psql:
    """Writes in SQL, in sessions that do not identify themselves as a service."""

    def __init__(self, pool: asyncpg.Pool) -> None:
        self._pool = pool

    async def write(self, key: int) -> int | None:
        """Change a row; return its new version."""
        statement = "UPDATE student SET age = $2 WHERE id = $1 RETURNING row_version"
        version: int | None = await self._pool.fetchval(statement, key, random.randrange(99))
        return version

    async def close(self) -> None:
        """Close the connections."""
        await self._pool.close()


async def prepare(settings: Settings) -> None:
    """Create the rows and have sb cache them."""
    sa, sb = Client("127.0.0.1", settings.sa_port), Client("127.0.0.1", settings.sb_port)
    for key in range(ROWS):
        body = b'{"id":%d,"name":"before","age":20}' % key
        answer = await sa.request("PUT", f"/students/{key}", body)
        assert answer.status in {HTTPStatus.OK, HTTPStatus.CREATED}, answer
        await sb.request("GET", f"/students/{key}")
        await sb.request("GET", f"/students/{key}")
    await sa.close()
    await sb.close()


async def measure(watch: Watch, writer: Service | Psql, rate: int, seconds: int) -> str:
    """Write at a fixed rate and return the percentiles as text."""
    acknowledged: list[float] = []
    failures = 0

    async def write(due: float) -> None:
        nonlocal failures
        key = random.randrange(ROWS)
        version = await writer.write(key)
        if version is None:
            failures += 1
            return
        now = time.perf_counter()
        acknowledged.append(now - due)
        watch.expect(str(key), version, now)

    watch.lags.clear()
    await _open_loop(write, rate, seconds)
    deadline = time.perf_counter() + _LAG_LIMIT_SECONDS
    while watch.missing and time.perf_counter() < deadline:
        await asyncio.sleep(0.2)
        await watch.sweep()
    return (
        f"{rate} writes/s for {seconds} s, {failures} failed, {watch.missing} never arrived\n"
        f"  acknowledged after  {in_milliseconds(acknowledged)}\n"
        f"  then in sb's cache  {in_milliseconds(watch.lags)}"
    )


async def run(system: System, settings: Settings, rates: list[int], seconds: int, *, psql: bool) -> None:
    """Measure at each rate, and print the percentiles."""
    console = Console()
    await prepare(settings)
    writer = Psql(await asyncpg.create_pool(system.dsn)) if psql else Service(settings)
    watch = Watch(system.redis_urls["sb"])
    listening = await watch.start()
    for rate in rates:
        await measure(watch, writer, rate, 3)  # warms up
        await asyncio.sleep(1)
        console.print(await measure(watch, writer, rate, seconds), soft_wrap=True)
    listening.cancel()
    await writer.close()


async def _open_loop(write: object, rate: int, seconds: int) -> None:
    """Start `rate` writes per second on schedule, regardless of how long earlier ones take."""
    assert callable(write)
    begin = time.perf_counter()
    tasks = []
    for number in range(rate * seconds):
        due = begin + number / rate
        delay = due - time.perf_counter()
        if delay > 0:
            await asyncio.sleep(delay)
        tasks.append(asyncio.create_task(write(due)))
    await asyncio.gather(*tasks)


def main(
    rates: Annotated[list[int] | None, typer.Option("--rate", help="Writes per second.")] = None,
    seconds: int = 20,
    *,
    psql: Annotated[bool, typer.Option("--psql", help="Write in SQL, bypassing the services.")] = False,
    running: Annotated[bool, typer.Option("--running", help="Use the system that is running.")] = False,
) -> None:
    """Measure how long a change takes to reach another service's cache after its acknowledgement."""
    settings = Settings()
    system = System(settings, Console())
    with nullcontext() if running else system:
        uvloop.run(run(system, settings, rates or [100, 1000], seconds, psql=psql))


if __name__ == "__main__":
    typer.run(main)
