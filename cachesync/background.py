"""Settings of the background work, the same in Airflow and in processes of its own."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Annotated, Final, Self

from pydantic import BeforeValidator, Field, ValidationError
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from cachesync.backoff import Backoff
from cachesync.dead_letters.letter import RetryPolicy
from cachesync.entity import ServiceName
from cachesync.errors import SettingsError

_PREFIX: Final = "CACHESYNC_"


def _separated_by_commas(value: object) -> object:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) else value


ServiceNames = Annotated[tuple[ServiceName, ...], NoDecode, BeforeValidator(_separated_by_commas)]
"""The names of services in an environment variable, separated by commas."""


class BackgroundSettings(BaseSettings):
    """Settings, read from environment variables with the prefix `CACHESYNC_` and these names in upper case.

    Attributes:
        change_log_retention_days: how long the change log keeps published lines, in days.
        dead_letter_attempts: the number of failures, including the first, after which a letter is parked.
        dead_letter_backoff_seconds: the maximum delay after the first failure, in seconds. It doubles with
            each further failure, up to an hour.
    """

    model_config = SettingsConfigDict(env_prefix=_PREFIX, frozen=True, extra="ignore", env_ignore_empty=True)

    change_log_retention_days: Annotated[int, Field(ge=1, le=3650)] = 7
    dead_letter_attempts: Annotated[int, Field(ge=1, le=100)] = 5
    dead_letter_backoff_seconds: Annotated[float, Field(gt=0, le=3600)] = 30

    @classmethod
    def load(cls) -> Self:
        """Read the settings from the environment.

        Raises:
            SettingsError: a setting is missing or invalid.
        """
        try:
            return cls()
        except ValidationError as error:
            known = {f"{_PREFIX}{field}".upper() for field in cls.model_fields}
            raise SettingsError.of(error, os.environ.keys() - known, _PREFIX) from None

    @property
    def retention(self) -> timedelta:
        """How long the change log keeps published lines."""
        return timedelta(days=self.change_log_retention_days)

    @property
    def retry_policy(self) -> RetryPolicy:
        """When a dead letter is retried, and when it is parked."""
        backoff = Backoff(first=self.dead_letter_backoff_seconds, longest=3600, jitter=1)
        return RetryPolicy(self.dead_letter_attempts, backoff)
