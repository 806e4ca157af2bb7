"""Runs the demo on the system of docker-compose.yml, from a container in the same network."""

from __future__ import annotations

import os
import re
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

import psycopg
import redis
from rich.console import Console

from local.demo import Story
from local.errors import LocalError

_START_SECONDS = 30.0


class _Service(NamedTuple):
    url: str


class _Airflow(NamedTuple):
    url: str
    username: str
    password: str
    jenkins_username: str
    jenkins_password: str


class _Redis(NamedTuple):
    url: str

    def stop(self) -> None:
        """Shut the server down; Docker restarts it immediately."""
        with redis.Redis.from_url(self.url) as client:
            client.shutdown(nosave=True)

    def start(self) -> None:
        """Wait until Docker has restarted the server.

        Raises:
            LocalError: it has not within 30 seconds.
        """
        deadline = time.monotonic() + _START_SECONDS
        with redis.Redis.from_url(self.url) as client:
            while time.monotonic() < deadline:
                with suppress(redis.ConnectionError):
                    client.ping()
                    return
                time.sleep(0.05)
        message = f"Docker did not restart sb's Redis within {_START_SECONDS:.0f} s"
        raise LocalError(message)


class Compose:
    """The system's components, at their addresses inside the network."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.services = {"sa": _Service("http://sa:8090"), "sb": _Service("http://balancer:8085")}
        self.redis = {"sb": _Redis(os.environ["REDIS_SB_URL"])}
        self.redis_urls = {name: server.url for name, server in self.redis.items()}
        self.bootstrap_servers = "kafka:9092"
        self.worker_dsn = os.environ["WORKER_DSN"]
        self.airflow = _Airflow(
            "http://airflow-api-server:8080",
            "admin",
            os.environ["AIRFLOW_ADMIN_PASSWORD"],
            "jenkins",
            os.environ["AIRFLOW_JENKINS_PASSWORD"],
        )
        self.triggerer_log = "the output of `docker compose logs airflow-triggerer`"
        self._owner_dsn = os.environ["OWNER_DSN"]

    def sql(self, statement: str, **variables: str) -> str:
        """Run a statement as the administrator and return its output, as `psql -At` prints it.

        The statement refers to its variables as psql does: `:name` or `:'name'`.
        """
        query = re.sub(r":'?(\w+)'?", r"%(\1)s", statement).encode()
        with psycopg.connect(self._owner_dsn) as connection:
            cursor = connection.execute(query, variables)
            return "" if cursor.description is None else "\n".join(str(value) for (value,) in cursor)


def main() -> None:
    """Run the demo.

    Raises:
        SystemExit: a step failed; the message says which one.
    """
    try:
        Story(Compose(), Console()).run()
    except LocalError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
