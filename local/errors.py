"""Errors of the local system; each message says what to do about it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class LocalError(Exception):
    """Base class for errors of the local system."""


class PortTakenError(LocalError):
    """Ports that the system needs are in use by other programs."""

    def __init__(self, taken: Mapping[str, int]) -> None:
        super().__init__(
            "\n".join(
                f"port {port} ({name}) is already in use; set LOCAL_{name.upper().replace('-', '_')}_PORT"
                for name, port in taken.items()
            ),
        )


class StateInUseError(LocalError):
    """Another run uses the same state directory."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} is in use by another run; stop that run, or set LOCAL_STATE")


class MissingToolError(LocalError):
    """A required program is missing and cannot be installed automatically."""


class CommandError(LocalError):
    """A command exited with an error."""

    def __init__(self, command: str, output: str) -> None:
        super().__init__(f"{command} failed: {output.strip()}")


class _LogError(LocalError):
    def __init__(self, message: str, log: Path, lines: str) -> None:
        super().__init__(f"{message}; last lines of {log}:\n{lines}")


class ProcessExitedError(_LogError):
    """A process exited before it was ready."""


class StartTimeoutError(_LogError):
    """A process is running but did not become ready in time."""
