"""Which partitions have a consumer, and whether a relay is connected, on a real Kafka and PostgreSQL."""

from __future__ import annotations

import json
import os
import secrets
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest
from confluent_kafka import Consumer
from confluent_kafka.admin import AdminClient, NewTopic  # type: ignore[attr-defined]

import tests.integration.test_dags  # noqa: F401 - sets Airflow's environment
from cachesync.errors import KafkaUnavailableError
from cachesync.kafka.groups import unconsumed
from cachesync.relay.sessions import SESSION_NAME, connected_relays
from local.postgres import address, create_role
from tests.waiting import wait_until

if TYPE_CHECKING:
    from pathlib import Path

    from local.kafka import Kafka
    from local.postgres import Postgres


@pytest.fixture
def topic(kafka: Kafka) -> str:
    name = f"cachesync.t{secrets.token_hex(4)}"
    admin = AdminClient({"bootstrap.servers": kafka.bootstrap_servers})
    admin.create_topics([NewTopic(name, 2)])[name].result()
    return name


def consumer(kafka: Kafka, group: str, topic: str) -> Consumer:
    joined = Consumer({"bootstrap.servers": kafka.bootstrap_servers, "group.id": group, "log_level": 0})
    joined.subscribe([topic])
    return joined


def described(broker: dict[str, str], group: str) -> bool:
    try:
        unconsumed(broker, group, [])
    except KafkaUnavailableError:
        return False
    return True


def test_partitions_without_a_living_consumer_are_found(kafka: Kafka, topic: str) -> None:
    broker = {"bootstrap.servers": kafka.bootstrap_servers}
    both = [f"{topic}[0]", f"{topic}[1]"]
    wait_until(lambda: described(broker, topic), "the coordinator has loaded the groups")
    assert unconsumed(broker, topic, [topic]) == both
    assert unconsumed(broker, topic, ["none", topic]) == [*both, "none"]
    joined = consumer(kafka, topic, topic)
    wait_until(lambda: bool(joined.poll(0.1)) or not unconsumed(broker, topic, [topic]), "consumed")
    assert unconsumed(broker, "another", [topic]) == both
    joined.close()
    assert unconsumed(broker, topic, [topic]) == both


def test_check_names_each_cache_that_is_not_followed_and_a_missing_relay(
    kafka: Kafka, topic: str, postgres: Postgres, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from airflow.sdk.exceptions import AirflowFailException  # noqa: PLC0415 - importing Airflow takes seconds
    from cachesync_airflow.operators import stream_check  # noqa: PLC0415

    monkeypatch.setattr(stream_check, "_PATIENCE_SECONDS", 0)
    entity = topic.removeprefix("cachesync.")
    file = tmp_path / "entities.toml"
    file.write_text(f'[{entity}]\ntable = "t"\nkey = "id"\nttl = "1h"\nabsent_ttl = "30s"\npath = "/t"\n')
    monkeypatch.setenv("CACHESYNC_ENTITIES", str(file))
    monkeypatch.setenv("CACHESYNC_CACHES", "sa,sb")
    monkeypatch.setenv("AIRFLOW_CONN_POSTGRES_CACHESYNC", postgres.dsn)
    for service in ("sa", "sb"):
        extra = {"bootstrap.servers": kafka.bootstrap_servers, "group.id": f"{service}-{topic}"}
        connection = json.dumps({"conn_type": "kafka", "extra": extra})
        monkeypatch.setenv(f"AIRFLOW_CONN_KAFKA_{service.upper()}", connection)

    def check() -> str:
        context: Any = {}
        try:
            stream_check.StreamCheckOperator(task_id="check").execute(context)
        except AirflowFailException as error:
            return str(error)
        return ""

    joined = consumer(kafka, f"sa-{topic}", topic)
    wait_until(lambda: bool(joined.poll(0.1)) or "cache sa" not in check(), "sa is followed")
    error = check()
    assert f"cache sb is not followed: group sb-{topic} has no consumer for {topic}[0], {topic}[1]" in error
    assert "the relay is not running" in error
    assert "\n" not in error
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_SB", os.environ["AIRFLOW_CONN_KAFKA_SA"])
    assert f"caches sa and sb share the group sa-{topic}" in check()
    monkeypatch.setenv("CACHESYNC_CACHES", "sa")
    monkeypatch.setenv("AIRFLOW_CONN_POSTGRES_CACHESYNC", "postgresql://127.0.0.1:1/none")
    assert check().startswith("cannot look whether the relay is running: ")
    joined.close()
    monkeypatch.setenv("AIRFLOW_CONN_KAFKA_SA", '{"conn_type": "kafka", "extra": {}}')
    assert check() == "the extra of the connection kafka_sa must set group.id, such as cachesync-sa"


async def test_relay_is_seen_by_every_login(postgres: Postgres) -> None:
    create_role(postgres.dsn, "onlooker", "onlooker-password")
    dsn = address(postgres.dsn, database="cachesync", user="onlooker", password="onlooker-password")
    onlooker = await asyncpg.connect(dsn)
    try:
        assert await connected_relays(onlooker) == 0
        relay = await asyncpg.connect(postgres.dsn, server_settings={"application_name": SESSION_NAME})
        assert await connected_relays(onlooker) == 1
        await relay.close()
    finally:
        await onlooker.close()
