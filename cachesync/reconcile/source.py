"""Which slots are examined: all of a part of a keyspace, or those of rows that have changed."""

from __future__ import annotations

import asyncio
from hashlib import md5
from typing import TYPE_CHECKING, Any, Final, Protocol

from hiredis import ReplyError

from cachesync.errors import CacheUnavailableError
from cachesync.slots.layout import UP_TO_PAYLOAD, slot_name

if TYPE_CHECKING:
    import asyncpg

    from cachesync.reconcile.bulk import Bulk
    from cachesync.reconcile.keyspace import Part

Names = list[bytes]

# Redis does nothing else meanwhile, for half a millisecond or so.
_SCAN: Final = 1000


class Source(Protocol):
    """Names slots, and reads them.

    Attributes:
        cursor: where the next read begins.
        share: how much has been read, from 0 to 1.
        ended: whether nothing is left.
    """

    cursor: int
    share: float
    ended: bool

    async def read(self, size: int) -> tuple[Names, list[bytes]]:
        """The names of about so many slots, and what they hold as `ComparedRows.disagreeing` takes it.

        Raises:
            CacheUnavailableError: Redis does not answer.
        """


class Keyspace:
    """Every slot of a part of a Redis.

    Args:
        bulk: a connection to it.
        part: the part.
        pattern: what the slots' names match.
        cursor: where to begin; None: at the part's beginning.
        deep: whether payloads are compared, too.
    """

    def __init__(self, bulk: Bulk, part: Part, pattern: str, cursor: int | None, *, deep: bool) -> None:
        self._bulk = bulk
        self._part = part
        self._match = pattern.encode()
        self._deep = deep
        self.cursor = part.first if cursor is None else cursor
        self.share = part.share(self.cursor)
        self.ended = False
        # About so many keys are left.
        self._left = _SCAN

    async def read(self, size: int) -> tuple[Names, list[bytes]]:
        """Scan on, in a thread."""
        return await asyncio.to_thread(self._read, size)

    def _read(self, size: int) -> tuple[Names, list[bytes]]:
        names: Names = []
        slots: list[bytes] = []
        unread: Names = []
        # What one SCAN names is read along with the next SCAN.
        while not self.ended and len(names) + len(unread) < size:
            count = min(size, _SCAN, self._left)
            scan = (b"SCAN", b"%d" % self.cursor, b"MATCH", self._match, b"COUNT", b"%d" % count)
            packed, looks = _looks(unread, deep=self._deep)
            answer, *found = self._bulk.send(self._bulk.pack([scan]) + packed, looks + 1)
            if isinstance(answer, ReplyError):
                raise CacheUnavailableError(str(answer))
            names += unread
            slots += _comparable(found, deep=self._deep)
            unread = answer[1]
            self._move(int(answer[0]), count)
        found = self._bulk.send(*_looks(unread, deep=self._deep))
        return names + unread, slots + _comparable(found, deep=self._deep)

    def _move(self, cursor: int, count: int) -> None:
        before, self.share = self.share, self._part.share(cursor)
        self.cursor = cursor
        self.ended = self._part.ends_at(cursor)
        if self.share > before:
            # Towards the end in ever smaller steps, since the last one goes on into the next part.
            self._left = max(1, int(0.8 * count * (1 - self.share) / (self.share - before)))


class Changed:
    """The slots of keys that the change log names.

    Args:
        bulk: a connection to the Redis.
        service: the service whose slots they are.
        keys: the result of `changed_keys.sql`.
        cursor: the version that it begins behind.
        deep: whether payloads are compared, too.
    """

    def __init__(
        self, bulk: Bulk, service: str, keys: asyncpg.cursor.Cursor, cursor: int, *, deep: bool
    ) -> None:
        self._bulk = bulk
        self._service = service
        self._keys = keys
        self._deep = deep
        self._count = 0
        self.cursor = cursor
        self.share = 0.0
        self.ended = False

    async def read(self, size: int) -> tuple[Names, list[bytes]]:
        """The next keys of the log, and their slots."""
        records = await self._keys.fetch(min(size, _SCAN))
        self._count += len(records)
        if records:
            self.cursor = records[-1]["version"]
            self.share = self._count / records[-1]["total"]
        self.ended = len(records) < min(size, _SCAN)
        names = [slot_name(self._service, one["entity"], one["key"]).encode() for one in records]
        packed, count = _looks(names, deep=self._deep)
        looks = await asyncio.to_thread(self._bulk.send, packed, count)
        return names, _comparable(looks, deep=self._deep)


def _looks(names: Names, *, deep: bool) -> tuple[bytes, int]:
    """The commands that read slots as far as they are compared, packed, and their number."""
    if deep:
        packed = [b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name) for name in names]
    else:
        last = b"%d" % (UP_TO_PAYLOAD - 1)
        look = b"*4\r\n$8\r\nGETRANGE\r\n$%%d\r\n%%b\r\n$1\r\n0\r\n$%d\r\n%b\r\n" % (len(last), last)
        packed = [look % (len(name), name) for name in names]
    return b"".join(packed), len(names)


def _comparable(looks: list[Any], *, deep: bool) -> list[bytes]:
    """What is compared of slots, given what Redis answered to a look at each; nothing where one is empty."""
    slots = [look if type(look) is bytes else b"" if look is None else b"no string" for look in looks]
    if not deep:
        return slots
    return [
        slot[:UP_TO_PAYLOAD]
        + md5(slot[UP_TO_PAYLOAD:], usedforsecurity=False).hexdigest().encode() * slot.startswith(b"V")
        for slot in slots
    ]
