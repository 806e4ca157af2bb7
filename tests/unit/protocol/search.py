"""A breadth-first search through all states of a model."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING

from tests.unit.protocol.faults import EVERYTHING

if TYPE_CHECKING:
    from tests.unit.protocol.faults import Fault
    from tests.unit.protocol.model import Model
    from tests.unit.protocol.world import State


@dataclass(frozen=True)
class Found:
    """The result of a search.

    Attributes:
        states: the number of states visited.
        fault: the violation by the last step of the story; None if there is none anywhere.
        story: a shortest sequence of steps to it.
    """

    states: int
    fault: Fault | None = None
    story: tuple[str, ...] = ()


def search(model: Model, sought: frozenset[Fault] = EVERYTHING) -> Found:
    """Visit every reachable state until a sought fault is found."""
    first = model.representative(model.first())
    came_from: dict[State, State | None] = {first: None}
    waiting = deque([first])
    # Most states are reached several times, and finding a representative costs more than looking it up.
    representatives: dict[State, State] = {}
    while waiting:
        state = waiting.popleft()
        for step in model.steps(state):
            reached = representatives.get(step.state)
            if reached is None:
                reached = representatives[step.state] = model.representative(step.state)
            faults = step.faults
            if reached not in came_from:
                came_from[reached] = state
                waiting.append(reached)
                faults |= model.faults(reached)
            for fault in faults & sought:
                return Found(len(came_from), fault, _story(model, [*_path(came_from, state), reached], fault))
    return Found(len(came_from))


def _path(came_from: dict[State, State | None], state: State | None) -> list[State]:
    path = []
    while state is not None:
        path.append(state)
        state = came_from[state]
    return path[::-1]


def _story(model: Model, path: list[State], fault: Fault) -> tuple[str, ...]:
    """Describe the steps along a path of representatives, with the same process numbers throughout."""
    story = []
    state = model.first()
    for reached in path[1:]:
        steps = [step for step in model.steps(state) if model.representative(step.state) == reached]
        # Several steps can lead there; the last step of the story must be the faulty one.
        wrong = (step for step in steps if reached is path[-1] and fault in step.faults)
        step = next(wrong, steps[0])
        story.append(step.what)
        state = step.state
    return tuple(story)
