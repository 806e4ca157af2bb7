"""The services in examples/, run as real processes: their five endpoints, and their lines in the README."""

from __future__ import annotations

import asyncio
import re
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import httpx
import psycopg
import pytest
import redis as redis_client

from cachesync import load_entities
from cachesync.install.installer import install
from local.ports import accepts, free_port
from local.postgres import address, create_role
from local.silent import Silent
from tests.example_services import EXAMPLES, PROGRAMS, command, environment

if TYPE_CHECKING:
    from collections.abc import Iterator

    from local.postgres import Postgres
    from local.redis import Redis

REPOSITORY = Path(__file__).parents[3]


def own_environment(dsn: str, redis: Redis) -> dict[str, str]:
    own = address(dsn, database=dsn.rpartition("/")[2], user="shop", password="shop-password")
    return environment(own, f"{redis.url}?socket_timeout=10")


@contextmanager
def running(kind: str, variables: dict[str, str]) -> Iterator[httpx.Client]:
    port = free_port()
    process = subprocess.Popen(
        command(kind, port),
        cwd=EXAMPLES / kind,
        env=variables,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        while not accepts(port):
            assert process.poll() is None, process.communicate()[1]
            time.sleep(0.05)
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=30) as client:
            yield client
    finally:
        process.terminate()
        errors = process.communicate(timeout=60)[1]
    assert errors == ""
    assert process.returncode in {0, -15}


@pytest.fixture(params=PROGRAMS)
def service(request: pytest.FixtureRequest, postgres: Postgres, redis_sa: Redis) -> Iterator[httpx.Client]:
    """The address of a service, in whose database there is one customer."""
    kind: str = request.param
    name = f"example_{kind}"
    dsn = postgres.create_database(name)
    create_role(dsn, "shop", "shop-password")
    with psycopg.connect(dsn, autocommit=True) as owner:
        if kind == "django":
            # The tables are made by the service's own migrations, before `cachesync install`.
            owner.execute(b"GRANT CREATE ON SCHEMA public TO shop")
            subprocess.run(
                [sys.executable, "manage.py", "migrate", "--verbosity", "0"],
                cwd=EXAMPLES / kind,
                env=own_environment(dsn, redis_sa),
                check=True,
            )
            owner.execute(
                b"ALTER TABLE customer OWNER TO CURRENT_USER; ALTER TABLE purchase OWNER TO CURRENT_USER"
            )
        else:
            owner.execute((EXAMPLES / kind / "schema.sql").read_bytes())

        async def installed() -> None:
            connection = await asyncpg.connect(dsn)
            await install(connection, load_entities(EXAMPLES / kind / "entities.toml"), Silent())
            await connection.close()

        asyncio.run(installed())
        owner.execute(
            b"GRANT cachesync_service TO shop; GRANT USAGE ON ALL SEQUENCES IN SCHEMA public TO shop"
        )
        owner.execute(b"INSERT INTO customer (id, name, spent) VALUES (7, 'Ann', 0)")
        with running(kind, own_environment(dsn, redis_sa)) as client:
            yield client
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")
    with redis_client.Redis.from_url(redis_sa.url) as slots:
        slots.flushall()


def test_the_five_endpoints_read_their_own_writes(service: httpx.Client, redis_sa: Redis) -> None:
    assert service.get("/purchases").json() == []
    keys = []
    for number in range(1, 21):
        created = service.post("/purchases", json={"customer_id": 7, "amount": 10, "note": f"{number}"})
        assert created.status_code == 201
        keys.append(created.json()["id"])
        # The transaction has changed two tables, and another process of the service may answer.
        read = service.get(f"/purchases/{keys[-1]}").json()
        assert (read["note"], float(read["customer"]["spent"])) == (f"{number}", 10 * number)
    assert [one["id"] for one in service.get("/purchases").json()] == keys
    assert service.patch(f"/purchases/{keys[0]}", json={"note": "a gift"}).status_code == 204
    assert service.get(f"/purchases/{keys[0]}").json()["note"] == "a gift"
    assert service.delete(f"/purchases/{keys[1]}").status_code == 204
    for answer in (
        service.get(f"/purchases/{keys[1]}"),
        service.patch(f"/purchases/{keys[1]}", json={"note": ""}),
        service.delete(f"/purchases/{keys[1]}"),
    ):
        assert answer.status_code == 404
    assert [one["id"] for one in service.get("/purchases").json()] == [keys[0], *keys[2:]]
    with redis_client.Redis.from_url(redis_sa.url) as slots:
        (name,) = slots.keys(f"*:purchase:{keys[0]}")
        assert slots.getrange(name, 0, 0) == b"V"


def unindented(code: str) -> str:
    return "\n".join(line.strip() for line in code.splitlines())


@pytest.mark.parametrize("kind", PROGRAMS)
def test_the_lines_in_the_readme_are_those_of_the_example(kind: str) -> None:
    readme = (REPOSITORY / "README.md").read_text(encoding="utf-8")
    shown = re.search(rf"\(examples/{kind}/\).*?^```python\n(.*?)^```", readme, re.MULTILINE | re.DOTALL)
    assert shown is not None
    code = [unindented(file.read_text(encoding="utf-8")) for file in (EXAMPLES / kind).rglob("*.py")]
    parts = unindented(shown[1].strip()).split("\n\n")
    missing = [part for part in parts if not any(part.strip() in text for text in code)]
    assert not missing
    assert len([line for line in shown[1].splitlines() if line]) <= 10
