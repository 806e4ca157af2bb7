"""What a service takes from its environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, StringConstraints

from cachesync.kafka.settings import KafkaSettings

Milliseconds = Annotated[int, Field(gt=0, le=60_000)]
Port = Annotated[int, Field(gt=0, lt=65536)]


class ServiceSettings(KafkaSettings):
    """Settings of one service's share of the system, each from the variable of its name.

    Kafka is where changes are published.

    Attributes:
        service: the service's name; its slots are `{service}:{entity}:{key}`.
        cachesync_entities: the entities file.
        db_host, db_port, db_name, db_username, db_password: the shared database.
        db_pool: the most connections to it, per process.
        db_timeout_ms: the longest wait for a connection or a statement's answer.
        redis_url: this service's own cache.
        redis_timeout_ms: the longest wait for one answer of it.
        lease_ms: how long a lease holds; longer than a load or a commit takes.
        lease_wait_ms: how long a read waits for another's load before it asks the database itself.
    """

    service: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,39}$")]
    cachesync_entities: Path = Path("entities.toml")
    db_host: str = "127.0.0.1"
    db_port: Port = 5432
    db_name: str = "cachesync"
    db_username: str
    db_password: SecretStr
    db_pool: Annotated[int, Field(gt=0, le=1000)] = 10
    db_timeout_ms: Milliseconds = 2000
    redis_url: str = "redis://127.0.0.1:6379/0"
    redis_timeout_ms: Milliseconds = 100
    lease_ms: Milliseconds = 2000
    lease_wait_ms: Milliseconds = 200
