"""Connections to a Kafka with TLS and logins or client certificates need nothing but settings."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING, Any

import pytest
from confluent_kafka import Producer
from typer.testing import CliRunner

from cachesync.cli.main import app
from cachesync.dead_letters.reader import DeadLetterReader
from cachesync.kafka.settings import KafkaSettings
from cachesync.kafka.topics import DEAD_LETTERS
from cachesync.service.row_input import RowInput
from tests.integration.conftest import ENTITIES_FILE
from tests.integration.kafka.secure_kafka import PASSWORD, USER, SecureKafka

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractAsyncContextManager

    import asyncpg

    from cachesync.dead_letters.letter import Letter
    from cachesync.service.service import Service
    from local.redis import Redis

REPOSITORY = ENTITIES_FILE.parent
UNPUBLISHED = "SELECT count(*) FROM cachesync.change_log WHERE published_at IS NULL"


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecureKafka]:
    with SecureKafka(tmp_path_factory.mktemp("kafka"), jars=REPOSITORY / ".local" / "kafka") as server:
        yield server


def login(secure: SecureKafka, mechanism: str) -> dict[str, Any]:
    return {
        "kafka_bootstrap_servers": secure.with_login,
        "kafka_security_protocol": "SASL_SSL",
        "kafka_sasl_mechanism": mechanism,
        "kafka_sasl_username": USER,
        "kafka_sasl_password": PASSWORD,
        "kafka_ssl_ca_location": secure.authority,
    }


def certificate(secure: SecureKafka) -> dict[str, Any]:
    return {
        "kafka_bootstrap_servers": secure.with_certificate,
        "kafka_security_protocol": "SSL",
        "kafka_ssl_ca_location": secure.authority,
        "kafka_ssl_certificate_location": secure.certificate,
        "kafka_ssl_key_location": secure.key,
    }


def cachesync(settings: dict[str, Any], *arguments: str) -> Any:
    environment = {name.upper(): str(value) for name, value in settings.items()}
    return CliRunner().invoke(app, arguments, env=environment | {"CACHESYNC_ENTITIES": str(ENTITIES_FILE)})


@pytest.mark.parametrize("how", ["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512", "certificate"])
async def test_topics_are_created_and_changes_published(
    secure: SecureKafka,
    open_service: Callable[..., AbstractAsyncContextManager[Service]],
    admin: asyncpg.Connection,
    how: str,
) -> None:
    settings = certificate(secure) if how == "certificate" else login(secure, how)
    made = await asyncio.to_thread(cachesync, settings, "create-topics")
    assert (made.exit_code, "created: " in made.output) == (0, True), made.output
    async with open_service("sa", **settings) as sa:
        await sa.caches["student"].insert(RowInput.from_json(b'{"id":1,"name":"Ann"}'))
        async with asyncio.timeout(10):
            while await admin.fetchval(UNPUBLISHED):
                await asyncio.sleep(0.02)


async def test_dead_letters_are_read_with_a_login(secure: SecureKafka, worker_dsn: str) -> None:
    settings = login(secure, "SCRAM-SHA-512")
    await asyncio.to_thread(cachesync, settings, "create-topics")
    listed = await asyncio.to_thread(cachesync, settings, "dead-letters", "list", "--dsn", worker_dsn)
    assert (listed.exit_code, "0 open" in listed.output) == (0, True), listed.output


async def test_airflow_connections_take_librdkafka_settings(
    secure: SecureKafka, redis_sb: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cachesync_airflow.connections import brokers  # noqa: PLC0415 - importing Airflow takes seconds
    from cachesync_airflow.triggers.cache_sync import CacheSyncTrigger  # noqa: PLC0415

    settings = login(secure, "SCRAM-SHA-512")
    await asyncio.to_thread(cachesync, settings, "create-topics")
    client: dict[str, Any] = KafkaSettings.model_validate(settings).kafka
    consumer = {**client, "group.id": "airflow", "enable.auto.commit": False, "auto.offset.reset": "earliest"}
    for name, extra in (("CACHESYNC", client), ("SB", consumer)):
        monkeypatch.setenv(f"AIRFLOW_CONN_KAFKA_{name}", json.dumps({"conn_type": "kafka", "extra": extra}))
    monkeypatch.setenv("AIRFLOW_CONN_REDIS_SB", redis_sb.url)
    monkeypatch.setenv("CACHESYNC_CACHES", "sb")
    monkeypatch.setenv("CACHESYNC_ENTITIES", str(ENTITIES_FILE))
    stream = CacheSyncTrigger("sb", 0).open()
    running = asyncio.create_task(asyncio.to_thread(stream.run))
    producer = Producer(brokers())
    producer.produce("cachesync.student", key=b"no change")
    assert await asyncio.to_thread(producer.flush, 30) == 0
    letters: list[Letter] = []
    with DeadLetterReader(brokers()) as reader:
        async with asyncio.timeout(30):
            while not letters:
                await asyncio.sleep(0.1)
                letters = [letter for batch in reader.batches(DEAD_LETTERS, 10) for letter in batch]
    stream.stop()
    await running
    assert [(letter.service, letter.key) for letter in letters] == [("sb", b"no change")]


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"kafka_sasl_password": "another secret"}, "uthentication"),
        ({"kafka_ssl_ca_location": None}, "certificate verify failed"),
        ({"kafka_security_protocol": "PLAINTEXT"}, "KAFKA_SASL_MECHANISM is invalid: it has no effect while"),
        ({"kafka_sasl_mechanism": "MD5"}, "KAFKA_SASL_MECHANISM must be 'PLAIN', 'SCRAM-SHA-256' or"),
    ],
)
@pytest.mark.parametrize("command", [["create-topics"], ["dead-letters", "list"]])
def test_command_reports_why_it_cannot_connect(
    secure: SecureKafka, worker_dsn: str, wrong: dict[str, Any], text: str, command: list[str]
) -> None:
    settings = {**login(secure, "PLAIN"), **wrong, "cachesync_dsn": worker_dsn}
    result = cachesync({name: "" if value is None else value for name, value in settings.items()}, *command)
    assert result.exit_code == 1
    assert text in result.output
    assert "secret" not in result.output
