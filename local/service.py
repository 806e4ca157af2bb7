"""A service of the serving tier, under gunicorn as in production."""

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
from local.process import Process
from local.settings import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Mapping


class Credentials(NamedTuple):
    """Who a service is to the database."""

    username: str
    password: str


class Service(Process):
    """One of the services `sa` and `sb`.

    Arguments:
        folder: where its log is
        name: `sa` or `sb`
        dsn: the database; of this address only where it is, since the service has its own credentials
        redis_url: its own cache
        bootstrap_servers: Kafka
        port: where it listens; a free port when None
        environment: more settings, or others

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
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.port = port or free_port()
        database = urlsplit(dsn)
        self._environment = {
            "DB_HOST": database.hostname or HOST,
            "DB_PORT": str(database.port or 5432),
            "DB_NAME": unquote(database.path.removeprefix("/")),
            "REDIS_URL": redis_url,
            "KAFKA_BOOTSTRAP_SERVERS": bootstrap_servers,
            "CACHESYNC_ENTITIES": str(REPOSITORY / "entities.toml"),
            "PORT": str(self.port),
            **(environment or {}),
        }
        super().__init__(name, folder, {name: self.port})

    @property
    def url(self) -> str:
        """Where it answers."""
        return f"http://{HOST}:{self.port}"

    def command(self) -> list[str]:
        """`gunicorn` with the settings of the repository."""
        gunicorn = Path(sys.executable).with_name("gunicorn")
        return [str(gunicorn), "--config", "serving/gunicorn.conf.py", f"serving.{self.name}:app"]

    def working_folder(self) -> Path:
        """The repository, where `serving` can be imported."""
        return REPOSITORY

    def environment(self) -> dict[str, str]:
        """The service's settings."""
        return os.environ | self._environment

    def ready(self) -> bool:
        """Whether it says so."""
        try:
            return accepts(self.port) and httpx.get(f"{self.url}/health/ready", timeout=5).is_success
        except httpx.TransportError:
            return False


def credentials(service: str) -> Credentials:
    """What the service's `.env` says; made from `.env.example`, with a new password, if there is none."""
    example = REPOSITORY / "serving" / service / ".env.example"
    file = example.with_name(".env")
    if not file.exists():
        file.touch(mode=0o600)
        file.write_text(example.read_text().replace("change-me", secrets.token_urlsafe(24)))
    values = dotenv_values(file)
    username, password = values.get("DB_USERNAME"), values.get("DB_PASSWORD")
    if not username or not password:
        message = f"{file} must set DB_USERNAME and DB_PASSWORD"
        raise LocalError(message)
    return Credentials(username, password)
