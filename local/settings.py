"""Settings of the local system."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, field_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from cachesync.background import ServiceNames  # noqa: TC001 - pydantic reads it

REPOSITORY = Path(__file__).parents[1]
Port = Annotated[int, Field(gt=0, lt=65536)]
#: The services that the local system runs.
SERVICES = ("sa", "sb")
# Also logins of the database.
_TAKEN = frozenset({"worker", "postgres", "kafka", "airflow"})


class Settings(BaseSettings):
    """Settings, each read from an environment variable with the prefix `LOCAL_`, such as `LOCAL_SB_PORT`.

    Attributes:
        state: directory for all data, logs and generated secrets.
        postgres_dsn, redis_sa_url, redis_sb_url, kafka_bootstrap: existing servers to use instead of starting
            new ones. The DSN's user must be a superuser, or be able to create roles and databases.
        postgres_programs: directory of the `postgres` and `initdb` to start instead of those of `make setup`.
        redis_server: the `redis-server` or `valkey-server` to start instead of that of `make setup`.
        kafka_version: version of Kafka to start, such as 3.9.1, instead of the one in its `pom.xml`.
        postgres_port, ...: port that each component listens on.
        caches: the services that have a cache, from the variable `CACHESYNC_CACHES`. Each service besides sa
            and sb gets a Redis, a database login and consumers; you start the service itself.
        first_port: port of the Redis of the first of these services; the others follow.
    """

    model_config = SettingsConfigDict(env_prefix="LOCAL_", frozen=True, env_ignore_empty=True)

    state: Path = REPOSITORY / ".local"
    postgres_dsn: str | None = None
    redis_sa_url: str | None = None
    redis_sb_url: str | None = None
    kafka_bootstrap: str | None = None
    postgres_programs: Path | None = None
    redis_server: Path | None = None
    kafka_version: str | None = None
    postgres_port: Port = 15432
    redis_sa_port: Port = 16379
    redis_sb_port: Port = 16380
    kafka_port: Port = 19092
    kafka_controller_port: Port = 19093
    airflow_port: Port = 8080
    sa_port: Port = 8090
    sb_port: Port = 8085
    sa_metrics_port: Port = 9190
    sb_metrics_port: Port = 9185
    triggerer_metrics_port: Port = 9195
    caches: Annotated[ServiceNames, Field(validation_alias="CACHESYNC_CACHES")] = SERVICES
    first_port: Port = 16381

    @field_validator("caches")
    @classmethod
    def _with_sa_and_sb(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in _TAKEN & set(value):
            message = f"{name} is the name of another component of the local system"
            raise ValueError(message)
        return tuple(dict.fromkeys((*SERVICES, *value)))
