"""Options, connections and error output that the commands share."""

from __future__ import annotations

import asyncio
import json
import re
import time
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Final

import typer
from confluent_kafka import KafkaError, KafkaException
from confluent_kafka.admin import AdminClient
from rich.console import Console

from cachesync.errors import CacheSyncError, KafkaUnavailableError, SettingsError
from cachesync.kafka.clients import open_client
from cachesync.kafka.errors import AUTHENTICATION, SSL
from cachesync.kafka.settings import KafkaSettings
from cachesync.mistakes import did_you_mean
from cachesync.postgres.connect import connected
from cachesync.slots.clients import blocking_client, check_blocking_url

if TYPE_CHECKING:
    from collections.abc import Collection, Coroutine, Iterator, Mapping, Sequence
    from contextlib import AbstractAsyncContextManager

    import asyncpg

    from cachesync.slots.clients import BlockingRedis

console: Final = Console(stderr=True, markup=False, soft_wrap=True)
"""For progress and messages, on standard error; the requested output goes to standard output."""

_REDIS_URL: Final = re.compile(r"([a-z][a-z0-9-]{0,39})=(rediss?(?:\+cluster)?://\S+|unix://\S+)")
_GROUP: Final = re.compile(r"([a-z][a-z0-9-]{0,39})=(\S+)")
_REDIS_SECONDS: Final = 5.0
_KAFKA_SECONDS: Final = 10.0
# Errors that a retry cannot resolve.
_REFUSALS: Final = {AUTHENTICATION, SSL}

Dsn = Annotated[
    str | None,
    typer.Option(
        envvar="CACHESYNC_DSN",
        show_default="PGHOST, PGUSER, ... as for psql",
        help="URL of the database, such as postgresql://owner@host/name.",
    ),
]
EntitiesFile = Annotated[
    Path, typer.Option("--entities", envvar="CACHESYNC_ENTITIES", help="The entities file.")
]
BootstrapServers = Annotated[
    str,
    typer.Option(envvar="KAFKA_BOOTSTRAP_SERVERS", help="Kafka brokers as host:port, separated by commas."),
]
KnownBootstrapServers = Annotated[
    str | None,
    typer.Option(
        "--bootstrap-servers",
        envvar="KAFKA_BOOTSTRAP_SERVERS",
        help="Kafka brokers as host:port, separated by commas.",
    ),
]
"""The brokers, for commands that do something without them, too."""
RedisUrls = Annotated[
    list[str] | None,
    typer.Option(
        "--redis",
        envvar="CACHESYNC_REDIS_URLS",
        metavar="SERVICE=URL",
        help="Redis of a service, such as sb=redis://host:6379/0; can be repeated or comma-separated.",
    ),
]

Groups = Annotated[
    list[str] | None,
    typer.Option(
        "--group",
        metavar="SERVICE=NAME",
        show_default="cachesync-SERVICE",
        help="The consumer group of a service's cache; can be repeated.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def print_json(answer: Any) -> None:
    """Print the output of a command as JSON, on standard output.

    Args:
        answer: what `json.dumps` can write.
    """
    typer.echo(json.dumps(answer, ensure_ascii=False, indent=2))


def connection(dsn: str | None) -> AbstractAsyncContextManager[asyncpg.Connection]:
    """Open a connection to the database, to be used as an asynchronous context manager.

    Args:
        dsn: as given by the option `Dsn`.
    """
    return connected(dsn, "cachesync")


def kafka_settings(bootstrap_servers: str) -> dict[str, str]:
    """Return librdkafka's settings for connecting to the brokers.

    TLS and logins are configured with the environment variables of `KafkaSettings`.

    Args:
        bootstrap_servers: as given by the option `BootstrapServers`.

    Raises:
        SettingsError: the option is empty, or an environment variable is invalid.
    """
    if not bootstrap_servers.strip():
        message = (
            "--bootstrap-servers (KAFKA_BOOTSTRAP_SERVERS) is empty; give the brokers as host:port, "
            "separated by commas"
        )
        raise SettingsError(message)
    return KafkaSettings.load(kafka_bootstrap_servers=bootstrap_servers).kafka


def kafka_client(bootstrap_servers: str) -> dict[str, str]:
    """Return librdkafka's settings for connecting to the brokers, after a broker has responded.

    Args:
        bootstrap_servers: as given by the option `BootstrapServers`.

    Raises:
        SettingsError: the option is empty, or an environment variable is invalid.
        KafkaUnavailableError: no broker accepts the connection, or a certificate cannot be used.
    """
    settings = kafka_settings(bootstrap_servers)
    # Only this callback receives the cause; the calls just time out.
    errors: list[KafkaError] = []
    client = open_client(AdminClient, {**settings, "error_cb": errors.append})
    deadline = time.monotonic() + _KAFKA_SECONDS
    while True:
        try:
            client.list_topics(timeout=1)
        except KafkaException as error:
            client.poll(0)
            refusal = next((one for one in errors if one.code() in _REFUSALS), None)
            if refusal or time.monotonic() > deadline:
                reason = refusal or (errors or error.args)[0]
                message = f"Kafka at {bootstrap_servers}: {reason.str()}"
                raise KafkaUnavailableError(message) from error
        else:
            return settings


@contextmanager
def redis_clients(
    urls: Sequence[str] | None, seconds: float = _REDIS_SECONDS
) -> Iterator[dict[str, BlockingRedis]]:
    """Open a client for each service's Redis, by the service's name, and close them on exit.

    Args:
        urls: as given by the option `RedisUrls`.
        seconds: the timeout for a connection and for a reply.

    Raises:
        SettingsError: values are not `SERVICE=URL`; the text has one line with the position of each.
        CacheUnavailableError: a Redis Cluster did not respond.
    """
    with ExitStack() as stack:
        yield {
            service: stack.enter_context(blocking_client(url, seconds))
            for service, url in redis_urls(urls).items()
        }


def redis_urls(urls: Sequence[str] | None) -> dict[str, str]:
    """Return the URL of each service's Redis, by the service's name, without connecting.

    Args:
        urls: as given by the option `RedisUrls`.

    Raises:
        SettingsError: values are not `SERVICE=URL`; the text has one line with the position of each.
    """
    found: dict[str, str] = {}
    problems = []
    for position, pair in enumerate(filter(None, ",".join(urls or ()).split(",")), 1):
        option = f"value {position} of --redis (CACHESYNC_REDIS_URLS)"
        match = _REDIS_URL.fullmatch(pair)
        if match is None:
            # The value is not quoted, because any part of it can be a password.
            problems.append(
                f"{option} is not SERVICE=URL, such as sb=redis://host:6379/0; a comma within a URL must "
                "be written as %2C"
            )
            continue
        if match[1] in found:
            problems.append(f"{option} is another Redis for {match[1]!r}; a service has one cache")
            continue
        try:
            check_blocking_url(match[2])
        except SettingsError as error:
            problems.append(f"{option}: {error}")
        else:
            found[match[1]] = match[2]
    if problems:
        raise SettingsError("\n".join(problems))
    return found


def consumer_groups(groups: list[str] | None, services: Mapping[str, Any]) -> dict[str, str]:
    """Return the consumer groups of services, by the name of the service.

    Args:
        groups: as given by the option `Groups`.
        services: what there is of each service, by its name.

    Raises:
        SettingsError: a value is not `SERVICE=NAME`, or names another service.
    """
    parsed = {}
    for pair in groups or ():
        match = _GROUP.fullmatch(pair)
        if match is None or match[1] not in services:
            message = f"--group {pair} is not SERVICE=NAME with a service of --redis: {', '.join(services)}"
            raise SettingsError(message)
        parsed[match[1]] = match[2]
    return parsed


def selected(names: list[str] | None, known: Collection[str], problem: str) -> tuple[str, ...]:
    """Return the given names, or all known ones if none are given.

    Args:
        names: the given names.
        known: the known names; there are none only if no Redis was given.
        problem: the text for a name that is not known.

    Raises:
        SettingsError: a name is not known, or there are no known names.
    """
    if not known:
        message = "no Redis given; add one for each service, such as --redis sb=redis://host:6379/0"
        raise SettingsError(message)
    unknown = [name for name in names or () if name not in known]
    if unknown:
        raise SettingsError("\n".join(f"{problem} {name!r}{did_you_mean(name, known)}" for name in unknown))
    return tuple(dict.fromkeys(names or known))


def failed(reason: object) -> typer.Exit:
    """Print the reason, which can have several lines, and return the exit exception."""
    for line in str(reason).splitlines():
        console.print(f"cachesync: {line}", style="red")
    return typer.Exit(1)


def run(work: Coroutine[None, None, None]) -> None:
    """Run a command's work, and print errors that the user can act on as one line.

    Raises:
        typer.Exit: the work failed (status 1) or was interrupted (130).
    """
    try:
        asyncio.run(work)
    except CacheSyncError as error:
        raise failed(error) from error
    except OSError as error:
        file = f"{error.filename}: " if error.filename else ""
        reason = f"{file}{error.strerror or error}"
        raise failed(reason) from error
    except KeyboardInterrupt:
        console.print("interrupted; completed work is kept, run the same command again to continue")
        raise typer.Exit(130) from None
