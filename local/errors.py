"""What can go wrong with a local part, each with a message that says what to do."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path


class LocalError(Exception):
    """A part of the local system could not do what it was asked to do."""


class PortTakenError(LocalError):
    """Another program listens on ports that parts of the system need."""

    def __init__(self, taken: Mapping[str, int]) -> None:
        super().__init__(
            "\n".join(
                f"port {port} ({name}) is taken; set LOCAL_{name.upper().replace('-', '_')}_PORT"
                for name, port in taken.items()
            ),
        )


class StateInUseError(LocalError):
    """Another run uses the same state folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(f"{folder} is used by another run; stop that one, or set LOCAL_STATE")


class MissingToolError(LocalError):
    """A program that cannot be installed from here is missing."""


class CommandError(LocalError):
    """A command that should have succeeded did not."""

    def __init__(self, command: str, output: str) -> None:
        super().__init__(f"{command} failed: {output.strip()}")


class _LogError(LocalError):
    def __init__(self, message: str, log: Path, lines: str) -> None:
        super().__init__(f"{message}; the end of {log}:\n{lines}")


class ProcessExitedError(_LogError):
    """A process ended before it was ready."""


class StartTimeoutError(_LogError):
    """A process runs, but was not ready in time."""
