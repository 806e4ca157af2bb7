"""What the commands have in common: their options, and how they run and fail."""

from __future__ import annotations

import asyncio
import re
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import asyncpg
import typer
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from pydantic import ValidationError
from redis.exceptions import RedisError
from rich.console import Console

from cachesync.database import connected
from cachesync.errors import CacheSyncError
from cachesync.kafka_settings import KafkaSettings
from cachesync.redis_client import worker_client
from cachesync.settings import problems

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterator, Sequence
    from contextlib import AbstractAsyncContextManager

    from cachesync.redis_client import WorkerRedis

console: Final = Console(stderr=True)
"""Where commands say what they do; what they were asked for goes to the standard output."""

_REDIS_URL: Final = re.compile(r"([a-z][a-z0-9-]{0,39})=(rediss?(?:\+cluster)?://\S+|unix://\S+)")
_REDIS_SECONDS: Final = 5.0
_KAFKA_SECONDS: Final = 10.0
# It does not help to try again.
_REFUSALS: Final = {KafkaError._AUTHENTICATION, KafkaError._SSL}  # noqa: SLF001 - their only names

Dsn = Annotated[
    str | None,
    typer.Option(
        envvar="CACHESYNC_DSN",
        show_default="PGHOST, PGUSER, ... as for psql",
        help="The database, such as postgresql://owner@host/name.",
    ),
]
EntitiesFile = Annotated[
    Path, typer.Option("--entities", envvar="CACHESYNC_ENTITIES", help="The entities file.")
]
BootstrapServers = Annotated[str, typer.Option(envvar="KAFKA_BOOTSTRAP_SERVERS", help="The brokers.")]
RedisUrls = Annotated[
    list[str] | None,
    typer.Option(
        "--redis",
        envvar="CACHESYNC_REDIS_URLS",
        metavar="SERVICE=URL",
        help="A service's Redis, such as sb=redis://host:6379/0; repeated, or several separated by commas.",
    ),
]


def connection(dsn: str | None) -> AbstractAsyncContextManager[asyncpg.Connection]:
    """A connection to the database, for the length of a command."""
    return connected(dsn, "cachesync")


def kafka_client(bootstrap_servers: str) -> dict[str, str]:
    """The settings that lead a Kafka client to the brokers, one of which has answered.

    How they want to be reached is in the environment: the variables of `KafkaSettings`.

    Raises:
        typer.Exit: a variable is bad, or no broker lets us in; the reason has been told.
        KafkaException: a certificate cannot be used.
    """
    try:
        settings = KafkaSettings(kafka_bootstrap_servers=bootstrap_servers).kafka
    except ValidationError as error:
        raise failed(problems(error)) from None
    # What is wrong is told to this alone; the calls say that there was no answer.
    told: list[KafkaError] = []
    options: dict[str, Any] = {**settings, "error_cb": told.append, "log_level": 2}
    client = AdminClient(options)
    deadline = time.monotonic() + _KAFKA_SECONDS
    while True:
        try:
            client.list_topics(timeout=1)
        except KafkaException as error:
            client.poll(0)
            refusal = next((one for one in told if one.code() in _REFUSALS), None)
            if refusal or time.monotonic() > deadline:
                reason = refusal or (told or error.args)[0]
                message = f"Kafka at {bootstrap_servers}: {reason.str()}"
                raise failed(message) from error
        else:
            return settings


@contextmanager
def redis_clients(urls: Sequence[str] | None) -> Iterator[dict[str, WorkerRedis]]:
    """A client for each service's Redis, by the service's name.

    Args:
        urls: as given by the option `RedisUrls`.

    Raises:
        ValueError: one is not `SERVICE=URL`; the text says which.
        RedisError: a Redis Cluster does not answer.
    """
    clients: dict[str, WorkerRedis] = {}
    with ExitStack() as stack:
        for pair in filter(None, ",".join(urls or ()).split(",")):
            match = _REDIS_URL.fullmatch(pair)
            if match is None:
                # The rest may hold a password.
                start = pair.partition("://")[0]
                message = f"--redis {start!r}... is not SERVICE=URL, such as sb=redis://host:6379/0"
                raise ValueError(message)
            client = worker_client(match[2], _REDIS_SECONDS)
            clients[match[1]] = stack.enter_context(client)
        yield clients


def failed(reason: object) -> typer.Exit:
    """Tell why a command cannot do its work; what ends it."""
    console.print(f"cachesync: {reason}", style="red", markup=False, soft_wrap=True)
    return typer.Exit(1)


def run(work: Coroutine[None, None, None]) -> None:
    """Run a command's work; what its user can do something about is told in one line."""
    try:
        asyncio.run(work)
    except (
        CacheSyncError,
        KafkaException,
        asyncpg.PostgresError,
        asyncpg.InterfaceError,
        RedisError,
        OSError,
        ValueError,
    ) as error:
        reason = f"Kafka: {error.args[0].str()}" if isinstance(error, KafkaException) else error
        raise failed(reason) from error
    except KeyboardInterrupt:
        console.print("stopped; what is done stays, run the same command again to go on")
        raise typer.Exit(130) from None
