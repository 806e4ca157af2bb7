"""Follows changes in one cache, and judges whether it had them in time. All times are given by the caller."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final, Literal, NamedTuple, get_args

from cachesync.metrics.live_check import lag
from cachesync.slots.layout import ABSENT, is_lease, is_readable
from cachesync.value import VERSION, is_value

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

HORIZONS: Final = (0.1, 1.0, 5.0, 30.0)
"""The ages at which it is judged whether a cache has a change, in seconds."""

LAG_BOUNDS: Final = (*lag.buckets, float("inf"))
"""The upper bounds of the buckets of the lag histogram, in seconds."""

VIOLATION_SECONDS: Final = 5.0
"""The age from which a change that the cache does not have is a violation, in seconds."""

# A look that comes this much later than a horizon still tells what was so at it: the machine can be busy.
_TOLERANCE: Final = 1.25
_FIRST_PAUSE: Final = 0.01
_LONGEST_PAUSE: Final = 1.0
# Those that have been judged at every horizon are then forgotten, except for the oldest one.
_MAX_FOLLOWED: Final = 1000

ViolationKind = Literal["behind", "stale", "false absent", "unreadable"]
"""Why a slot is not right: it has an older version, other content, no row, or what is no slot."""

VIOLATION_KINDS: Final[tuple[ViolationKind, ...]] = get_args(ViolationKind)


class Change(NamedTuple):
    """A committed change.

    Attributes:
        entity: the entity.
        key: the key of the row.
        version: the row version.
        is_delete: whether there is no such row afterwards.
    """

    entity: str
    key: str
    version: int
    is_delete: bool = False

    @property
    def slot(self) -> tuple[str, str]:
        """The entity and the key."""
        return self.entity, self.key


@dataclass(eq=False)
class Followed:
    """A change that is followed in one cache.

    Attributes:
        change: the change.
        since: when it was committed, or first seen.
        next_at: when to look at the slot next.
        is_exact: whether `since` is the time of the commit.
        is_counted: whether the change counts in the figures.
        judged: the number of horizons that have passed.
        looks: the number of looks so far.
        clear_since: from when on the cache has responded; a change is a violation only some time afterwards.
        head: what the slot held at the last look.
        lag: the time until the cache had the change, in seconds; None if that is not known.
        violation: the number of its violation; None if there is none.
    """

    change: Change
    since: float
    next_at: float
    is_exact: bool
    is_counted: bool
    clear_since: float
    judged: int = 0
    looks: int = 0
    head: bytes = b""
    lag: float | None = None
    violation: int | None = None


@dataclass
class Counts:
    """The figures of one entity in one cache; see the table `cachesync.consistency`."""

    judged: list[int] = field(default_factory=lambda: [0] * len(HORIZONS))
    seen: list[int] = field(default_factory=lambda: [0] * len(HORIZONS))
    lags: list[int] = field(default_factory=lambda: [0] * len(LAG_BOUNDS))
    hits: int = 0
    misses: int = 0
    bypasses: int = 0


def has(head: bytes, change: Change) -> bool:
    """Return whether no read of a slot is older than a change.

    Args:
        head: the first `HEAD_BYTES` of the slot; empty if the slot is empty.
        change: the change of its row.
    """
    if not head or is_lease(head):
        return True  # a read asks the database
    if head == ABSENT:
        return change.is_delete
    return is_value(head) and int(head[VERSION]) >= change.version


def violation_of(head: bytes) -> ViolationKind:
    """Return why a slot, which does not have a change, is not right."""
    if head == ABSENT:
        return "false absent"
    return "behind" if is_readable(head) else "unreadable"


class Judge:
    """Follows changes in one cache.

    Attributes:
        counts: the figures since they were last taken, by entity.
    """

    def __init__(self) -> None:
        self._followed: list[Followed] = []
        self._clear_since = float("-inf")
        self.counts: dict[str, Counts] = {}

    def follow(
        self, change: Change, now: float, *, is_exact: bool = False, is_counted: bool = True
    ) -> Followed:
        """Begin to follow a change.

        Args:
            change: the change.
            now: when it was committed; if that is not known, when it was first seen.
            is_exact: whether it was committed at this time, so that its lag is known.
            is_counted: whether it counts in the figures.
        """
        if change.is_delete:
            # An older upsert of the row no longer makes *absent* wrong.
            for one in self._followed:
                if one.change.slot == change.slot:
                    one.change = one.change._replace(is_delete=True)
        for one in self._followed:
            if one.change == change:
                return one
        pause = _FIRST_PAUSE if is_exact else _LONGEST_PAUSE
        followed = Followed(change, now, now + pause, is_exact, is_counted, max(now, self._clear_since))
        if not is_exact:
            followed.judged = 1  # when it was committed is known only to a second
        self._followed.append(followed)
        if len(self._followed) > _MAX_FOLLOWED:
            self._forget_one()
        return followed

    def _forget_one(self) -> None:
        oldest = self.oldest()
        for index in reversed(range(len(self._followed))):
            one = self._followed[index]
            if one.judged == len(HORIZONS) and one is not oldest and one.violation is None:
                del self._followed[index]
                return

    def due(self, until: float) -> list[Followed]:
        """Return the changes to look at until some time."""
        return [one for one in self._followed if one.next_at <= until]

    def next_at(self) -> float | None:
        """Return when to look next; None if there is nothing to look at."""
        return min((one.next_at for one in self._followed), default=None)

    def looked(self, followed: Followed, head: bytes, sent_at: float, received_at: float) -> bool:
        """Judge a change by what its slot held at a time between two others; return whether it is seen."""
        if followed not in self._followed:
            return True
        followed.looks += 1
        followed.head = head
        counts = self._counts_of(followed)
        seen = has(head, followed.change)
        while followed.judged < len(HORIZONS):
            horizon = HORIZONS[followed.judged]
            if not seen and sent_at - followed.since < horizon:
                break
            # What came after the horizon, and later than planned, tells nothing about it.
            if not seen or received_at - followed.since <= horizon * _TOLERANCE:
                counts.judged[followed.judged] += 1
                counts.seen[followed.judged] += seen
            followed.judged += 1
        if seen:
            self._followed.remove(followed)
            if followed.is_exact and is_value(head):
                followed.lag = received_at - followed.since
                counts.lags[bisect_left(LAG_BOUNDS, followed.lag)] += 1
            return True
        followed.next_at = self._next_look(followed, received_at)
        return False

    @staticmethod
    def _next_look(followed: Followed, now: float) -> float:
        """Return when to look again: with doubling pauses, and at each horizon."""
        pause = min(max(_FIRST_PAUSE, now - followed.since), _LONGEST_PAUSE)
        horizon = next((followed.since + one for one in HORIZONS if followed.since + one > now), float("inf"))
        return min(now + pause, horizon)

    def unanswered(self, now: float) -> None:
        """Note that the cache did not respond: what it has at a horizon in the meantime is not known."""
        self._clear_since = now
        for one in self._followed:
            one.clear_since = now
            one.looks += 1
            while one.judged < len(HORIZONS) and now - one.since >= HORIZONS[one.judged]:
                one.judged += 1
            one.next_at = max(one.next_at, now + _LONGEST_PAUSE)

    def forget(self, changes: Iterable[Followed]) -> None:
        """Stop following changes, which turned out to be right."""
        for one in changes:
            if one in self._followed:
                self._followed.remove(one)

    def absent(self, now: float) -> list[Followed]:
        """Return the changes that would be violations because their slots say that there is no such row."""
        return [one for one in self._followed if one.head == ABSENT and now - one.since >= VIOLATION_SECONDS]

    def overdue(self, now: float) -> list[Followed]:
        """Return the changes that are violations and are not recorded yet, at most one per slot."""
        recorded = {one.change.slot for one in self._followed if one.violation is not None}
        found: dict[tuple[str, str], Followed] = {}
        for one in self._followed:
            since = max(one.since, one.clear_since)
            if one.looks and now - since >= VIOLATION_SECONDS and one.change.slot not in recorded:
                found.setdefault(one.change.slot, one)
        return list(found.values())

    def violations(self) -> int:
        """Return how many of the followed changes are recorded as violations."""
        return sum(one.violation is not None for one in self._followed)

    def oldest(self) -> Followed | None:
        """Return the oldest change that the cache did not have when it was last looked at."""
        return min((one for one in self._followed if one.looks), key=lambda one: one.since, default=None)

    def take_counts(self) -> dict[str, Counts]:
        """Return the figures since the last call."""
        counts, self.counts = self.counts, {}
        return counts

    def counts_of(self, entity: str) -> Counts:
        """Return the figures of an entity, to be added to."""
        return self.counts.setdefault(entity, Counts())

    def _counts_of(self, followed: Followed) -> Counts:
        return self.counts_of(followed.change.entity) if followed.is_counted else Counts()


def array(counts: Sequence[int]) -> str:
    """Return counts as the text of an array of PostgreSQL."""
    return f"{{{','.join(map(str, counts))}}}"
