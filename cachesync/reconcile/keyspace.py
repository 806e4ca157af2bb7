"""Divides the keyspace of a Redis into parts that are scanned independently.

SCAN visits the buckets of Redis's hash table in the order of their numbers with the bits reversed. With its
bits reversed, a cursor is therefore a position that only grows, and SCAN's guarantee holds between any two
positions as it does for a full iteration: every key that exists throughout is returned, no matter how often
the table is resized in the meantime. One of 2^p parts is the range of positions that start with the same p
bits.

Source: https://redis.io/docs/latest/commands/scan/ (guarantees), dictScan in Redis's dict.c (order)
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
        number: the number of the part, from 0.
        of: the number of parts, a power of two.
    """

    number: int
    of: int

    @property
    def first(self) -> int:
        """The cursor with which to start scanning the part."""
        return _reversed(self._start)

    def ends_at(self, cursor: int) -> bool:
        """Return whether a cursor that SCAN returned is past this part."""
        return cursor == 0 or _reversed(cursor) >= self._start + _END // self.of

    def share(self, cursor: int) -> float:
        """Return the share of the part that has been scanned when SCAN returns a cursor, from 0 to 1."""
        if self.ends_at(cursor):
            return 1.0
        return (_reversed(cursor) - self._start) * self.of / _END

    @property
    def _start(self) -> int:
        return self.number * (_END // self.of)


def parts(slots: int, slots_per_part: int) -> list[Part]:
    """Divide a keyspace into parts.

    Args:
        slots: the number of keys in it.
        slots_per_part: the maximum number of keys per part, on average.
    """
    count = 1
    while count * slots_per_part < slots:
        count *= 2
    return [Part(number, count) for number in range(count)]


def _reversed(cursor: int) -> int:
    return int(f"{cursor:064b}"[::-1], 2)
