"""A service of any name, given by the variable SERVICE: `gunicorn --config ... serving.named:app`."""

from __future__ import annotations

from typing import ClassVar

from pydantic_settings import SettingsConfigDict

from serving.app import create_app
from serving.settings import Settings, load_settings


class _Settings(Settings):
    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_file=".env", env_file_encoding="utf-8"
    )


settings = load_settings(_Settings)
app = create_app(settings)
