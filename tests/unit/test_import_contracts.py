"""Each import contract of pyproject.toml notices what it forbids."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PACKAGES = ("cachesync", "serving", "local", "benchmarks", "plugins/cachesync_airflow")
CONTRACTS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]

# By contract: a module, and an import in it that the contract forbids.
FORBIDDEN = {
    "The library's packages are layers": (
        "cachesync/slots/layout.py",
        "from cachesync.install import installer",
    ),
    "No circular imports, not even for types": (
        "local/ports.py",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from local.process import Process",
    ),
    "The library depends on neither HTTP nor Airflow, nor on what is built on it": (
        "cachesync/service/cache.py",
        "import falcon",
    ),
    "The services access databases and Kafka only through the library": ("serving/body.py", "import asyncpg"),
    "The services use only the service side of the library": (
        "serving/body.py",
        "from cachesync.slots import layout",
    ),
    "The Airflow side depends on neither the services nor the local system": (
        "plugins/cachesync_airflow/params.py",
        "import serving",
    ),
}


def test_every_contract_is_tested() -> None:
    assert FORBIDDEN.keys() == {contract["name"] for contract in CONTRACTS}


@pytest.mark.parametrize("contract", FORBIDDEN)
def test_a_forbidden_import_breaks_its_contract(contract: str, tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, tmp_path / Path(package).name)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    module, line = FORBIDDEN[contract]
    with (tmp_path / module.removeprefix("plugins/")).open("a", encoding="utf-8") as file:
        file.write(f"\n{line}\n")
    checked = subprocess.run(
        [Path(sys.executable).with_name("lint-imports"), "--no-cache"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": "."},
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.returncode == 1, checked.stdout + checked.stderr
    assert f"{contract} BROKEN" in checked.stdout
    assert " 1 broken" in checked.stdout
