"""The public interface: the names that `cachesync` exports, what they cost to import, and their page."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from inspect import getmembers, isclass
from pathlib import Path

import pytest

import cachesync
from cachesync import errors

REPOSITORY = Path(__file__).parents[2]
ELSEWHERE = {
    "cachesync.change": {"Change", "Operation", "Row"},
    "cachesync.entity": {"Entity", "load_entities"},
    "cachesync.service.cache": {"EntityCache", "Outcome", "Read", "Written"},
    "cachesync.service.caches": {"AsyncCache", "AsyncCaches"},
    "cachesync.service.following": {"Followed"},
    "cachesync.service.row_input": {"RowInput"},
    "cachesync.service.service": {"Service"},
    "cachesync.service.settings": {"ServiceSettings"},
}
EXPORTED = {**ELSEWHERE, "cachesync.errors": {name for name, _ in getmembers(errors, isclass)}}
EXPENSIVE = {"asyncpg", "confluent_kafka", "pydantic", "redis"}


def loaded_by(code: str) -> set[str]:
    """The top-level packages that a new interpreter has loaded after the code."""
    code += "; import sys; print(*sys.modules)"
    ended = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, check=True)
    return {module.partition(".")[0] for module in ended.stdout.decode().split()}


def test_the_exported_names_are_those_listed_here_and_every_error_in_order() -> None:
    assert cachesync.__all__ == sorted(set().union(*EXPORTED.values()))
    assert {"CacheSyncError", "RowError", "TooManyDeadLettersError"} <= EXPORTED["cachesync.errors"]


@pytest.mark.parametrize(
    ("module", "name"), [(module, name) for module, names in EXPORTED.items() for name in sorted(names)]
)
def test_an_exported_name_is_what_its_module_defines(module: str, name: str) -> None:
    value = getattr(cachesync, name)
    assert value is getattr(sys.modules[module], name)
    assert value.__module__ == module


def test_type_checkers_see_the_same_names() -> None:
    tree = ast.parse(Path(cachesync.__file__).read_text(encoding="utf-8"))
    block, _ = [node for node in tree.body if isinstance(node, ast.If)]
    seen = {
        node.module: {alias.name for alias in node.names}
        for node in block.body
        if isinstance(node, ast.ImportFrom)
    }
    assert seen == EXPORTED


def test_dir_lists_the_names_before_they_are_used() -> None:
    assert dir(cachesync) == sorted([*cachesync.__all__, "__version__"])


def test_a_name_that_is_not_exported_is_missing_like_any_other() -> None:
    with pytest.raises(AttributeError, match="module 'cachesync' has no attribute 'Sevrice'"):
        _ = cachesync.Sevrice  # type: ignore[attr-defined] # a type checker notices it, too
    with pytest.raises(ImportError, match="cannot import name 'Sevrice' from 'cachesync'"):
        from cachesync import Sevrice  # type: ignore[attr-defined] # noqa: F401, PLC0415


def test_importing_the_library_loads_none_of_its_dependencies() -> None:
    assert not loaded_by("import cachesync; dir(cachesync); cachesync.__version__") & EXPENSIVE


def test_using_a_name_loads_what_it_needs() -> None:
    assert not loaded_by("from cachesync import Row, RowNotFoundError") & EXPENSIVE
    assert loaded_by("from cachesync import Service") >= EXPENSIVE


def test_every_name_is_on_the_reference_page() -> None:
    page = (REPOSITORY / "docs" / "reference.md").read_text(encoding="utf-8")
    assert set(cachesync.__all__) <= set(re.findall(r"^\| `(\w+)", page, re.MULTILINE))
