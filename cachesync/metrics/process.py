"""What every process exports."""

from __future__ import annotations

import platform
from importlib import import_module
from typing import Final

from cachesync.metrics.kinds import DeclaredCounter, DeclaredGauge

build_info: Final = DeclaredGauge(
    "cachesync_build_info",
    "1, with the versions of this package and of Python",
    ["version", "python"],
    combined="livemax",
)
restarts: Final = DeclaredCounter(
    "cachesync_restarts",
    "Times that work of this process, such as a stream or a relay, ended with an error",
    ["work"],
)


def begin() -> None:
    """Export what every process exports."""
    package = import_module(__name__.partition(".")[0])
    build_info.set(1, package.__version__, platform.python_version())
