"""The order of the faults."""

from __future__ import annotations

from itertools import islice

from tests.faults.history.schedule import KINDS, episodes


def test_a_seed_decides_on_everything() -> None:
    assert list(islice(episodes(7), 100)) == list(islice(episodes(7), 100))
    assert list(islice(episodes(7), 100)) != list(islice(episodes(8), 100))


def test_nothing_has_two_faults_at_once() -> None:
    for faults, _ in islice(episodes(1), 500):
        parts = [fault.part for fault in faults]
        assert 1 <= len(parts) == len(set(parts)) <= 3


def test_each_fault_comes_to_each_of_its_parts_before_any_comes_again() -> None:
    every = {(kind, part) for kind, (parts, _, _) in KINDS.items() for part in parts}
    done = [(fault.kind, fault.part) for faults, _ in islice(episodes(1), 200) for fault in faults]
    assert set(done[: len(every)]) == every
    assert set(done[len(every) : 2 * len(every)]) == every
