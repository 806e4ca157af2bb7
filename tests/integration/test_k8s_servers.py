"""The script and the command line of the PostgreSQL and Redis pods in the overlay `minikube`, run locally."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import redis
import yaml

from local.ports import HOST, free_port
from local.postgres import Postgres, address, client, run_sql
from local.redis import redis_server
from local.settings import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Iterator

OVERLAY = REPOSITORY / "k8s/overlays/minikube"
PASSWORDS = {"sa": "of-sa", "sb": "of-sb", "owner": "of-owner", "worker": "of-worker"}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Postgres]:
    """A separate PostgreSQL server, on which only the script has created roles."""
    with Postgres(tmp_path_factory.mktemp("k8s")) as started:
        script = (OVERLAY / "logins.sql").read_text().replace("/sample.sql", str(OVERLAY / "sample.sql"))
        variables = {f"{name.upper()}_DB_PASSWORD": password for name, password in PASSWORDS.items()}
        command, environment = client("psql", started.dsn, "-X", "-v", "ON_ERROR_STOP=1")
        subprocess.run(
            command,
            input=script,
            env=environment | variables,
            text=True,
            check=True,
            capture_output=True,
        )
        yield started


def dsn(server: Postgres, user: str) -> str:
    return address(server.dsn, database="cachesync", user=user, password=PASSWORDS[user])


def test_owner_can_install_and_each_login_has_the_access_it_needs(server: Postgres) -> None:
    for _ in range(2):
        subprocess.run(
            [sys.executable, "-m", "cachesync", "install"],
            cwd=REPOSITORY,
            env=os.environ
            | {
                "CACHESYNC_DSN": dsn(server, "owner"),
                "CACHESYNC_ENTITIES": str(REPOSITORY / "k8s/base/entities.toml"),
            },
            check=True,
            capture_output=True,
        )
    run_sql(dsn(server, "sa"), "INSERT INTO student (id, name, age) VALUES (1, 'Ann', 20)")
    assert run_sql(dsn(server, "sb"), "SELECT name FROM student") == "Ann"
    assert run_sql(dsn(server, "worker"), "SELECT count(*) FROM cachesync.change_log") == "1"


def test_redis_requires_the_password_and_does_not_expose_it_in_the_process_list(tmp_path: Path) -> None:
    manifest: dict[str, Any] = yaml.safe_load((OVERLAY / "redis-pod.yaml").read_text())
    [container] = manifest["spec"]["template"]["spec"]["containers"]
    port = free_port()
    [script] = container["args"]
    script = script.replace("redis-server -", f"{redis_server()} - --port {port}")
    process = subprocess.Popen(
        [*container["command"], script],
        env=os.environ | {"REDISCLI_AUTH": "secret"},
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        text=True,
    )
    with process:
        try:
            assert process.stdout is not None
            assert any("Ready to accept connections" in line for line in process.stdout)
            with redis.Redis(host=HOST, port=port, password="secret") as client:
                assert client.ping()
            with redis.Redis(host=HOST, port=port) as client, pytest.raises(redis.AuthenticationError):
                client.ping()
            assert b"secret" not in Path(f"/proc/{process.pid}/cmdline").read_bytes()
        finally:
            process.terminate()
