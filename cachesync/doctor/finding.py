"""What was found about one part of the system."""

from __future__ import annotations

from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from cachesync.errors import CacheSyncError

if TYPE_CHECKING:
    from collections.abc import Iterator


class Severity(StrEnum):
    """How bad a finding is, the worst first.

    Attributes:
        ERROR: something does not work, or caches can become wrong.
        WARNING: it works, but not well, or not in every situation.
        NOT_CHECKED: something that is needed to look is missing.
        OK: nothing is wrong.
    """

    ERROR = "error"
    WARNING = "warning"
    NOT_CHECKED = "not checked"
    OK = "ok"


class Finding(BaseModel):
    """One result.

    Attributes:
        part: the part of the system, such as `PostgreSQL` or `Redis of sb`.
        check: what was examined, such as `version`; a name that stays the same.
        severity: how bad it is.
        found: what was found, in words.
        remedy: what to do; None if there is nothing to do.
    """

    model_config = ConfigDict(frozen=True)

    part: str
    check: str
    severity: Severity
    found: str
    remedy: str | None = None


class Part:
    """Collects the findings about one part of the system.

    Args:
        name: the name of the part.

    Attributes:
        findings: the findings so far.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self.findings: list[Finding] = []

    def ok(self, check: str, found: str) -> None:
        """Record that nothing is wrong."""
        self._add(check, Severity.OK, found, None)

    def warning(self, check: str, found: str, remedy: str) -> None:
        """Record that something does not work well, or not in every situation."""
        self._add(check, Severity.WARNING, found, remedy)

    def error(self, check: str, found: str, remedy: str) -> None:
        """Record that something does not work, or that caches can become wrong."""
        self._add(check, Severity.ERROR, found, remedy)

    def not_checked(self, check: str, found: str, remedy: str | None = None) -> None:
        """Record that something could not be examined."""
        self._add(check, Severity.NOT_CHECKED, found, remedy)

    @contextmanager
    def looking(self, check: str) -> Iterator[None]:
        """Record an error of the library as a check that could not be made."""
        try:
            yield
        except CacheSyncError as error:
            self.not_checked(check, str(error))

    def _add(self, check: str, severity: Severity, found: str, remedy: str | None) -> None:
        self.findings.append(
            Finding(part=self._name, check=check, severity=severity, found=found, remedy=remedy)
        )
