"""A service of the serving tier, run by gunicorn as in production."""

from __future__ import annotations

import os
import secrets
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import unquote, urlsplit

import httpx
from dotenv import dotenv_values

from local.errors import LocalError
from local.ports import HOST, accepts, free_port
from local.private_file import write_private
from local.process import Process
from local.settings import REPOSITORY, SERVICES

if TYPE_CHECKING:
    from collections.abc import Mapping


class Credentials(NamedTuple):
    """A service's database login."""

    username: str
    password: str


class Service(Process):
    """One of the services `sa` and `sb`, or one of another name.

    Args:
        folder: directory of its log.
        name: name of the service.
        dsn: address of the database; its user and password are ignored, since the service has its own login.
        redis_url: the service's own cache.
        bootstrap_servers: the Kafka brokers.
        port: port to listen on; None picks a free one.
        metrics_port: port of `/metrics`; None picks a free one.
        environment: additional settings, which override the others.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        *,
        dsn: str,
        redis_url: str,
        bootstrap_servers: str,
        port: int | None = None,
        metrics_port: int | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port or free_port()
        self.metrics_port = metrics_port or free_port()
        database = urlsplit(dsn)
        self._module = name if name in SERVICES else "named"
        self._environment = {
            "SERVICE": name,
            "DB_HOST": database.hostname or HOST,
            "DB_PORT": str(database.port or 5432),
            "DB_NAME": unquote(database.path.removeprefix("/")),
            "REDIS_URL": redis_url,
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
            "CACHESYNC_ENTITIES": str(REPOSITORY / "entities.toml"),
            "PORT": str(self.port),
            "METRICS_PORT": str(self.metrics_port),
            **(environment or {}),
        }
        super().__init__(name, folder, {name: self.port, f"{name}_metrics": self.metrics_port})

    @property
    def url(self) -> str:
        """The base URL of its API."""
        return f"http://{HOST}:{self.port}"

    @property
    def metrics_url(self) -> str:
        """The URL of its metrics."""
        return f"http://{HOST}:{self.metrics_port}/metrics"

    def command(self) -> list[str]:
        """Return the `gunicorn` command line with the repository's configuration."""
        gunicorn = Path(sys.executable).with_name("gunicorn")
        return [str(gunicorn), "--config", "python:serving.gunicorn_conf", f"serving.{self._module}:app"]

    def working_folder(self) -> Path:
        """Return the repository, from which `serving` can be imported."""
        return REPOSITORY

    def environment(self) -> dict[str, str]:
        """Return the caller's environment with the service's settings."""
        return os.environ | self._environment

    def ready(self) -> bool:
        """Return whether the service reports that it is ready."""
        try:
            return accepts(self.port) and httpx.get(f"{self.url}/health/ready", timeout=5).is_success
        except httpx.TransportError:
            return False


def credentials(service: str) -> Credentials:
    """Return the login in the service's `.env` file.

    If the file is missing, it is created from `.env.example` with a random password.

    Raises:
        LocalError: the file does not set both values.
    """
    example = REPOSITORY / "serving" / service / ".env.example"
    file = example.with_name(".env")
    if not file.exists():
        write_private(file, example.read_text().replace("change-me", secrets.token_urlsafe(24)))
    values = dotenv_values(file)
    username, password = values.get("DB_USERNAME"), values.get("DB_PASSWORD")
    if not username or not password:
        message = f"{file} must set DB_USERNAME and DB_PASSWORD"
        raise LocalError(message)
    return Credentials(username, password)
