"""The schedule of faults."""

from __future__ import annotations

from itertools import islice

from tests.faults.history.schedule import KINDS, episodes


def test_seed_determines_the_schedule() -> None:
    assert list(islice(episodes(7), 100)) == list(islice(episodes(7), 100))
    assert list(islice(episodes(7), 100)) != list(islice(episodes(8), 100))


def test_each_episode_has_up_to_three_faults_of_different_targets() -> None:
    for faults, _ in islice(episodes(1), 500):
        parts = [fault.part for fault in faults]
        assert 1 <= len(parts) == len(set(parts)) <= 3


def test_every_fault_hits_each_of_its_targets_before_any_is_repeated() -> None:
    every = {(kind, part) for kind, (parts, _, _) in KINDS.items() for part in parts}
    done = [(fault.kind, fault.part) for faults, _ in islice(episodes(1), 200) for fault in faults]
    assert set(done[: len(every)]) == every
    assert set(done[len(every) : 2 * len(every)]) == every
