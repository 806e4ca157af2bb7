"""A load of writes on the whole system, and comparisons of its caches with the published changes."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

import httpx
import redis as redis_client

from local.postgres import run_sql

if TYPE_CHECKING:
    from collections.abc import Iterator

    from local.system import System

KEYS = range(1000, 1040)


class Load:
    """About fifty writes per second through sa, to rows that sb keeps reading.

    Attributes:
        acknowledged: the newest acknowledged version of each key.
        refused: number of writes that were not acknowledged.
    """

    def __init__(self, system: System) -> None:
        self._system = system
        self._stopping = threading.Event()
        self.acknowledged: dict[int, int] = {}
        self.refused = 0
        self._threads = [threading.Thread(target=self._write), threading.Thread(target=self._read)]

    @contextmanager
    def running(self) -> Iterator[Load]:
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stopping.set()
            for thread in self._threads:
                thread.join()

    def _write(self) -> None:
        number = 0
        with httpx.Client(base_url=self._system.services["sa"].url, timeout=20) as sa:
            while not self._stopping.wait(0.02):
                key = KEYS[number % len(KEYS)]
                number += 1
                try:
                    answer = sa.put(f"/students/{key}", json={"name": f"n{number}", "age": number % 100})
                except httpx.TransportError:
                    self.refused += 1
                    continue
                if answer.is_success:
                    self.acknowledged[key] = int(answer.headers["etag"].strip('"'))
                else:
                    self.refused += 1

    def _read(self) -> None:
        number = 0
        with httpx.Client(base_url=self._system.services["sb"].url, timeout=20) as sb:
            while not self._stopping.wait(0.02):
                number += 1
                try:
                    sb.get(f"/students/{KEYS[number % len(KEYS)]}")
                except httpx.TransportError:
                    continue


def published(system: System) -> dict[str, int]:
    """Return the newest published version of each key that the load writes."""
    lines = run_sql(
        system.dsn,
        "SELECT key, max(version) FROM cachesync.change_log "
        f"WHERE entity = 'student' AND key::bigint BETWEEN {KEYS[0]} AND {KEYS[-1]} "
        "AND published_at IS NOT NULL GROUP BY key",
    )
    return {key: int(version) for key, version in (line.split("|") for line in lines.splitlines())}


def behind(system: System, service: str) -> dict[str, tuple[int, int]]:
    """Return the keys whose cached value is older than published, with the held and the newest version."""
    with redis_client.Redis.from_url(system.redis_urls[service]) as client:
        found = {}
        for key, newest in published(system).items():
            slot = client.get(f"{service}:student:{key}") or b""
            assert isinstance(slot, bytes)
            if slot.startswith(b"V") and int(slot[1:20]) < newest:
                found[key] = (int(slot[1:20]), newest)
        return found
