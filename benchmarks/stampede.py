"""500 simultaneous misses of one key in two processes: their database reads, and how long they take."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Final

import redis.asyncio

from benchmarks.http_client import Client
from benchmarks.percentiles import milliseconds
from local.ports import HOST

if TYPE_CHECKING:
    from collections.abc import Sequence

_KEY: Final = 1
_READS: Final = 500


async def measure(ports: Sequence[int], redis_url: str, rounds: int) -> list[dict[str, float]]:
    """Return, by round, the database reads, the refused reads, and the latencies.

    Args:
        ports: the ports of sb's processes.
        redis_url: sb's Redis.
        rounds: number of rounds.
    """
    clients = [Client(HOST, port) for port in ports]
    slots = redis.asyncio.Redis.from_url(redis_url)

    async def read(client: Client) -> tuple[float, bytes]:
        began = time.perf_counter()
        answer = await client.request("GET", f"/students/{_KEY}")
        # An overloaded service refuses a read without asking the cache or the database.
        return time.perf_counter() - began, answer.headers.get(b"x-cache", b"refused")

    results = []
    # The first round also opens the connections, and does not count.
    for _ in range(rounds + 1):
        await slots.delete(f"sb:student:{_KEY}")
        answers = await asyncio.gather(*(read(clients[number % len(clients)]) for number in range(_READS)))
        taken = [seconds for seconds, _ in answers]
        results.append(
            {
                # What was neither a hit nor refused was loaded from the database.
                "database_reads": float(sum(outcome in {b"MISS", b"BYPASS"} for _, outcome in answers)),
                "refused": float(sum(outcome == b"refused" for _, outcome in answers)),
                "p50_ms": milliseconds(taken, 0.5),
                "p99_ms": milliseconds(taken, 0.99),
            }
        )
    for client in clients:
        await client.close()
    await slots.aclose()
    return results[1:]
