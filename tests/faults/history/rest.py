"""Checks whether the system has come to rest: changes published and applied, slots equal to their rows."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from contextlib import suppress
from datetime import UTC
from typing import TYPE_CHECKING, Self

import httpx
import redis as redis_client
from confluent_kafka import Consumer, KafkaException, TopicPartition

from cachesync.dead_letters.letter import Letter
from cachesync.errors import KafkaUnavailableError
from cachesync.kafka.groups import unconsumed
from cachesync.kafka.topics import DEAD_LETTERS
from cachesync.postgres.connect import connect
from local.errors import CommandError, LocalError
from local.postgres import run_sql
from local.process import run
from local.settings import REPOSITORY
from tests.change_log import CHANGES
from tests.faults.history.record import Difference, Kind, Logged, Row, digest

if TYPE_CHECKING:
    from collections.abc import Mapping

    from local.service import Service
    from local.system import System

ENTITIES = ("student", "course", "grade")
_ANSWER_SECONDS = 5.0
_COMMAND_SECONDS = 60.0
# The services compare their tables with the registry every 10 s.
_NOTICE_SECONDS = 90.0
_ANSWERS = 10


class Watch:
    """Determines whether the caches are in step. An instance must be used by one thread only."""

    def __init__(self, system: System) -> None:
        self._system = system
        # These consumers query the groups' offsets and never join them. An AdminClient could do that too, but
        # it crashes occasionally.
        self._groups = [
            Consumer(
                {
                    "bootstrap.servers": system.bootstrap_servers,
                    "group.id": f"cachesync-{service}",
                    "enable.auto.commit": False,
                    "log_level": 0,
                }
            )
            for service in system.services
        ]

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for group in self._groups:
            group.close()

    def wait(self, seconds: float) -> bool:
        """Wait until everything that is already committed is in every cache; return False on a timeout."""
        deadline = time.monotonic() + seconds
        newest: int | None = None
        ends: dict[tuple[str, int], int] | None = None
        while time.monotonic() < deadline:
            with suppress(KafkaException, CommandError):
                if newest is None:
                    newest = last_version(self._system)
                if ends is None and not unpublished(self._system, newest):
                    ends = _ends(self._groups[0])
                if ends is not None and all(_has_applied(group, ends) for group in self._groups):
                    return True
            time.sleep(0.1)
        return False


def last_version(system: System) -> int:
    """Return the newest version that has been drawn."""
    return int(run_sql(system.dsn, "SELECT last_value FROM cachesync.row_version"))


def unpublished(system: System, newest: int) -> bool:
    """Return whether changes up to a version still wait to be published."""
    log = "SELECT count(*) > 0 FROM cachesync.change_log"
    return run_sql(system.dsn, f"{log} WHERE published_at IS NULL AND version <= {newest}") == "t"


def wait_ready(system: System, seconds: float) -> None:
    """Wait until every service and all its dependencies are available."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline and not all(map(_ready, system.services.values())):
        time.sleep(0.1)


def wait_consumed(system: System, seconds: float) -> None:
    """Wait until the streams of all caches have their partitions.

    Raises:
        LocalError: some partition has no consumer.
    """
    deadline = time.monotonic() + seconds
    topics = [f"cachesync.{entity}" for entity in ENTITIES]
    kafka = {"bootstrap.servers": system.bootstrap_servers, "log_level": 0}
    missing = [*system.services]
    while missing:
        if time.monotonic() > deadline:
            message = f"no consumer: {missing}"
            raise LocalError(message)
        time.sleep(0.1)
        with suppress(KafkaUnavailableError):
            missing = [
                f"{service} {partition}"
                for service in system.services
                for partition in unconsumed(kafka, f"cachesync-{service}", topics)
            ]


def _ready(service: Service) -> bool:
    try:
        answer = httpx.get(f"{service.url}/health/ready", timeout=_ANSWER_SECONDS)
    except httpx.TransportError:
        return False
    return answer.is_success and all(answer.json().values())


def _ends(consumer: Consumer) -> dict[tuple[str, int], int]:
    """Return the offset after the last message of each partition."""
    topics = consumer.list_topics(timeout=_ANSWER_SECONDS).topics
    return {
        (name, partition): consumer.get_watermark_offsets(
            TopicPartition(name, partition), timeout=_ANSWER_SECONDS
        )[1]
        for name in (f"cachesync.{entity}" for entity in ENTITIES)
        for partition in topics[name].partitions
    }


def _has_applied(group: Consumer, ends: Mapping[tuple[str, int], int]) -> bool:
    places = [TopicPartition(*place) for place, end in ends.items() if end]
    offsets = group.committed(places, timeout=_ANSWER_SECONDS)
    return all(place.offset >= ends[place.topic, place.partition] for place in offsets)


def row_versions(dsn: str) -> dict[Row, int]:
    """Return the version of every row."""
    return {row: version for row, (version, _) in _rows(dsn).items()}


def _rows(dsn: str) -> dict[Row, tuple[int, bytes]]:
    async def read() -> dict[Row, tuple[int, bytes]]:
        connection = await connect(dsn, "history")
        try:
            return {
                Row(entity, record["key"]): (record["version"], record["payload"].encode())
                for entity in ENTITIES
                for record in await connection.fetch(
                    f"SELECT key::text, version, payload FROM cachesync.{entity}"
                )
            }
        finally:
            await connection.close()

    return asyncio.run(read())


def logged_since(dsn: str, version: int) -> list[Logged]:
    """Return the changes after this version from the change log."""

    async def read() -> list[Logged]:
        connection = await connect(dsn, "history")
        try:
            records = await connection.fetch(
                f"SELECT * FROM {CHANGES} AS c WHERE version > $1 AND key IS NOT NULL AND entity = ANY($2)",
                version,
                ENTITIES,
            )
        finally:
            await connection.close()
        return [
            Logged(
                row=Row(record["entity"], record["key"]),
                version=record["version"],
                kind=Kind(record["operation"]),
                source=record["source"],
                at=record["changed_at"].astimezone(UTC).timestamp(),
                digest="" if record["payload"] is None else digest(record["payload"].encode()),
                value=_value(record["payload"]),
            )
            for record in records
        ]

    return asyncio.run(read())


def _value(payload: str | None) -> str:
    """Return the unique value in a payload; empty if there is none."""
    return (json.loads(payload or "{}").get("certificate")) or ""


def unburied(system: System, poison: set[bytes]) -> list[str]:
    """Return the undecodable messages for which a service has no dead letter, as service and key."""
    consumer = Consumer(
        {
            "bootstrap.servers": system.bootstrap_servers,
            "group.id": "history-letters",
            "enable.partition.eof": True,
            "log_level": 0,
        }
    )
    missing = {(service, key) for service in system.services for key in poison}
    try:
        consumer.assign([TopicPartition(DEAD_LETTERS, 0, 0)])
        while (message := consumer.poll(_ANSWER_SECONDS)) is not None and message.error() is None:
            letter = Letter.from_message(message)
            missing.discard((letter.service, letter.key or b""))
    finally:
        consumer.close()
    return [f"{service} {key.decode()}" for service, key in sorted(missing)]


def reconcile(system: System, *services: str) -> None:
    """Run `cachesync reconcile` on these services' caches."""
    options = [option for service in services for option in ("--service", service)]
    run_cachesync(system, "reconcile", *options)


def run_cachesync(system: System, *arguments: str) -> None:
    """Run a command of `cachesync`; retry while a server is unavailable."""
    urls = ",".join(f"{service}={url}" for service, url in system.redis_urls.items())
    environment = os.environ | {"CACHESYNC_DSN": system.dsn, "CACHESYNC_REDIS_URLS": urls}
    deadline = time.monotonic() + _COMMAND_SECONDS
    while True:
        try:
            run([sys.executable, "-m", "cachesync", *arguments], cwd=REPOSITORY, environment=environment)
        except CommandError:
            if time.monotonic() > deadline:
                raise
            time.sleep(1)
        else:
            return


def wait_noticed(system: System, entity: str, *, noticed: bool) -> None:
    """Wait until every process of the services refuses the writes of an entity, or no process does.

    Raises:
        LocalError: some process still has not noticed.
    """
    deadline = time.monotonic() + _NOTICE_SECONDS
    # A service has several processes, any of which may answer.
    agreeing = dict.fromkeys(system.services, 0)
    while min(agreeing.values()) < _ANSWERS:
        if time.monotonic() > deadline:
            state = "noticed" if noticed else "resumed"
            message = f"not every process has {state} {entity}: {agreeing}"
            raise LocalError(message)
        for name, service in system.services.items():
            with suppress(httpx.TransportError):
                answer = httpx.get(f"{service.url}/health/ready", timeout=_ANSWER_SECONDS)
                if answer.is_success:
                    agrees = (entity in answer.json().get("entities", {})) == noticed
                    agreeing[name] = agreeing[name] + 1 if agrees else 0
        time.sleep(0.1)


def differences(dsn: str, redis_urls: Mapping[str, str]) -> list[Difference]:
    """Return the slots that differ from their rows."""
    rows = _rows(dsn)
    having = {_value(payload.decode()): version for version, payload in rows.values()}
    found = []
    for service, url in redis_urls.items():
        with redis_client.Redis.from_url(url) as client:
            for entity in ENTITIES:
                prefix = f"{service}:{entity}:"
                for name in client.scan_iter(match=f"{prefix}*", count=1000):
                    slot = client.get(name)
                    row = Row(entity, name.decode().removeprefix(prefix))
                    version, payload = rows.get(row, (None, b""))
                    if isinstance(slot, bytes) and not _equal(slot, version, payload):
                        held = slot[:20].decode()
                        found.append(Difference(service=service, row=row, held=held, version=version))
            prefix = f"{service}:grade@certificate:"
            for name in client.scan_iter(match=f"{prefix}*", count=1000):
                value = name.decode().removeprefix(prefix)
                if client.get(name) == b"A" and value in having:
                    row = Row("grade@certificate", value)
                    found.append(Difference(service=service, row=row, held="A", version=having[value]))
    return found


def _equal(slot: bytes, version: int | None, payload: bytes) -> bool:
    if slot.startswith(b"V"):
        return version == int(slot[1:20]) and slot[28:] == payload
    return slot.startswith(b"L") or version is None
