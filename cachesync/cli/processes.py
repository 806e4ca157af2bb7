"""The commands `cachesync stream`, `relay` and `live-check`, which run until they are stopped."""

from __future__ import annotations

import logging
import os
import sys
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import structlog
import typer
from confluent_kafka import Consumer, Producer

from cachesync import logs
from cachesync.background import BackgroundSettings
from cachesync.cli.options import (
    BootstrapServers,
    Dsn,
    EntitiesFile,
    RedisUrls,
    kafka_settings,
    redis_urls,
    run,
)
from cachesync.entity import check_service_name, load_entities
from cachesync.errors import SettingsError
from cachesync.exporter import serve
from cachesync.kafka.clients import open_client
from cachesync.kafka.groups import consumer_settings, group_of
from cachesync.live_check.cache import REDIS_SECONDS as LOOK_SECONDS
from cachesync.live_check.live_check import LiveCheck
from cachesync.relay.relay import Relay
from cachesync.reloading import ReloadingWork
from cachesync.slots.clients import blocking_client
from cachesync.stream.stream import REDIS_SECONDS, open_stream
from cachesync.work import keep_working

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from confluent_kafka import KafkaError

    from cachesync.entity import Entity
    from cachesync.slots.clients import BlockingRedis
    from cachesync.stream.stream import Stream
    from cachesync.work import Work

_log = structlog.get_logger(__name__)

_MAX_PORT: Final = 65_535
_REPEAT_SECONDS: Final = 60.0

MetricsPort = Annotated[
    int | None,
    typer.Option(
        envvar="METRICS_PORT",
        min=1,
        max=_MAX_PORT,
        show_default="none",
        help="Port on which to serve Prometheus metrics.",
    ),
]
ListenAddress = Annotated[
    str, typer.Option(envvar="LISTEN_ADDRESS", help="Address on which to serve the metrics.")
]


def stream(
    *,
    service: Annotated[
        str,
        typer.Option(
            parser=check_service_name, metavar="NAME", help="The service whose cache to keep in sync."
        ),
    ],
    redis_url: Annotated[
        str,
        typer.Option(
            envvar="REDIS_URL", metavar="URL", help="The service's Redis, such as redis://host:6379/0."
        ),
    ],
    bootstrap_servers: BootstrapServers,
    group: Annotated[
        str | None,
        typer.Option(
            metavar="NAME",
            show_default="cachesync-SERVICE",
            help="The consumer group of the cache: that of Airflow's connection, if the DAG cache_sync runs.",
        ),
    ] = None,
    entities: EntitiesFile = Path("entities.toml"),
    metrics_port: MetricsPort = None,
    listen_address: ListenAddress = "127.0.0.1",
) -> None:
    """Apply the changes of all entities to one service's cache, until SIGTERM or Ctrl-C.

    It does the work of one consumer of the DAG cache_sync, and shares it with the other members of the
    consumer group, in Airflow or elsewhere. It waits for servers that do not respond, and starts again after
    an error.

    Exit status: 0 after SIGTERM or Ctrl-C, 1 if a setting or the entities file is invalid.
    """

    async def work() -> None:
        settings = BackgroundSettings.load()
        kafka = kafka_settings(bootstrap_servers)
        consumer = consumer_settings(kafka, group or group_of(service))
        problems = _ClientProblems()

        def opened(declared: Mapping[str, Entity]) -> Stream:
            return open_stream(
                service,
                declared,
                _redis(redis_url),
                consumer,
                settings.retry_policy,
                connect=lambda: open_client(Consumer, {**consumer, "error_cb": problems}),
                connect_producer=lambda: open_client(Producer, kafka),
            )

        await _work(f"stream of {service}", entities, opened, metrics_port, listen_address)

    run(work())


def relay(
    *,
    bootstrap_servers: BootstrapServers,
    dsn: Dsn = None,
    entities: EntitiesFile = Path("entities.toml"),
    metrics_port: MetricsPort = None,
    listen_address: ListenAddress = "127.0.0.1",
) -> None:
    """Publish the changes that no service publishes, until SIGTERM or Ctrl-C.

    It does the work of the DAG outbox_relay, and shares it with other relays, in Airflow or elsewhere. The
    login needs the role cachesync_worker. The relay waits for servers that do not respond, and starts again
    after an error.

    Exit status: 0 after SIGTERM or Ctrl-C, 1 if a setting or the entities file is invalid.
    """

    async def work() -> None:
        settings = BackgroundSettings.load()
        kafka = kafka_settings(bootstrap_servers)
        await _work(
            "relay",
            entities,
            lambda declared: Relay(dsn, kafka, declared, settings.retention),
            metrics_port,
            listen_address,
        )

    run(work())


def live_check(
    *,
    redis: RedisUrls = None,
    dsn: Dsn = None,
    entities: EntitiesFile = Path("entities.toml"),
    metrics_port: MetricsPort = None,
    listen_address: ListenAddress = "127.0.0.1",
) -> None:
    """Measure whether every cache has a committed change in time, until SIGTERM or Ctrl-C.

    It does the work of the DAG live_check. Of several live checks, one works, and the others wait to take
    over. The login needs the role cachesync_worker. What it sees is in tables of the schema cachesync.

    Exit status: 0 after SIGTERM or Ctrl-C, 1 if a setting or the entities file is invalid.
    """

    async def work() -> None:
        urls = redis_urls(redis)
        if not urls:
            message = "no Redis is given; use --redis (CACHESYNC_REDIS_URLS), such as sb=redis://host:6379/0"
            raise SettingsError(message)
        openers = {service: partial(blocking_client, url, LOOK_SECONDS) for service, url in urls.items()}
        await _work(
            "live check",
            entities,
            lambda declared: LiveCheck(dsn, openers, declared),
            metrics_port,
            listen_address,
        )

    run(work())


async def _work(
    name: str,
    entities: Path,
    open_work: Callable[[Mapping[str, Entity]], Work],
    metrics_port: int | None,
    listen_address: str,
) -> None:
    """Write structured logs, serve the metrics, and work until the process is asked to stop."""
    if sys.stderr.isatty():
        plain = structlog.dev.plain_traceback
        # structlog itself does not know NO_COLOR, see https://no-color.org.
        colors = not os.environ.get("NO_COLOR")
        logs.configure(logging.INFO, structlog.dev.ConsoleRenderer(colors=colors, exception_formatter=plain))
    else:
        logs.configure(logging.INFO, structlog.processors.JSONRenderer())
    if metrics_port is not None:
        serve(listen_address, metrics_port)
    # Only a file that is invalid from the beginning ends the process.
    load_entities(entities)
    await keep_working(name, lambda: ReloadingWork(entities, open_work))


def _redis(url: str) -> BlockingRedis:
    try:
        return blocking_client(url, REDIS_SECONDS)
    except SettingsError as error:
        message = f"--redis-url (REDIS_URL): {error}"
        raise SettingsError(message) from error


class _ClientProblems:
    """Logs the errors of Kafka clients, which connect again by themselves: each once per minute."""

    def __init__(self) -> None:
        self._logged_at: dict[int, float] = {}

    def __call__(self, error: KafkaError) -> None:
        now = time.monotonic()
        if now - self._logged_at.get(error.code(), -_REPEAT_SECONDS) >= _REPEAT_SECONDS:
            self._logged_at[error.code()] = now
            _log.warning("no connection to Kafka", error=error.str())
