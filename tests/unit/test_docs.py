"""The documentation: links lead somewhere, and the functions that it names exist."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from cachesync_airflow.settings import AirflowSettings

import cachesync
from local.settings import Settings as LocalSettings
from serving.settings import Settings

if TYPE_CHECKING:
    from pydantic import BaseModel

REPOSITORY = Path(__file__).parents[2]
PAGES = [*REPOSITORY.glob("*.md"), *(REPOSITORY / "docs").rglob("*.md")]
LINK = re.compile(r"(?<!!)\[([^\]]*)\]\(([^)\s]+)\)")
ELSEWHERE = re.compile(r"""(?:\bsrc=|\bfrom |\burl\(|<link\b[^>]*\bhref=)["']?(?:https?:)?//[^"')]+""")
HEADING = re.compile(r"^#+ +(.*)$", re.MULTILINE)
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)


def text_of(page: Path) -> str:
    return FENCE.sub("", page.read_text(encoding="utf-8"))


@cache
def anchors(page: Path) -> set[str]:
    """The anchors that GitHub creates for a page's headings."""
    headings = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in HEADING.findall(text_of(page)))
    return {heading.strip().replace(" ", "-") for heading in headings}


@cache
def names_in(module: Path) -> set[str]:
    """The functions, classes and methods that a module defines, methods as `Class.method`."""
    names = set()
    for node in ast.parse(module.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            names |= {
                f"{node.name}.{inner.name}"
                for inner in node.body
                if isinstance(inner, ast.FunctionDef | ast.AsyncFunctionDef)
            }
    return names


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(REPOSITORY)))
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    broken = []
    for _, target in LINK.findall(text_of(page)):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        linked = (page.parent / path).resolve() if path else page
        if not linked.exists() or (anchor and linked.suffix == ".md" and anchor not in anchors(linked)):
            broken.append(target)
    assert not broken


def test_pages_become_a_site(tmp_path: Path) -> None:
    """Every page is in the table of contents, names in the API are described, and all works offline."""
    command = ["sphinx", "--quiet", "--fail-on-warning", "--builder", "html", "docs", str(tmp_path)]
    built = subprocess.run(
        [sys.executable, "-m", *command], cwd=REPOSITORY, capture_output=True, text=True, check=False
    )
    assert (built.returncode, built.stderr) == (0, "")
    api = (tmp_path / "api.html").read_text(encoding="utf-8")
    assert [
        name
        for name in cachesync.__all__
        if f'id="cachesync.{name}"' not in api and f'id="cachesync.errors.{name}"' not in api
    ] == []
    files = [file for suffix in ("html", "css") for file in tmp_path.rglob(f"*.{suffix}")]
    assert {found for file in files for found in ELSEWHERE.findall(file.read_text(encoding="utf-8"))} == set()


@pytest.mark.parametrize(
    ("settings", "prefix"),
    [(Settings, ""), (AirflowSettings, "CACHESYNC_"), (LocalSettings, "LOCAL_")],
    ids=["services", "airflow", "local"],
)
def test_every_setting_is_described_with_its_default(settings: type[BaseModel], prefix: str) -> None:
    page = (REPOSITORY / "docs" / "settings.md").read_text(encoding="utf-8")
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| `")]
    wrong = []
    for field, info in settings.model_fields.items():
        name = str(info.validation_alias or prefix + field.upper())
        described = [row for row in rows if f"`{name}`" in row[0]]
        if not described:
            wrong.append(f"{name} is missing")
        elif isinstance(info.default, int | float | str) and not any(
            f"`{info.default}`" in row[1] for row in described
        ):
            wrong.append(f"{name} has the default {info.default}")
    assert not wrong


def test_functions_in_the_journeys_exist() -> None:
    page = REPOSITORY / "docs" / "architecture.md"
    named = [
        (label.strip("`"), (page.parent / target).resolve())
        for label, target in LINK.findall(text_of(page))
        if target.endswith(".py") and not target.endswith("__init__.py")
    ]
    assert len(named) > 20
    # A module may be linked by its own name.
    missing = [name for name, module in named if name != module.stem and name not in names_in(module)]
    assert not missing
