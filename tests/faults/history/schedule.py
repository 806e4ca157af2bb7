"""The schedule of faults, determined by a seed."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

_PARTS = ("sa", "sb", "redis-sa", "redis-sb", "postgres", "kafka", "triggerer", "scheduler")
_WAYS = tuple(
    " to ".join(way)
    for way in (
        ("sa", "postgres"),
        ("sb", "postgres"),
        ("airflow", "postgres"),
        ("sa", "redis-sa"),
        ("sb", "redis-sb"),
        ("airflow", "redis-sa"),
        ("airflow", "redis-sb"),
        ("clients", "kafka"),
    )
)
_CACHES = ("redis-sa", "redis-sb")
_TOPICS = ("cachesync.student", "cachesync.course", "cachesync.grade")
_GROUPS = ("cachesync-sa", "cachesync-sb")
# The tasks whose names begin like this.
_TASKS = ("apply_sa", "apply_sb", "relay")
_TABLES = ("student", "course", "grade")
#: By kind of fault: the possible targets, and the minimum and maximum duration in seconds.
KINDS: dict[str, tuple[tuple[str, ...], float, float]] = {
    "kill": (_PARTS, 0.0, 4.0),
    "freeze": (_PARTS, 1.0, 9.0),
    "kill worker": (("sa", "sb"), 0.0, 0.0),
    "cut": (_WAYS, 0.3, 6.0),
    "hold": (_WAYS, 0.3, 6.0),
    "late answers": (_WAYS, 3.0, 8.0),
    "delay": (_WAYS, 3.0, 8.0),
    "evict": (_CACHES, 1.0, 3.0),
    "flush": (_CACHES, 0.0, 0.0),
    "restore": (_CACHES, 2.0, 8.0),
    "refuse": (_CACHES, 1.0, 8.0),
    "replay": (_TOPICS, 0.0, 0.0),
    "poison": (_TOPICS, 0.0, 0.0),
    "join": (_GROUPS, 2.0, 9.0),
    "delete group": (_GROUPS, 0.0, 0.0),
    "delete trigger": (_TASKS, 0.0, 0.0),
    "enable triggers": (_TABLES, 0.0, 0.0),
}


@dataclass(frozen=True, slots=True)
class Planned:
    """A fault that begins `offset` seconds into its episode; `strength` ranges from 0 to 1."""

    kind: str
    part: str
    offset: float
    seconds: float
    strength: float


def episodes(seed: int) -> Iterator[tuple[list[Planned], float]]:
    """Yield episodes indefinitely: overlapping faults, at most one per target, and the pause after them.
    Every kind of fault hits each of its targets once before any combination is repeated.
    """
    random = Random(f"{seed} schedule")
    deck: list[tuple[str, str]] = []
    while True:
        faults: list[Planned] = []
        for _ in range(random.choices((1, 2, 3), (6, 3, 1))[0]):
            if not deck:
                deck = [(kind, part) for kind, (parts, _, _) in KINDS.items() for part in parts]
                random.shuffle(deck)
            kind, part = deck.pop()
            if part in {fault.part for fault in faults}:
                deck.insert(0, (kind, part))
            else:
                _, shortest, longest = KINDS[kind]
                seconds = random.uniform(shortest, longest)
                faults.append(Planned(kind, part, random.uniform(0, 2), seconds, random.random()))
        yield faults, random.uniform(1, 4)
