"""The keyspace of a Redis, cut into parts that are scanned each on its own.

SCAN goes through the buckets of Redis's hash table in the order of their numbers' bits reversed. Read so,
a cursor is a position that only grows, and the guarantee of SCAN holds from one position to another as it
does from the beginning to the end: what is there all the while is returned, however often the table is
resized meanwhile. A part of 2^p is the range of positions that begin with the same p bits.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

_BITS: Final = 64
_END: Final = 1 << _BITS


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a keyspace.

    Attributes:
        number: which, from 0.
        of: how many there are, a power of two.
    """

    number: int
    of: int

    @property
    def first(self) -> int:
        """The cursor that its scan begins with."""
        return _reversed(self._start)

    def ends_at(self, cursor: int) -> bool:
        """Whether a cursor that SCAN returned is past this part."""
        return cursor == 0 or _reversed(cursor) >= self._start + _END // self.of

    def share(self, cursor: int) -> float:
        """How much of it is done when SCAN has returned a cursor, from 0 to 1."""
        if self.ends_at(cursor):
            return 1.0
        return (_reversed(cursor) - self._start) * self.of / _END

    @property
    def _start(self) -> int:
        return self.number * (_END // self.of)


def parts(slots: int, slots_per_part: int) -> list[Part]:
    """The parts of a keyspace, none of which has many more slots than asked."""
    count = 1
    while count * slots_per_part < slots:
        count *= 2
    return [Part(number, count) for number in range(count)]


def _reversed(cursor: int) -> int:
    return int(f"{cursor:064b}"[::-1], 2)
