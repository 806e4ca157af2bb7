"""Settings of the DAGs and triggers, read from Airflow's environment."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from pydantic import Field, StringConstraints, field_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from cachesync.backoff import Backoff
from cachesync.dead_letters.letter import RetryPolicy

ServiceName = Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9-]{0,39}$")]


class AirflowSettings(BaseSettings):
    """Settings, read from environment variables with the prefix `CACHESYNC_` and these names in upper case.

    Attributes:
        caches: the services that have a cache, separated by commas. The Airflow connections
            `redis_{service}` and `kafka_{service}` configure each service's Redis and consumer group.
        entities: the entities file.
        consumers_per_cache: the number of consumers that share the load of each cache.
        change_log_retention_days: how long the change log keeps published lines, in days.
        dead_letter_attempts: the number of failures, including the first, after which a letter is parked.
        dead_letter_backoff_seconds: the maximum delay after the first failure, in seconds. It doubles with
            each further failure, up to an hour.
    """

    model_config = SettingsConfigDict(env_prefix="CACHESYNC_", frozen=True, extra="ignore")

    caches: Annotated[tuple[ServiceName, ...], NoDecode, Field(min_length=1)]
    entities: Path = Path("entities.toml")
    consumers_per_cache: Annotated[int, Field(gt=0, le=100)] = 1
    change_log_retention_days: Annotated[int, Field(ge=1, le=3650)] = 7
    dead_letter_attempts: Annotated[int, Field(ge=1, le=100)] = 5
    dead_letter_backoff_seconds: Annotated[float, Field(gt=0, le=3600)] = 30

    @property
    def retry_policy(self) -> RetryPolicy:
        """When a dead letter is retried, and when it is parked."""
        backoff = Backoff(first=self.dead_letter_backoff_seconds, longest=3600, jitter=1)
        return RetryPolicy(self.dead_letter_attempts, backoff)

    @field_validator("caches", mode="before")
    @classmethod
    def _separated_by_commas(cls, value: object) -> object:
        return [part.strip() for part in value.split(",")] if isinstance(value, str) else value
