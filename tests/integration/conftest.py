"""A database with the sample tables installed, and services that use it, in this process."""

from __future__ import annotations

import asyncio
import secrets
from contextlib import ExitStack, asynccontextmanager, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg
import psycopg
import pytest
import redis

from cachesync.entity import load_entities
from cachesync.install.installer import install
from cachesync.kafka.topics import create_topics
from cachesync.service.service import Service
from cachesync.service.settings import ServiceSettings
from cachesync.slots.clients import blocking_client
from local.postgres import address, create_role
from local.silent import Silent
from tests.integration.post import Post
from tests.integration.redis_cluster import RedisCluster

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    from cachesync.entity import Entity
    from cachesync.slots.clients import BlockingRedis
    from local.kafka import Kafka
    from local.postgres import Postgres
    from local.redis import Redis

REPOSITORY = Path(__file__).parents[2]
ENTITIES_FILE = REPOSITORY / "entities.toml"
SAMPLE = REPOSITORY / "local" / "sample.sql"


@pytest.fixture(scope="session")
def entities() -> dict[str, Entity]:
    return load_entities(ENTITIES_FILE)


@pytest.fixture(scope="session")
def administrator(postgres: Postgres) -> Iterator[psycopg.Connection]:
    """A connection of the superuser that makes and drops databases."""
    with psycopg.connect(postgres.dsn_of("postgres"), autocommit=True) as connection:
        yield connection


@contextmanager
def copied_database(postgres: Postgres, administrator: psycopg.Connection, template: str) -> Iterator[str]:
    """Yield the DSN of a copy of a database.

    Nearly every test makes one. One connection for all is faster than new ones or `psql`, and without fsync,
    a copy of the files is faster than one through the WAL.
    """
    name = f"{template}_{secrets.token_hex(4)}"
    # PostgreSQL 14 knows no other strategy.
    strategy = "STRATEGY file_copy" if postgres.major >= 15 else ""
    administrator.execute(f"CREATE DATABASE {name} TEMPLATE {template} {strategy}")
    yield postgres.dsn_of(name)
    administrator.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def database(postgres: Postgres, administrator: psycopg.Connection) -> Iterator[str]:
    """The DSN of a new, empty database."""
    with copied_database(postgres, administrator, "template0") as dsn:
        yield dsn


@contextmanager
def installed_database(postgres: Postgres, tables: str, entities: dict[str, Entity]) -> Iterator[str]:
    """Yield the name of a new database with tables and the installed database side, to copy."""
    name = f"template_{secrets.token_hex(4)}"
    dsn = postgres.create_database(name)

    async def prepare() -> None:
        connection = await asyncpg.connect(dsn)
        await connection.execute(tables)
        await install(connection, entities, Silent())
        await connection.close()

    asyncio.run(prepare())
    yield name
    postgres.sql(f"DROP DATABASE {name} WITH (FORCE)", "postgres")


@pytest.fixture(scope="module")
def sample_template(postgres: Postgres, entities: dict[str, Entity]) -> Iterator[str]:
    """The name of a database with the sample tables and the installed database side, to copy.

    Not one per session: tests of the installation need the roles to be absent.
    """
    with installed_database(postgres, SAMPLE.read_text(encoding="utf-8"), entities) as name:
        for service in ("sa", "sb"):
            create_role(postgres.dsn_of(name), service, f"{service}-password")
            postgres.sql(f"GRANT cachesync_service TO {service}", name)
        create_role(postgres.dsn_of(name), "background-worker", "password")
        postgres.sql('GRANT cachesync_worker TO "background-worker"', name)
        yield name


@pytest.fixture
def sample(postgres: Postgres, administrator: psycopg.Connection, sample_template: str) -> Iterator[str]:
    """The DSN of a new database with the sample tables and the installed database side."""
    with copied_database(postgres, administrator, sample_template) as dsn:
        yield dsn


@pytest.fixture
def sa_dsn(sample: str) -> str:
    """The DSN of the sample database for the service sa."""
    return address(sample, database=sample.rpartition("/")[2], user="sa", password="sa-password")


@pytest.fixture
async def admin(sample: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the owner of the sample database, as psql would open it."""
    connection = await asyncpg.connect(sample)
    yield connection
    await connection.close()


@pytest.fixture(scope="session")
def topics(kafka: Kafka, entities: dict[str, Entity]) -> str:
    """The broker's address; its topics exist."""
    create_topics(
        {"bootstrap.servers": kafka.bootstrap_servers}, entities.values(), partitions=6, replication=1
    )
    return kafka.bootstrap_servers


@pytest.fixture
def settings_of(
    sample: str, postgres: Postgres, redis_sa: Redis, redis_sb: Redis, topics: str
) -> Callable[..., ServiceSettings]:
    """Returns the settings of a service on the sample database, with the given changes."""
    urls = {"sa": redis_sa.url, "sb": redis_sb.url}

    def made(name: str, **changed: object) -> ServiceSettings:
        settings = {
            "service": name,
            "cachesync_entities": ENTITIES_FILE,
            "db_host": postgres.host,
            "db_port": postgres.port,
            "db_name": sample.rpartition("/")[2],
            "db_username": name,
            "db_password": f"{name}-password",
            "redis_url": urls[name],
            "kafka_bootstrap_servers": topics,
            **changed,
        }
        return ServiceSettings.model_validate(settings)

    return made


@pytest.fixture
def open_service(
    settings_of: Callable[..., ServiceSettings], topics: str, entities: dict[str, Entity]
) -> Callable[..., AbstractAsyncContextManager[Service]]:
    """Opens a service on the sample database, with the given changes to its settings."""

    @asynccontextmanager
    async def opened(name: str, **changed: object) -> AsyncIterator[Service]:
        service = await Service.open(settings_of(name, **changed))
        others = [cache.entity for cache in service.caches.values() if cache.entity.name not in entities]
        try:
            # Without its topic, a change would keep the service from closing for seconds.
            await asyncio.to_thread(
                create_topics, {"bootstrap.servers": topics}, others, partitions=1, replication=1
            )
            yield service
        finally:
            await service.close()

    return opened


@pytest.fixture(scope="session")
def redis_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisCluster]:
    """A Redis Cluster, shared by all tests of a session."""
    with RedisCluster(tmp_path_factory.mktemp("redis-cluster")) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def _cleaners() -> Iterator[Callable[[str], BlockingRedis]]:
    """Returns a client of the Redis with this URL: the same one for all tests of a session."""
    with ExitStack() as clients:
        yield cache(lambda url: clients.enter_context(blocking_client(url, 5)))


@pytest.fixture(autouse=True)
def _empty_caches(request: pytest.FixtureRequest, _cleaners: Callable[[str], BlockingRedis]) -> None:
    """Empty the caches that the test uses."""
    for name in {"redis_sa", "redis_sb"} & set(request.fixturenames):
        server: Redis = request.getfixturevalue(name)
        _cleaners(server.url).flushall()
    if "redis_cluster" in request.fixturenames:
        cluster: RedisCluster = request.getfixturevalue("redis_cluster")
        # Its nodes are not always where they were in the test before.
        with blocking_client(cluster.url, 5) as client:
            client.flushall()


@pytest.fixture
def worker_dsn(sample: str) -> str:
    """The DSN of the sample database for the worker role."""
    return address(sample, database=sample.rpartition("/")[2], user="background-worker", password="password")


@pytest.fixture
async def worker(worker_dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """A connection of the worker role."""
    connection = await asyncpg.connect(worker_dsn)
    yield connection
    await connection.close()


@pytest.fixture
def post(
    admin: asyncpg.Connection,
    worker: asyncpg.Connection,
    topics: str,
    redis_sb: Redis,
    entities: dict[str, Entity],
) -> Iterator[Post]:
    """The dead letters of a service that only this test uses."""
    with redis.Redis.from_url(redis_sb.url, socket_timeout=1) as slots:
        yield Post(admin, worker, topics, slots, entities)
