"""The figures of a run, and the file that keeps them."""

from __future__ import annotations

import os
import platform
import statistics
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

import psutil
from pydantic import BaseModel

from local.postgres import programs
from local.process import run

if TYPE_CHECKING:
    from collections.abc import Mapping

_PACKAGES: Final = ("apache-airflow", "asyncpg", "confluent-kafka", "falcon", "gunicorn", "redis", "uvicorn")


class Spread(NamedTuple):
    """The median of a figure over the rounds, and its lowest and highest value."""

    median: float
    low: float
    high: float


class Results(BaseModel):
    """The results of a run.

    Attributes:
        date: when it began, in UTC.
        seconds: how long it took.
        machine: what it ran on.
        versions: versions of the software.
        other_cores: cores in use by other programs when it began.
        figures: the values of every figure, one per round, by name.
    """

    date: str
    seconds: float = 0.0
    machine: dict[str, str]
    versions: dict[str, str]
    other_cores: float
    figures: dict[str, list[float]] = {}

    @classmethod
    def begin(cls) -> Results:
        """Return results without figures, with a description of the machine."""
        return cls(
            date=datetime.now(UTC).isoformat(timespec="minutes"),
            machine={
                "cores": str(len(os.sched_getaffinity(0))),
                "memory": f"{psutil.virtual_memory().total / 2**30:.0f} GB",
                "processor": _processor(),
                "system": f"{platform.system()} {platform.release()}",
            },
            versions={
                "Python": platform.python_version(),
                "PostgreSQL": run([str(programs() / "postgres"), "--version"]).split()[-1],
                **{name: version(name) for name in _PACKAGES},
            },
            other_cores=round(psutil.cpu_percent(interval=2) / 100 * (os.cpu_count() or 1), 2),
        )

    @classmethod
    def load(cls, file: Path) -> Results:
        """Read the file."""
        return cls.model_validate_json(file.read_text(encoding="utf-8"))

    def save(self, file: Path) -> None:
        """Write the file."""
        rounded = {name: [float(f"{value:.4g}") for value in values] for name, values in self.figures.items()}
        text = self.model_copy(update={"figures": rounded}).model_dump_json(indent=1)
        file.write_text(f"{text}\n", encoding="utf-8")

    def add(self, prefix: str, figures: Mapping[str, float]) -> None:
        """Add the figures of one round."""
        for name, value in figures.items():
            self.figures.setdefault(f"{prefix}.{name}", []).append(value)

    def spread(self, name: str) -> Spread | None:
        """Return a figure; None if it was not measured."""
        values = self.figures.get(name)
        return Spread(statistics.median(values), min(values), max(values)) if values else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        return next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()
