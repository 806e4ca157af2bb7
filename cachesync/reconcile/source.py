"""The sources of slots to examine: a part of a keyspace, or the keys that have changed."""

from __future__ import annotations

import asyncio
from hashlib import md5
from typing import TYPE_CHECKING, Any, Final, Protocol

from hiredis import ReplyError

from cachesync.errors import CacheUnavailableError
from cachesync.slots.layout import HEAD_BYTES, is_readable, slot_name
from cachesync.value import UP_TO_PAYLOAD, is_value

if TYPE_CHECKING:
    import asyncpg

    from cachesync.reconcile.keyspace import Part
    from cachesync.slots.bulk import Bulk

Names = list[bytes]

UNREADABLE: Final = b"unreadable"
"""What a source returns for a slot whose content is not that of a slot."""

# Redis does nothing else while it executes a SCAN, which takes about half a millisecond with this count.
_SCAN: Final = 1000


class Source(Protocol):
    """Lists slots and reads them.

    Attributes:
        cursor: where the next read starts.
        share: the share of the slots that has been read, from 0 to 1.
        ended: whether all slots have been read.
    """

    cursor: int
    share: float
    ended: bool

    async def read(self, size: int) -> tuple[Names, list[bytes]]:
        """Return the names of the next slots, and the part of each that `ComparedRows.mismatches` compares.

        Args:
            size: the approximate number of slots to read.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """


class Keyspace:
    """All slots in one part of a Redis's keyspace.

    Args:
        bulk: a connection to the Redis.
        part: the part.
        pattern: the pattern of the slots' names, as for SCAN.
        cursor: where to start; None for the start of the part.
        deep: whether payloads are compared too.
    """

    def __init__(self, bulk: Bulk, part: Part, pattern: str, cursor: int | None, *, deep: bool) -> None:
        self._bulk = bulk
        self._part = part
        self._match = pattern.encode()
        self._deep = deep
        self.cursor = part.first if cursor is None else cursor
        self.share = part.share(self.cursor)
        self.ended = False
        # An estimate of the number of keys that remain in the part.
        self._left = _SCAN

    async def read(self, size: int) -> tuple[Names, list[bytes]]:
        """Scan the next slots, in a thread."""
        return await asyncio.to_thread(self._read, size)

    def _read(self, size: int) -> tuple[Names, list[bytes]]:
        names: Names = []
        slots: list[bytes] = []
        unread: Names = []
        # The slots that one SCAN lists are read in the same round trip as the next SCAN.
        while not self.ended and len(names) + len(unread) < size:
            count = min(size, _SCAN, self._left)
            scan = (b"SCAN", b"%d" % self.cursor, b"MATCH", self._match, b"COUNT", b"%d" % count)
            packed, reads = _packed_reads(unread, deep=self._deep)
            reply, *found = self._bulk.send(self._bulk.pack([scan]) + packed, reads + 1)
            if isinstance(reply, ReplyError):
                raise CacheUnavailableError(str(reply))
            slots += _compared(self._bulk, unread, found, deep=self._deep)
            names += unread
            unread = reply[1]
            self._move(int(reply[0]), count)
        found = self._bulk.send(*_packed_reads(unread, deep=self._deep))
        return names + unread, slots + _compared(self._bulk, unread, found, deep=self._deep)

    def _move(self, cursor: int, count: int) -> None:
        before, self.share = self.share, self._part.share(cursor)
        self.cursor = cursor
        self.ended = self._part.ends_at(cursor)
        if self.share > before:
            # Take ever smaller steps toward the end, because the last one continues into the next part.
            self._left = max(1, int(0.8 * count * (1 - self.share) / (self.share - before)))


class ChangedKeys:
    """The slots of the keys that the change log lists.

    Args:
        bulk: a connection to the Redis.
        service: the service that owns the slots.
        keys: a cursor over the result of `changed_keys.sql`.
        cursor: the version after which the result starts.
        deep: whether payloads are compared too.
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
        """Read the slots of the log's next keys."""
        records = await self._keys.fetch(min(size, _SCAN))
        self._count += len(records)
        if records:
            self.cursor = records[-1]["version"]
            self.share = self._count / records[-1]["total"]
        self.ended = len(records) < min(size, _SCAN)
        names = [slot_name(self._service, one["entity"], one["key"]).encode() for one in records]
        return names, await asyncio.to_thread(self._read, names)

    def _read(self, names: Names) -> list[bytes]:
        replies = self._bulk.send(*_packed_reads(names, deep=self._deep))
        return _compared(self._bulk, names, replies, deep=self._deep)


def _packed_reads(names: Names, *, deep: bool) -> tuple[bytes, int]:
    """Return the packed commands that read slots as far as necessary to compare them, and their number."""
    if deep:
        packed = [b"*2\r\n$3\r\nGET\r\n$%d\r\n%b\r\n" % (len(name), name) for name in names]
    else:
        last = b"%d" % (HEAD_BYTES - 1)
        command = b"*4\r\n$8\r\nGETRANGE\r\n$%%d\r\n%%b\r\n$1\r\n0\r\n$%d\r\n%b\r\n" % (len(last), last)
        packed = [command % (len(name), name) for name in names]
    return b"".join(packed), len(names)


def _compared(bulk: Bulk, names: Names, replies: list[Any], *, deep: bool) -> list[bytes]:
    """Return the compared part of each slot, from the replies to `_packed_reads`.

    That is empty for an empty slot, and `UNREADABLE` for an unreadable one.
    """
    slots = [_compared_part(reply, deep=deep) for reply in replies]
    # GETRANGE replies with nothing both to a slot that does not exist and to one that holds an empty string.
    blank = [] if deep else [index for index, reply in enumerate(replies) if reply == b""]
    for index, exists in zip(blank, bulk.call([(b"EXISTS", names[index]) for index in blank]), strict=True):
        if exists == 1:
            slots[index] = UNREADABLE
    return slots


def _compared_part(reply: Any, *, deep: bool) -> bytes:
    if reply is None or (reply == b"" and not deep):
        return b""
    if type(reply) is not bytes or not is_readable(reply):
        return UNREADABLE
    if not is_value(reply):
        return reply
    before_payload = reply[:UP_TO_PAYLOAD]
    if not deep:
        return before_payload
    return before_payload + md5(reply[UP_TO_PAYLOAD:], usedforsecurity=False).hexdigest().encode()
