"""Fixtures that run the system of docker-compose.yml on images built from the unmodified Dockerfiles."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import httpx
import pytest

from local.ports import free_port
from local.settings import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

IMAGE = "db-cache-sync-serving:0.1.0"


def docker(*arguments: str) -> str:
    """Run a Docker command and return its output; raise an error if it fails."""
    return subprocess.run(
        ["docker", *arguments], check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()


class Compose:
    """A Compose project with its own ports and secrets."""

    def __init__(self, secrets: Path) -> None:
        plugin = subprocess.run(["docker", "compose", "version"], capture_output=True, check=False)
        program = ["docker-compose"] if plugin.returncode else ["docker", "compose"]
        self._command = [*program, "--project-name", "cachesync-test", "--env-file", str(secrets)]
        ports = {name: str(free_port()) for name in ("SA_PORT", "SB_PORT", "AIRFLOW_PORT")}
        self._environment = os.environ | ports
        self.sa = httpx.Client(base_url=f"http://127.0.0.1:{ports['SA_PORT']}", timeout=10)
        self.sb = httpx.Client(base_url=f"http://127.0.0.1:{ports['SB_PORT']}", timeout=10)
        self.airflow = httpx.Client(base_url=f"http://127.0.0.1:{ports['AIRFLOW_PORT']}", timeout=30)
        values = dict(line.split("=", 1) for line in secrets.read_text().splitlines() if line[:1].isalpha())
        self._login = {"username": "admin", "password": values["AIRFLOW_ADMIN_PASSWORD"]}

    def __call__(self, *arguments: str) -> str:
        """Run a Compose command and return its output; raise an error if it fails."""
        return subprocess.run(
            [*self._command, *arguments],
            check=True,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env=self._environment,
        ).stdout

    def log_in_to_airflow(self) -> None:
        """Let the client of Airflow send a token."""
        token = self.airflow.post("/auth/token", json=self._login).raise_for_status().json()["access_token"]
        self.airflow.headers["Authorization"] = f"Bearer {token}"

    def until_sa_is_ready(self) -> None:
        """Wait until sa, whose container has been started, is ready."""
        deadline = time.monotonic() + 60
        while True:
            try:
                self.sa.get("/health/ready").raise_for_status()
            except httpx.HTTPError:
                if time.monotonic() > deadline:
                    raise
                time.sleep(0.2)
            else:
                return

    def containers(self, service: str) -> list[str]:
        """Return the IDs of a service's containers."""
        return self("ps", "--quiet", service).split()


@pytest.fixture(scope="session")
def built() -> None:
    """Build both images."""
    subprocess.run(["make", "images"], check=True, cwd=REPOSITORY)


@pytest.fixture(scope="session")
def compose(built: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Compose]:  # noqa: ARG001 - must run first
    """Start the whole system, and remove it at the end."""
    folder = tmp_path_factory.mktemp("compose")
    for name in ("Makefile", ".env.example"):
        (folder / name).write_text((REPOSITORY / name).read_text())
    subprocess.run(["make", "--silent", ".env"], cwd=folder, check=True)
    project = Compose(folder / ".env")
    try:
        project("up", "--detach")
        with project.sa, project.sb, project.airflow:
            yield project
    except subprocess.CalledProcessError:
        sys.stderr.write(project("logs", "--tail", "40"))
        raise
    finally:
        project("down", "--volumes", "--timeout", "40")
