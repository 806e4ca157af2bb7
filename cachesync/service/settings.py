"""Settings of a service."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, SecretStr, field_validator

from cachesync.entity import ServiceName  # noqa: TC001 - pydantic reads it
from cachesync.errors import SettingsError
from cachesync.kafka.settings import KafkaSettings
from cachesync.postgres.canonical import is_storable
from cachesync.slots.clients import check_url

Milliseconds = Annotated[int, Field(gt=0, le=60_000)]
Port = Annotated[int, Field(gt=0, lt=65536)]


class ServiceSettings(KafkaSettings):
    """The settings of a service, each from the environment variable of the same name.

    The settings of Kafka are those of the brokers to which changes are published.

    Attributes:
        service: the name of the service; its slots are named `{service}:{entity}:{key}`.
        cachesync_entities: the entities file.
        db_host: the host of the shared database.
        db_port: the port of the shared database.
        db_name: the name of the shared database.
        db_username: a login with the role `cachesync_service`.
        db_password: the password of that login.
        db_pool: maximum number of database connections per process.
        db_timeout_ms: timeout for a connection and for a statement, in milliseconds.
        schema_check_ms: time between two comparisons of the tables with their installation, in milliseconds.
        row_limit: maximum size of the payload of a row that this service writes, in bytes.
        page_bytes: total size of the payloads of a page, in bytes; a row that reaches it is the last one.
        redis_url: the URL of this service's own Redis or Redis Cluster.
        redis_timeout_ms: timeout for a reply from that Redis, in milliseconds.
        lease_ms: lifetime of a lease, in milliseconds; must be longer than a load or a commit takes.
        lease_wait_ms: how long a read waits for another read's load before it queries the database itself, in
            milliseconds.
    """

    service: ServiceName
    cachesync_entities: Path = Path("entities.toml")
    db_host: str = "127.0.0.1"
    db_port: Port = 5432
    db_name: str = "cachesync"
    db_username: str
    db_password: SecretStr
    db_pool: Annotated[int, Field(gt=0, le=1000)] = 10
    db_timeout_ms: Milliseconds = 2000
    schema_check_ms: Milliseconds = 10_000
    # Kafka's own limit for a message is 1 MB.
    row_limit: Annotated[int, Field(gt=0, le=2**30)] = 900_000
    page_bytes: Annotated[int, Field(gt=0, le=2**30)] = 2**22
    # Not in the repr: it can contain a password.
    redis_url: Annotated[str, Field(repr=False)] = "redis://127.0.0.1:6379/0"
    redis_timeout_ms: Milliseconds = 100
    lease_ms: Milliseconds = 2000
    lease_wait_ms: Milliseconds = 200

    @field_validator("db_host", "db_name", "db_username", "db_password")
    @classmethod
    def _check_text(cls, value: str | SecretStr) -> str | SecretStr:
        if not is_storable(value.get_secret_value() if isinstance(value, SecretStr) else value):
            message = "it contains NUL, or a byte that is not part of UTF-8"
            raise ValueError(message)
        return value

    @field_validator("redis_url")
    @classmethod
    def _check_redis_url(cls, url: str) -> str:
        try:
            check_url(url)
        except SettingsError as error:
            raise ValueError(str(error)) from None
        return url
