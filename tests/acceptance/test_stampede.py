"""Many simultaneous misses of one key."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING

import pytest
import redis as redis_client

from benchmarks.http_client import Client
from local.ports import HOST
from local.postgres import run_sql
from local.service import Service

if TYPE_CHECKING:
    from pathlib import Path

    from local.system import System

KEY = 3500
READS = 500
# The planner chooses between the two scans by the size of the table.
LOOKUPS = "SELECT seq_scan + idx_scan FROM pg_stat_user_tables WHERE relname = 'student'"


def lookups(system: System) -> int:
    """Return how many times PostgreSQL has looked up a student."""
    time.sleep(1.5)  # each session reports its statistics after a second
    return int(run_sql(system.dsn, LOOKUPS))


async def read_at_once(ports: list[int]) -> list[tuple[int, bytes]]:
    clients = [Client(HOST, port) for port in ports]
    answers = await asyncio.gather(
        *(clients[number % len(clients)].request("GET", f"/students/{KEY}") for number in range(READS))
    )
    for client in clients:
        await client.close()
    return [(answer.status, answer.headers[b"x-cache"]) for answer in answers]


def test_simultaneous_misses_in_two_processes_cost_one_database_read(system: System, tmp_path: Path) -> None:
    services = [
        Service(
            tmp_path / str(number),
            "sb",
            dsn=system.dsn,
            redis_url=system.redis_urls["sb"],
            bootstrap_servers=system.bootstrap_servers,
            # However busy the machine is, no read may be refused, or stop waiting and load for itself.
            environment=dict.fromkeys(("REDIS_TIMEOUT_MS", "LEASE_MS", "LEASE_WAIT_MS", "QUEUE_MS"), "30000"),
        )
        for number in range(2)
    ]
    run_sql(system.dsn, f"INSERT INTO student VALUES ({KEY}, 'Ann', 20) ON CONFLICT (id) DO NOTHING")
    with services[0], services[1], redis_client.Redis.from_url(system.redis_urls["sb"]) as slots:
        # Now and then, the live check reads some rows of the table at the same time.
        for _ in range(5):
            slots.delete(f"sb:student:{KEY}")
            before = lookups(system)
            answers = asyncio.run(read_at_once([service.port for service in services]))
            assert {status for status, _ in answers} == {200}
            assert [outcome for _, outcome in answers].count(b"MISS") == 1
            if lookups(system) == before + 1:
                break
        else:
            pytest.fail("the database was asked more than once each time")
