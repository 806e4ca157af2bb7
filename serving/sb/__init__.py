"""The service sb, the central, replicated service."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

from pydantic_settings import SettingsConfigDict

from cachesync.service.settings import Port  # noqa: TC001 - pydantic reads it
from serving.app import create_app
from serving.settings import Settings, load_settings


class _Settings(Settings):
    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_file=Path(__file__).with_name(".env"), env_file_encoding="utf-8"
    )

    service: Literal["sb"] = "sb"
    port: Port = 8085
    metrics_port: Port = 9185


settings = load_settings(_Settings)
app = create_app(settings)
