"""A system that is measured: a database, the caches that follow it, and its processes."""

from __future__ import annotations

import asyncio
import subprocess
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final
from urllib.parse import urlsplit

import redis

from local.postgres import client, run_sql
from local.redis import redis_server

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from local.process import Process

#: The rows of the load generators: keys from this one on.
FIRST: Final = 1_000_000
ROWS: Final = 16_000
#: The rows of bulk statements: keys from this one on.
BULK_FIRST: Final = 10_000_000
_WAIT_SECONDS: Final = 600.0
_SAMPLE: Final = 1000

#: The slots of a service, in the format of `redis-cli --pipe`; none of the payloads contains an apostrophe.
SLOTS: Final = """
COPY (
    SELECT
        'SET {service}:student:' || v.key
        || ' ''V' || lpad(v.version::text, 19, '0') || e.fingerprint || v.payload || ''''
    FROM cachesync.student AS v CROSS JOIN cachesync.entity AS e
    WHERE e.name = 'student' AND v.key BETWEEN {first} AND {last}
) TO STDOUT
"""
_PLAIN: Final = """
INSERT INTO student (id, name, age)
SELECT i, '0', 20 FROM generate_series({first}, {last}) AS i ON CONFLICT (id) DO NOTHING
"""


@dataclass(frozen=True)
class Target:
    """A running system.

    Attributes:
        dsn: the database, as its superuser.
        caches: the URL of each service's Redis.
        processes: its processes, without the load generator.
        captured: whether cachesync's triggers capture the changes of `student`.
    """

    dsn: str
    caches: Mapping[str, str]
    processes: Sequence[Process]
    captured: bool = True

    def insert(self, first: int, count: int) -> None:
        """Insert rows without any effect on the caches, and have every cache hold them."""
        last = first + count - 1
        if self.captured:
            # In one transaction, so that nobody sees the table without its triggers.
            triggers = run_sql(
                self.dsn,
                "SELECT string_agg(format('ALTER TABLE student ENABLE ALWAYS TRIGGER %I', tgname), ';')"
                " FROM pg_trigger"
                " WHERE tgrelid = 'student'::regclass AND NOT tgisinternal AND tgenabled = 'A'",
            )
            run_sql(
                self.dsn,
                "BEGIN; ALTER TABLE student DISABLE TRIGGER USER;"
                " INSERT INTO student (id, name, age, row_version)"
                " SELECT i, '0', 20, nextval('cachesync.row_version')"
                f" FROM generate_series({first}, {last}) AS i ON CONFLICT (id) DO NOTHING;"
                f" {triggers}; COMMIT; VACUUM ANALYZE student",
            )
            for service, url in self.caches.items():
                _cache(self.dsn, url, SLOTS.format(service=service, first=first, last=last))
        else:
            run_sql(self.dsn, f"{_PLAIN.format(first=first, last=last)}; VACUUM ANALYZE student")

    def unbounded(self) -> None:
        """Let the caches hold any number of rows, so that none is evicted during a measurement."""
        for url in self.caches.values():
            with redis.Redis.from_url(url) as cache:
                cache.config_set("maxmemory", 0)

    def keep_uncompressed(self) -> None:
        """Store long names as they are, so that PostgreSQL handles as many bytes as the caches."""
        run_sql(self.dsn, "ALTER TABLE student ALTER COLUMN name SET STORAGE EXTERNAL")

    async def until_all_hold(self, marker: bytes, first: int, count: int) -> float:
        """Wait until the slots of a range of rows contain a text in all caches, and return the time.

        A sample of the rows is looked at, spread over the range. The time is that of `time.perf_counter`.

        Raises:
            TimeoutError: they did not after ten minutes.
        """
        step = max(1, count // _SAMPLE)
        keys = range(first, first + count, step)
        clients = {service: redis.Redis.from_url(url) for service, url in self.caches.items()}
        deadline = time.monotonic() + _WAIT_SECONDS
        for service, cache in clients.items():
            left = [f"{service}:student:{key}" for key in keys]
            while left:
                if time.monotonic() > deadline:
                    message = f"{len(left)} of {len(keys)} sampled rows of {service} are behind"
                    raise TimeoutError(message)
                held = cache.mget(left)
                assert isinstance(held, list)
                left = [
                    key for key, slot in zip(left, held, strict=True) if slot is None or marker not in slot
                ]
                if left:
                    await asyncio.sleep(0.1)
            cache.close()
        return time.perf_counter()

    async def until_published(self) -> None:
        """Wait until no line of the change log waits for its publication."""
        statement = (
            "SELECT count(*) FROM (SELECT FROM cachesync.change_log WHERE published_at IS NULL LIMIT 1) AS l"
        )
        while self.captured and await asyncio.to_thread(run_sql, self.dsn, statement) != "0":
            await asyncio.sleep(0.5)


def _cache(dsn: str, url: str, statement: str) -> None:
    cli = f"{redis_server().removesuffix('server')}cli"
    psql, environment = client("psql", dsn, "-Xq", "-c", statement)
    with subprocess.Popen(psql, env=environment, stdout=subprocess.PIPE) as copying:
        port = str(urlsplit(url).port)
        subprocess.run([cli, "-p", port, "--pipe"], stdin=copying.stdout, capture_output=True, check=True)
    assert copying.returncode == 0
