"""The program, with a package of a version that was not tested."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from pathlib import Path


def with_version_99(folder: Path, package: str) -> dict[str, str]:
    """Return an environment in which another version of a package seems to be installed."""
    metadata = folder / f"{package.replace('-', '_')}-99.0.dist-info" / "METADATA"
    metadata.parent.mkdir()
    metadata.write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 99.0\n")
    return {**os.environ, "PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}


@pytest.mark.parametrize(
    ("arguments", "output"), [(["--version"], "cachesync 0.1.0\n"), (["install"], ""), ([], "")]
)
def test_untested_package_ends_every_command_with_one_line(
    tmp_path: Path, arguments: list[str], output: str
) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "cachesync", *arguments],
        env=with_version_99(tmp_path, "redis"),
        capture_output=True,
        text=True,
        check=False,
    )
    (line,) = ended.stderr.splitlines()
    assert line.startswith(
        "cachesync: redis 99.0 is installed, but db-cache-sync uses its internals and was tes"
    )
    assert (ended.returncode, ended.stdout) == (1, output)


def test_program_that_is_interrupted_while_it_is_loaded_ends_quietly(tmp_path: Path) -> None:
    (tmp_path / "structlog.py").write_text("raise KeyboardInterrupt", encoding="utf-8")
    ended = subprocess.run(
        [sys.executable, "-m", "cachesync", "relay"],
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_untested_package_ends_the_start_of_a_service_with_one_line(tmp_path: Path) -> None:
    ended = subprocess.run(
        [sys.executable, "-m", "gunicorn", "--config", "python:serving.gunicorn_conf", "serving.sa:app"],
        env={**with_version_99(tmp_path, "prometheus-client"), "DB_USERNAME": "sa", "DB_PASSWORD": "secret"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 1
    (line,) = ended.stderr.splitlines()
    assert line.startswith(
        "cannot start: prometheus-client 99.0 is installed, but db-cache-sync uses its internals"
    )


def test_service_can_listen_on_an_address_of_ipv6() -> None:
    ended = subprocess.run(
        [
            *(sys.executable, "-m", "gunicorn", "--config", "python:serving.gunicorn_conf"),
            "--print-config",
            "serving.sa:app",
        ],
        env={**os.environ, "DB_USERNAME": "sa", "DB_PASSWORD": "secret", "LISTEN_ADDRESS": "::1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert "['[::1]:8090', '[::1]:9190']" in ended.stdout
