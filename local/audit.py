"""Checks the pinned packages for known vulnerabilities and for newer releases.

Exit status: 0 if no vulnerability is known, 1 if some are, 3 if the vulnerability data could not be reached.
Newer releases do not change it, because most of them are no reason to hurry.
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console

from local.settings import REPOSITORY

if TYPE_CHECKING:
    from pathlib import Path

_console = Console(highlight=False, markup=False, soft_wrap=True)

# The pins of the other files are the same.
_REQUIREMENTS = REPOSITORY / "requirements.txt"
_VULNERABLE = 1
_NOT_CHECKED = 3


class _UnreachableError(Exception):
    """A data source did not answer; the text gives the reason."""


def vulnerabilities(requirements: Path) -> tuple[list[str], int]:
    """Ask OSV, or the server in `PIP_AUDIT_OSV_URL`, for the known vulnerabilities of pinned packages.

    Args:
        requirements: a file with a hash for each pin.

    Returns:
        A description of each vulnerability, and the number of packages.

    Raises:
        _UnreachableError: the server did not answer.
    """
    answer = _python(
        "pip_audit", "--requirement", str(requirements), "--disable-pip", "--require-hashes",
        "--vulnerability-service", "osv", "--format", "json", "--progress-spinner", "off",
    )  # fmt: skip
    if not answer.stdout:
        raise _UnreachableError(_last_line(answer.stderr))
    packages: list[dict[str, Any]] = json.loads(answer.stdout)["dependencies"]
    skipped = [package for package in packages if "skip_reason" in package]
    if skipped:
        message = f"{len(skipped)} packages, such as {skipped[0]['name']}: {skipped[0]['skip_reason']}"
        raise _UnreachableError(message)
    found = [
        f"{package['name']} {package['version']}: {', '.join([one['id'], *one['aliases']])}; "
        f"fixed in {', '.join(one['fix_versions']) or 'no release yet'}"
        for package in packages
        for one in package["vulns"]
    ]
    return found, len(packages)


def newer_releases(*selection: str) -> list[str]:
    """Ask the package index, as pip is configured, for releases newer than the installed packages.

    Args:
        selection: options for `pip list`, such as `--path`.

    Raises:
        _UnreachableError: the index did not answer.
    """
    # `pip list` takes an index that does not answer for one without newer releases.
    reachable = _python("pip", "index", "versions", "pip", "--quiet")
    if reachable.returncode:
        raise _UnreachableError(_last_line(reachable.stderr))
    answer = _python("pip", "list", "--outdated", "--format", "json", *selection)
    if answer.returncode:
        raise _UnreachableError(_last_line(answer.stderr))
    return [
        f"{one['name']} {one['version']}, newest {one['latest_version']}" for one in json.loads(answer.stdout)
    ]


def _python(module: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", module, *arguments], capture_output=True, text=True, check=False
    )


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["no output"])[-1]


def _print(title: str, lines: list[str]) -> None:
    _console.print(f"{title}: {len(lines) or 'none'}", *lines, sep="\n  ")


def main() -> int:
    """Print the findings and return the exit status."""
    status = 0
    try:
        found, count = vulnerabilities(_REQUIREMENTS)
        _print(f"known vulnerabilities in {count} packages", found)
        status = _VULNERABLE if found else 0
    except _UnreachableError as error:
        _console.print(f"known vulnerabilities: NOT CHECKED, the data could not be reached: {error}")
        status = _NOT_CHECKED
    try:
        _print("packages behind their newest release", newer_releases())
    except _UnreachableError as error:
        reason = f"the package index could not be reached: {error}"
        _console.print(f"packages behind their newest release: NOT CHECKED, {reason}")
    return status


if __name__ == "__main__":
    sys.exit(main())
