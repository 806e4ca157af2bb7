"""Fixtures of the acceptance tests: services on their own database, and Airflow's REST API."""

from __future__ import annotations

import asyncio
import json
import secrets
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import httpx
import pytest
import redis

from cachesync.entity import load_entities
from cachesync.install.installer import install
from cachesync.kafka.topics import create_topics
from local.postgres import create_role
from local.service import Service
from local.silent import Silent

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from local.kafka import Kafka
    from local.postgres import Postgres
    from local.redis import Redis
    from local.system import System

REPOSITORY = Path(__file__).parents[2]
PASSWORD = "not-the-one-of-the-env-file"


@pytest.fixture(scope="session")
def entities_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample's entities, and three more for `every_type.sql`."""
    file = tmp_path_factory.mktemp("entities") / "entities.toml"
    sections = [(REPOSITORY / "entities.toml").read_text(encoding="utf-8")]
    parts = ["code", "amount", "fee", "day", "clock", "moment", "mood", "flag"]
    for name, key in (("every_type", "id"), ("every_key", parts), ("word", "word")):
        path = f"/{name.replace('_', '-')}s"
        sections.append(
            f'[{name}]\ntable = "{name}"\nkey = {json.dumps(key)}\n'
            f'ttl = "1h"\nabsent_ttl = "30s"\npath = "{path}"\n'
        )
    file.write_text("\n".join(sections), encoding="utf-8")
    return file


@pytest.fixture(scope="session")
def database(postgres: Postgres, entities_file: Path) -> Iterator[str]:
    """The DSN of a database with the entities' tables, with the product installed."""
    name = f"services_{secrets.token_hex(4)}"
    dsn = postgres.create_database(name)

    async def prepare() -> None:
        connection = await asyncpg.connect(dsn)
        for script in (REPOSITORY / "local" / "sample.sql", Path(__file__).with_name("every_type.sql")):
            await connection.execute(script.read_text(encoding="utf-8"))
        await install(connection, load_entities(entities_file), Silent())
        await connection.close()

    asyncio.run(prepare())
    for service in ("sa", "sb"):
        create_role(dsn, f"{name}_{service}", PASSWORD)
        postgres.sql(f"GRANT cachesync_service TO {name}_{service}", name)
    yield dsn
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")
    postgres.sql(f"DROP ROLE {name}_sa, {name}_sb", "postgres")


@pytest.fixture(scope="session")
def service_process(  # noqa: PLR0917 - fixtures, most of them servers
    database: str,
    redis_sa: Redis,
    redis_sb: Redis,
    kafka: Kafka,
    entities_file: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., AbstractContextManager[Service]]:
    """Runs a service under gunicorn, with the given settings changed.

    One of another name gets the login and the Redis of a service like which it is.
    """
    create_topics(
        {"bootstrap.servers": kafka.bootstrap_servers},
        load_entities(entities_file).values(),
        partitions=6,
        replication=1,
    )
    urls = {"sa": redis_sa.url, "sb": redis_sb.url}

    @contextmanager
    def run(name: str, *, like: str | None = None, **changed: str) -> Iterator[Service]:
        like = like or name
        environment = {
            "DB_USERNAME": f"{database.rpartition('/')[2]}_{like}",
            "DB_PASSWORD": PASSWORD,
            "CACHESYNC_ENTITIES": str(entities_file),
            **changed,
        }
        with Service(
            tmp_path_factory.mktemp(name),
            name,
            dsn=database,
            redis_url=urls[like],
            bootstrap_servers=kafka.bootstrap_servers,
            environment=environment,
        ) as running:
            yield running

    return run


@pytest.fixture(scope="session")
def sa(service_process: Callable[..., AbstractContextManager[Service]]) -> Iterator[Service]:
    with service_process("sa") as running:
        yield running


@pytest.fixture(scope="session")
def sb(service_process: Callable[..., AbstractContextManager[Service]]) -> Iterator[Service]:
    with service_process("sb", WORKERS="2") as running:
        yield running


@pytest.fixture(scope="session")
def log_in(system: System) -> Iterator[Callable[[str, str], httpx.Client]]:
    """Returns a client of Airflow's REST API that is logged in with this user name and password."""
    with ExitStack() as clients:

        def log_in(username: str, password: str) -> httpx.Client:
            client = clients.enter_context(httpx.Client(base_url=system.airflow.url, timeout=30))
            login = client.post("/auth/token", json={"username": username, "password": password})
            client.headers["Authorization"] = f"Bearer {login.json()['access_token']}"
            return client

        yield log_in


@pytest.fixture(scope="session")
def api(system: System, log_in: Callable[[str, str], httpx.Client]) -> httpx.Client:
    """Airflow's REST API, as the administrator."""
    return log_in(system.airflow.username, system.airflow.password)


@pytest.fixture(scope="session")
def dag(system: System, log_in: Callable[[str, str], httpx.Client]) -> httpx.Client:
    """The REST API of the DAG `reconcile`, as the administrator, once its scheduled run has ended."""
    client = log_in(system.airflow.username, system.airflow.password)
    client.base_url = client.base_url.join("/api/v2/dags/reconcile")
    # That run can begin soon after the start, and would repair the drift that a test's own run must find.
    idle_since = time.monotonic()
    while time.monotonic() - idle_since < 3:
        if client.get("/dagRuns", params={"state": ["queued", "running"]}).json()["total_entries"]:
            idle_since = time.monotonic()
        time.sleep(0.5)
    return client


@pytest.fixture
def slots(system: System) -> Iterator[redis.Redis]:
    """A client of sb's Redis."""
    with redis.Redis.from_url(system.redis_urls["sb"]) as client:
        yield client
