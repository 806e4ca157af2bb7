"""Examines the installed packages."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import TYPE_CHECKING, Final

from confluent_kafka import libversion
from packaging.requirements import Requirement

from cachesync import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cachesync.doctor.finding import Part

_DISTRIBUTION: Final = "db-cache-sync"
_NAMED: Final = ("asyncpg", "confluent-kafka", "redis", "hiredis")


def examine_packages(part: Part) -> None:
    """Compare the installed packages with the versions that this distribution requires."""
    versions = [f"{name} {metadata.version(name)}" for name in _NAMED]
    part.ok(
        "version",
        f"db-cache-sync {__version__}, Python {platform.python_version()}, {', '.join(versions)}, "
        f"librdkafka {libversion()[0]}",
    )
    try:
        required = metadata.requires(_DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        # A checkout, whose packages are pinned.
        return
    compare_requirements(part, required)


def compare_requirements(part: Part, required: Iterable[str]) -> None:
    """Report the packages whose installed version is not one that is required.

    Args:
        part: takes the findings.
        required: requirements, such as `redis[hiredis]>=8.1,<8.2`; those of extras are passed over.
    """
    for requirement in map(Requirement, required):
        if requirement.marker is not None and not requirement.marker.evaluate({"extra": ""}):
            continue
        remedy = f"run pip install '{requirement}'"
        try:
            installed = metadata.version(requirement.name)
        except metadata.PackageNotFoundError:
            part.error("requirements", f"{requirement.name} is not installed", remedy)
            continue
        if not requirement.specifier.contains(installed, prereleases=True):
            part.error(
                "requirements",
                f"{requirement.name} {installed} is installed, but {requirement.specifier} is required",
                remedy,
            )
