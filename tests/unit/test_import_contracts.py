"""Each import contract of pyproject.toml notices everything that it forbids."""

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
SETTINGS = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["tool"]["importlinter"]
CONTRACTS = {contract["name"]: contract for contract in SETTINGS["contracts"]}

# By contract: the module that breaks it, by importing everything that the contract lists as forbidden.
MODULES = {
    "The library's packages are layers": "cachesync/slots/layout.py",
    "No circular imports, not even for types": "local/ports.py",
    "The library depends on neither HTTP nor Airflow, nor on what is built on it": (
        "cachesync/service/cache.py"
    ),
    "The services access databases and Kafka only through the library": "serving/body.py",
    "The services use only the service side of the library": "serving/body.py",
    "The Airflow side depends on neither the services nor the local system": (
        "plugins/cachesync_airflow/params.py"
    ),
    "The local system does not depend on the benchmarks or the tests": "local/ports.py",
    "The benchmarks do not depend on the tests": "benchmarks/percentiles.py",
}
# The import that breaks a contract without such a list.
IMPORTS = {
    "The library's packages are layers": "from cachesync.install import installer",
    "No circular imports, not even for types": (
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from local.process import Process"
    ),
}


def test_every_contract_is_tested() -> None:
    assert MODULES.keys() == CONTRACTS.keys()


@pytest.mark.parametrize("contract", MODULES)
def test_forbidden_imports_break_their_contract(contract: str, tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(REPOSITORY / package, tmp_path / Path(package).name)
    shutil.copy(REPOSITORY / "pyproject.toml", tmp_path)
    forbidden = CONTRACTS[contract].get("forbidden_modules", [])
    lines = [f"import {name}" for name in forbidden] or [IMPORTS[contract]]
    with (tmp_path / MODULES[contract].removeprefix("plugins/")).open("a", encoding="utf-8") as file:
        file.write("\n" + "\n".join(lines) + "\n")
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
    for name in forbidden:
        assert f"-> {name} (l." in checked.stdout
