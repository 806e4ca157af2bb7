"""The versions of the packages whose internals are used."""

from __future__ import annotations

import tomllib
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from cachesync.slots import redis_py_internals
from cachesync.tested_packages import require_tested
from serving import prometheus_internals, uvicorn_internals

if TYPE_CHECKING:
    from types import ModuleType

PYPROJECT = Path(__file__).parents[2] / "pyproject.toml"


@pytest.mark.parametrize(
    ("package", "module"),
    [
        ("redis", redis_py_internals),
        ("uvicorn", uvicorn_internals),
        ("prometheus-client", prometheus_internals),
    ],
)
def test_dependency_is_bounded_to_the_tested_versions(package: str, module: ModuleType) -> None:
    project = tomllib.loads(PYPROJECT.read_text(encoding="utf-8"))["project"]
    lines = [*project["dependencies"], *project["optional-dependencies"]["serving"]]
    requirements = [Requirement(line) for line in lines]
    [bound] = [requirement.specifier for requirement in requirements if requirement.name == package]
    assert bound == SpecifierSet(module.TESTED)


def test_tested_version_is_accepted() -> None:
    require_tested("redis", f"=={version('redis')}")


def test_untested_version_is_rejected_with_package_version_and_remedy() -> None:
    with pytest.raises(ImportError) as caught:
        require_tested("redis", ">=1.2,<1.3")
    message = str(caught.value)
    assert message.startswith(f"redis {version('redis')} is installed")
    assert message.endswith("run `pip install 'redis>=1.2,<1.3'`")
