"""The metrics that the code declares."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import NamedTuple

from prometheus_client.metrics import MetricWrapperBase

from cachesync.metrics.kinds import Declared

REPOSITORY = Path(__file__).parents[2]
FILES = (
    *(REPOSITORY / "cachesync" / "metrics").glob("[a-z]*.py"),
    REPOSITORY / "serving" / "metrics.py",
)


class Metric(NamedTuple):
    """A declared metric."""

    name: str
    kind: str
    labels: tuple[str, ...]
    documentation: str


def _read(value: object) -> Metric | None:
    if isinstance(value, Declared):
        return Metric(value.name, value.kind, value.label_names, value.documentation)
    if isinstance(value, MetricWrapperBase):
        (described,) = value.describe()
        suffix = "_total" if described.type == "counter" else ""
        return Metric(
            f"{described.name}{suffix}",
            described.type,
            tuple(value._labelnames),  # noqa: SLF001 - not public
            described.documentation,
        )
    return None


def declared() -> dict[str, list[Metric]]:
    """The metrics of each module, by its name."""
    found = {}
    for file in FILES:
        module = import_module(".".join(file.relative_to(REPOSITORY).with_suffix("").parts))
        found[module.__name__] = [metric for value in vars(module).values() if (metric := _read(value))]
    return {name: metrics for name, metrics in found.items() if metrics}


def series() -> set[str]:
    """The names of the series that the declared metrics have in Prometheus."""
    names = set()
    for metric in (metric for metrics in declared().values() for metric in metrics):
        names.add(metric.name)
        if metric.kind == "histogram":
            names |= {f"{metric.name}{suffix}" for suffix in ("_bucket", "_count", "_sum")}
    return names
