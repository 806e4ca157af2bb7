"""The table and the plots of how cost grows, in docs/benchmarks.md.

`python -m benchmarks.growth.report` makes them again from the results that are kept.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Final

from matplotlib.figure import Figure

from benchmarks.report import (
    PAGE,
    description,
    draw_spreads,
    markdown,
    with_block,
    with_spread,
    write_plots,
)
from benchmarks.results import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_COMMAND: Final = "bench-growth"
_TITLES: Final = {
    "rows": "rows, changed in turn",
    "bytes": "bytes of an entry",
    "connections": "connections to sb",
    "entities": "entities",
    "partitions": "partitions of a topic",
    "caches": "caches",
    "slots": "slots to reconcile",
}
_UNITS: Final = {"slots": "slot"}
_COLUMNS: Final = {
    "cpu_us": "CPU per change (per slot), µs",
    "p50_ms": "commit to readable, p50 ms",
    "p99_ms": "p99 ms",
    "idle_cores": "cores while idle",
    "hits_per_s": "hits/s",
    "hit_cpu_us": "CPU per hit, µs",
    "slots_per_s": "slots/s",
    "ratio": "relative to the bare limit",
}


def write(results: Results) -> None:
    """Write the plots, and the generated block of the page."""
    page = PAGE.read_text(encoding="utf-8")
    text = f"{description(results)}\n\n{table(results)}"
    PAGE.write_text(with_block(page, "growth", text, _COMMAND), encoding="utf-8")
    write_plots(growth=lambda: _plot(results))


def table(results: Results) -> str:
    """Return a row for each step of each dimension."""
    rows = [["what grows", "to", *_COLUMNS.values()]]
    for dimension, title in _TITLES.items():
        for step in _steps(results, dimension):
            spreads = [results.spread(f"{dimension}_{step}.{figure}") for figure in _COLUMNS]
            figures = ["" if spread is None else with_spread(spread) for spread in spreads]
            rows.append([title, f"{step:,}", *figures])
    return markdown(rows)


def _steps(results: Results, dimension: str) -> list[int]:
    names = {name.partition(".")[0] for name in results.figures}
    return sorted(
        int(name.removeprefix(f"{dimension}_")) for name in names if name.startswith(f"{dimension}_")
    )


def _plot(results: Results) -> Figure:
    figure = Figure(figsize=(11, 5.4), layout="constrained")
    for number, (dimension, title) in enumerate(_TITLES.items(), 1):
        axes = figure.add_subplot(2, 4, number)
        _lines(axes, results, dimension, "cpu_us", f"CPU per {_UNITS.get(dimension, 'change')}, µs")
        _lines(axes, results, dimension, "hit_cpu_us", "CPU per hit, µs")
        axes.set(xscale="log", xlabel=title, ylim=(0, None))
        axes.grid(visible=True, alpha=0.3)
        if axes.containers:
            axes.legend(fontsize=7)
    return figure


def _lines(axes: Axes, results: Results, dimension: str, figure: str, label: str) -> None:
    points = [(step, results.spread(f"{dimension}_{step}.{figure}")) for step in _steps(results, dimension)]
    if any(spread is not None for _, spread in points):
        draw_spreads(axes, points, label)


if __name__ == "__main__":
    write(Results.load(Path(__file__).with_name("results.json")))
