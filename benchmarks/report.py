"""The table and the plots of docs/benchmarks.md.

`python -m benchmarks.report` makes them again from the results that are kept.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

import matplotlib as mpl
from matplotlib.figure import Figure

from benchmarks.aims import load_aims
from benchmarks.results import Results
from local.settings import REPOSITORY

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from matplotlib.axes import Axes

    from benchmarks.aims import Aim
    from benchmarks.results import Spread

PAGE: Final = REPOSITORY / "docs" / "benchmarks.md"
_PLOTS: Final = REPOSITORY / "docs" / "plots"
_BLOCK: Final = "<!-- {name}: made by `make {command}` -->\n"
_END: Final = "<!-- end -->"
_NAMES: Final = {"sql": "SQL", "put": "PUT at sa", "debezium": "Debezium, bare sink"}
_RATE: Final = re.compile(r"(\w+)_(\d+)\.p50_ms")
_HUNDRED: Final = 100


def write(results: Results, aims: Sequence[Aim]) -> None:
    """Write the plots, and the generated blocks of the page."""
    page = PAGE.read_text(encoding="utf-8")
    for name, text in (
        ("machine", description(results)),
        ("aims", table(results, aims)),
        ("propagation", _propagation(results)),
        ("processes", _processes(results)),
        ("writer", _writer(results)),
    ):
        page = with_block(page, name, text)
    PAGE.write_text(page, encoding="utf-8")
    write_plots(propagation=lambda: _plot_propagation(results), cpu=lambda: _plot_cpu(results))


def write_plots(**plots: Callable[[], Figure]) -> None:
    """Write plots, each to the file of its name."""
    _PLOTS.mkdir(exist_ok=True)
    # The same results make the same file.
    with mpl.rc_context({"svg.hashsalt": "benchmarks", "font.size": 9}):
        for name, plot in plots.items():
            plot().savefig(_PLOTS / f"{name}.svg", metadata={"Date": None})


def draw_spreads(axes: Axes, points: Sequence[tuple[int, Spread | None]], label: str) -> None:
    """Draw a line of medians with their spreads; those that were not measured are left out."""
    known = [(place, spread) for place, spread in points if spread is not None]
    axes.errorbar(
        [place for place, _ in known],
        [spread.median for _, spread in known],
        yerr=[
            [spread.median - spread.low for _, spread in known],
            [spread.high - spread.median for _, spread in known],
        ],
        marker="o",
        markersize=3,
        capsize=2,
        label=label,
    )


def with_block(page: str, name: str, text: str, command: str = "bench") -> str:
    """Return the page with the text in the generated block of this name."""
    begin = _BLOCK.format(name=name, command=command)
    before, found, rest = page.partition(begin)
    _, end, after = rest.partition(_END)
    if not (found and end):
        message = f"{PAGE} has no block {begin!r}"
        raise ValueError(message)
    return f"{before}{begin}\n{text}\n\n{end}{after}"


def table(results: Results, aims: Sequence[Aim]) -> str:
    """Return the table of the aims, and the reasons of those that are not met."""
    rows = [["figure", "aim", "measured (lowest to highest)", "Debezium, or other base", "ratio", "met"]]
    reasons = []
    for aim in aims:
        spread, peer, met = results.spread(aim.figure), aim.peer_of(results), aim.met(results)
        bound = (
            f"at least {aim.at_least:,.10g}" if aim.at_least is not None else f"at most {aim.at_most:,.10g}"
        )
        value = aim.value(results)
        rows.append(
            [
                aim.what,
                aim.text or bound,
                "not measured" if spread is None else with_spread(spread),
                "" if peer is None else with_spread(peer),
                "" if value is None or peer is None else f"{value:.2f}",
                {None: "", True: "yes", False: "**no**"}[met],
            ]
        )
        if met is False:
            reasons.append(f"- {aim.what}: {aim.why or 'not examined yet.'}")
    return "\n".join([markdown(rows), *(["", "Why a figure is short:", "", *reasons] if reasons else [])])


def description(results: Results) -> str:
    """Return when, for how long, and on what the results were measured."""
    machine = ", ".join(f"{name} {value}" for name, value in results.machine.items())
    versions = ", ".join(f"{name} {value}" for name, value in results.versions.items())
    return (
        f"Measured on {results.date[:10]}, in {results.seconds / 60:.0f} minutes. Machine: {machine}; other"
        f" programs used {results.other_cores:.2f} cores when the run began. Software: {versions}."
    )


def _propagation(results: Results) -> str:
    rows = [
        [
            "changes",
            "per s",
            "acknowledged",
            "p50 ms",
            "p99 ms",
            "then readable p50 ms",
            "p99 ms",
            "sustained",
        ]
    ]
    for kind, rate in _rates(results):
        name = f"{kind}_{rate}"
        shown = [
            with_spread(spread) if (spread := results.spread(f"{name}.{figure}")) is not None else ""
            for figure in ("acknowledged_p50_ms", "acknowledged_p99_ms", "p50_ms", "p99_ms")
        ]
        share, kept = results.spread(f"{name}.acknowledged_share"), results.spread(f"{name}.sustained")
        assert share is not None
        assert kept is not None
        rows.append(
            [
                _NAMES[kind],
                f"{rate:,}",
                f"{100 * share.median:.0f} %",
                *shown,
                "yes" if kept.low else "**no**",
            ]
        )
    return markdown(rows)


def _processes(results: Results) -> str:
    """Return the CPU time per change of each process."""
    loads = [load for load in _LOADS if results.spread(f"{load}.cpu_us") is not None]
    names = sorted(
        {
            name.removeprefix(f"{load}.cpu_us.")
            for load in loads
            for name in results.figures
            if name.startswith(f"{load}.cpu_us.")
        }
    )
    rows = [["µs of CPU per change", *(_LOADS[load] for load in loads)]]
    for name in names:
        spreads = [results.spread(f"{load}.cpu_us.{name}") for load in loads]
        rows.append([name, *("" if each is None else f"{each.median:,.3g}" for each in spreads)])
    totals = [results.spread(f"{load}.cpu_us") for load in loads]
    total = ["**all, without the load generator and other programs**"]
    rows.append([*total, *("" if each is None else f"{each.median:,.3g}" for each in totals)])
    return markdown(rows)


_LOADS: Final = {
    "sql_500": "SQL, 500/s",
    "debezium_500": "Debezium, 500/s",
    "put_500": "PUT, 500/s",
    "bulk": "a million rows",
    "debezium_bulk": "Debezium, a million rows",
    "debezium_bulk_tuned": "the same, tuned for bulk",
}


def _writer(results: Results) -> str:
    rows = [
        ["TPS", "plain table", "triggers alone", "share", "everything running", "share", "Debezium's share"]
    ]
    for kind in ("update", "insert"):
        for clients in (1, 8):
            name = f"{kind}_{clients}"
            figures = (
                f"triggers.{name}_plain_tps", f"triggers.{name}_tps", f"triggers.{name}_share",
                f"running.{name}_tps", f"running.{name}_share", f"debezium_writer.{name}_share",
            )  # fmt: skip
            spreads = [results.spread(figure) for figure in figures]
            shown = ["" if spread is None else with_spread(spread) for spread in spreads]
            rows.append([f"{kind.upper()}, {clients} client{'s' * (clients > 1)}", *shown])
    return markdown(rows)


def _rates(results: Results) -> list[tuple[str, int]]:
    found = [match for name in results.figures if (match := _RATE.fullmatch(name)) is not None]
    pairs = {(match[1], int(match[2])) for match in found if match[1] in _NAMES}
    return sorted(pairs, key=lambda pair: (list(_NAMES).index(pair[0]), pair[1]))


def _plot_propagation(results: Results) -> Figure:
    figure = Figure(figsize=(9, 3.4), layout="constrained")
    axes: list[Axes] = [figure.add_subplot(1, 2, number) for number in (1, 2)]
    for kind, label in _NAMES.items():
        points = [
            (rate, [results.spread(f"{kind}_{rate}.{share}_ms") for share in ("p50", "p99")])
            for other, rate in _rates(results)
            if other == kind
        ]
        for index, plot in enumerate(axes):
            draw_spreads(plot, [(rate, both[index]) for rate, both in points], label)
    for plot, title in zip(axes, ("p50", "p99"), strict=True):
        plot.set(
            xscale="log",
            yscale="log",
            xlabel="changes/s",
            ylabel="ms",
            title=f"acknowledged to readable, {title}",
        )
        plot.grid(visible=True, which="both", alpha=0.3)
    axes[0].legend()
    return figure


def _plot_cpu(results: Results) -> Figure:
    """Plot the CPU time per change of each process as stacked bars."""
    figure = Figure(figsize=(9, 3.8), layout="constrained")
    for number, loads in enumerate(
        (("sql_500", "put_500", "debezium_500"), ("bulk", "debezium_bulk", "debezium_bulk_tuned"))
    ):
        plot = figure.add_subplot(1, 2, number + 1)
        for position, load in enumerate(loads):
            bottom = 0.0
            for name, color in _COLORS.items():
                used = sum(
                    spread.median
                    for process in results.figures
                    if process.startswith((f"{load}.cpu_us.{name}", f"{load}.cpu_us.debezium-{name}"))
                    if (spread := results.spread(process)) is not None
                )
                plot.bar(position, used, bottom=bottom, color=color, label=name if position == 0 else None)
                bottom += used
        plot.set_xticks(range(len(loads)), [_LOADS[load] for load in loads], fontsize=7)
        plot.set(ylabel="µs of CPU per change")
        plot.grid(visible=True, axis="y", alpha=0.3)
    figure.axes[0].legend(fontsize=7)
    return figure


_COLORS: Final = {
    "postgres": "tab:blue",
    "kafka": "tab:gray",
    "redis": "tab:red",
    "airflow": "tab:green",
    "s": "tab:orange",
}


def with_spread(spread: Spread) -> str:
    """Return the median, with the lowest and the highest value if they differ."""
    if spread.low == spread.high:
        return _number(spread.median)
    return f"{_number(spread.median)} ({_number(spread.low)} to {_number(spread.high)})"


def _number(value: float) -> str:
    if value >= _HUNDRED:
        return f"{float(f'{value:.3g}'):,.0f}"
    return f"{value:.3g}"


def markdown(rows: Sequence[Sequence[str]]) -> str:
    """Return a table whose first row is its head."""
    head, *body = rows
    lines = [head, ["---"] * len(head), *body]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    write(Results.load(Path(__file__).with_name("results.json")), load_aims())
