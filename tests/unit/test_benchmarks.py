"""What `make bench` and `make bench-quick` make of their figures."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from pydantic import ValidationError

from benchmarks import report
from benchmarks.aims import Aim, load_aims
from benchmarks.growth.report import table
from benchmarks.pgbench import transaction_of
from benchmarks.regressions import regressions
from benchmarks.results import Results, Spread

if TYPE_CHECKING:
    from pathlib import Path

HITS = Aim(what="hits", figure="hits.ratio", at_least=0.95, quick=True)
TIME = Aim(what="time", figure="time.ratio", at_most=2, quick=True)


def results(**figures: list[float]) -> Results:
    named = {name.replace("_", ".", 1): values for name, values in figures.items()}
    return Results(date="2026-11-27T00:00+00:00", machine={}, versions={}, other_cores=0, figures=named)


@pytest.mark.parametrize(
    ("aim", "name", "now", "worse"),
    [
        (HITS, "hits_ratio", [0.80, 0.81, 0.84], True),
        (HITS, "hits_ratio", [0.80, 0.81, 0.87], False),  # within 5 % of the worst round that was kept
        (HITS, "hits_ratio", [1.20], False),
        (TIME, "time_ratio", [0.94, 1.10], False),
        (TIME, "time_ratio", [0.96, 1.10], True),
    ],
)
def test_a_ratio_is_worse_if_its_rounds_are_outside_those_kept(
    *, aim: Aim, name: str, now: list[float], worse: bool
) -> None:
    kept = results(**{name: [0.90, 0.95] if aim is HITS else [0.80, 0.90]})
    lines, slower = regressions(results(**{name: now}), kept, [aim])
    assert slower is worse
    assert lines[0].startswith("WORSE" if worse else "ok")


def test_a_ratio_that_is_no_longer_measured_is_reported() -> None:
    assert regressions(results(), results(hits_ratio=[1.0]), [HITS]) == (
        ["WORSE  hits: not measured any more"],
        True,
    )


def test_figures_that_the_quick_form_does_not_keep_are_not_compared() -> None:
    aim = HITS.model_copy(update={"quick": False})
    assert regressions(results(hits_ratio=[0.1]), results(hits_ratio=[1.0]), [aim]) == ([], False)


def test_an_aim_is_for_the_median_or_the_worst_round() -> None:
    measured = results(time_ratio=[1.0, 1.0, 3.0])
    assert TIME.met(measured) is True
    assert TIME.model_copy(update={"worst": True}).met(measured) is False
    assert TIME.met(results()) is None


def test_an_aim_relative_to_a_peer_is_for_the_ratio_to_the_best_of_its_figures() -> None:
    aim = Aim(what="rate", figure="own.rate", peer=("peer.plain", "peer.tuned"), at_least=1)
    measured = results(own_rate=[300.0], peer_plain=[100.0], peer_tuned=[400.0])
    assert aim.value(measured) == 0.75
    assert aim.met(measured) is False
    assert aim.met(results(own_rate=[300.0])) is None


def test_an_aim_has_one_bound() -> None:
    with pytest.raises(ValidationError, match="exactly one of at_least and at_most"):
        Aim(what="both", figure="x", at_least=1, at_most=2)


def test_the_table_shows_the_spread_and_why_an_aim_is_not_met() -> None:
    aim = HITS.model_copy(update={"why": "the parser."})
    assert report.table(results(hits_ratio=[0.7, 0.75, 0.8]), [aim]).splitlines()[2:] == [
        "| hits | at least 0.95 | 0.75 (0.7 to 0.8) |  |  | **no** |",
        "",
        "Why a figure is short:",
        "",
        "- hits: the parser.",
    ]
    assert (
        report.table(results(), [aim]).splitlines()[-1] == "| hits | at least 0.95 | not measured |  |  |  |"
    )


def test_only_the_named_block_of_the_page_is_replaced() -> None:
    page = "a\n<!-- x: made by `make bench` -->\nold\n<!-- end -->\nb\n<!-- end -->\n"
    assert report.with_block(page, "x", "new") == (
        "a\n<!-- x: made by `make bench` -->\n\nnew\n\n<!-- end -->\nb\n<!-- end -->\n"
    )
    with pytest.raises(ValueError, match="has no block"):
        report.with_block(page, "y", "new")


def test_the_table_of_growth_has_a_row_for_each_step_in_order() -> None:
    figures = {"caches_8.cpu_us": [900.0], "caches_1.cpu_us": [200.0, 300.0], "rows_10.hits_per_s": [5.0]}
    measured = results().model_copy(update={"figures": figures})
    _, _, *rows = table(measured).splitlines()
    assert [row.split(" | ")[:3] for row in rows] == [
        ["| rows, changed in turn", "10", ""],
        ["| caches", "1", "250 (200 to 300)"],
        ["| caches", "8", "900"],
    ]


def test_results_are_the_same_after_they_were_saved(tmp_path: Path) -> None:
    measured = results(hits_ratio=[0.7, 0.75, 0.8])
    measured.save(tmp_path / "results.json")
    assert Results.load(tmp_path / "results.json") == measured
    assert measured.spread("hits.ratio") == Spread(0.75, 0.7, 0.8)


def test_every_aim_of_the_file_is_valid_and_quick_ones_have_no_peer() -> None:
    aims = load_aims()
    assert [aim for aim in aims if aim.quick]
    assert not [aim for aim in aims if aim.quick and aim.peer]


def test_a_line_of_the_log_of_pgbench_is_atransaction_of() -> None:
    one = transaction_of("3 41 2500 0 1795638750 250000 700")
    assert (one.client, one.number, one.seconds, one.ended) == (3, 41, 0.0025, 1795638750.25)
