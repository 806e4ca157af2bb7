"""A breadth-first search through all states of a model."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, TypeVar

from tests.unit.protocol.faults import EVERYTHING

if TYPE_CHECKING:
    from collections.abc import Hashable, Iterable

    from tests.unit.protocol.faults import Fault

S = TypeVar("S", bound="Hashable")
S_co = TypeVar("S_co", bound="Hashable", covariant=True)


class Step(Protocol[S_co]):
    """What happens, the resulting state, and the violations of the protocol, if any."""

    @property
    def what(self) -> str: ...

    @property
    def state(self) -> S_co: ...

    @property
    def faults(self) -> frozenset[Fault]: ...


class Searched(Protocol[S]):
    """A model."""

    def first(self) -> S:
        """Return the initial state."""

    def representative(self, state: S) -> S:
        """Return the representative of all states that do not differ."""

    def steps(self, state: S) -> Iterable[Step[S]]:
        """Return everything that can happen next."""

    def faults(self, state: S) -> frozenset[Fault]:
        """Return the violations in a state."""


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


def search(model: Searched[S], sought: frozenset[Fault] = EVERYTHING) -> Found:
    """Visit every reachable state until a sought fault is found."""
    first = model.representative(model.first())
    came_from: dict[S, S | None] = {first: None}
    waiting = deque([first])
    # Most states are reached several times, and finding a representative costs more than looking it up.
    representatives: dict[S, S] = {}
    while waiting:
        state = waiting.popleft()
        for step in model.steps(state):
            reached = representatives.get(step.state)
            faults = step.faults
            if reached is None:
                reached = representatives[step.state] = model.representative(step.state)
                if reached not in came_from:
                    came_from[reached] = state
                    waiting.append(reached)
                    faults |= model.faults(reached)
            if not faults:
                continue
            for fault in faults & sought:
                return Found(len(came_from), fault, _story(model, [*_path(came_from, state), reached], fault))
    return Found(len(came_from))


def _path(came_from: dict[S, S | None], state: S | None) -> list[S]:
    path = []
    while state is not None:
        path.append(state)
        state = came_from[state]
    return path[::-1]


def _story(model: Searched[S], path: list[S], fault: Fault) -> tuple[str, ...]:
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
