"""The sources of slots to examine: a part of a keyspace, or the keys that have changed."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from hashlib import md5
from itertools import compress
from typing import TYPE_CHECKING, Any, Final, Protocol

from hiredis import ReplyError

from cachesync.errors import CacheUnavailableError
from cachesync.slots.layout import HEAD_BYTES, is_readable, slot_name
from cachesync.value import FINGERPRINT, UP_TO_PAYLOAD, VERSION, is_value

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Mapping, Sequence

    import asyncpg

    from cachesync.reconcile.keyspace import Part
    from cachesync.slots.bulk import Bulk

    ValuesOf = Callable[[Sequence[str]], Awaitable[list[tuple[str, str]]]]
    """Returns the names of lookups, and the texts of values."""

Names = list[bytes]

UNREADABLE: Final = b"unreadable"
"""What a source returns for a slot whose content is not that of a slot."""

# Redis does nothing else while it executes a SCAN, which takes about half a millisecond with this count.
_SCAN: Final = 1000


# In joined keys; a key that contains it is not joined.
_SEPARATOR: Final = b"\n"
# Widths of an encoded version: alone, and with the comma between two of them.
_WIDTH: Final = VERSION.stop - VERSION.start
_STRIDE: Final = _WIDTH + 1


@dataclass(slots=True)
class Values:
    """The values of one entity that were read together and have one fingerprint, without an object for each.

    Attributes:
        fingerprint: the fingerprint.
        count: the number of values.
        keys: their keys, by block, joined by newlines.
        versions: their encoded versions, by block, joined by commas.
    """

    fingerprint: bytes
    count: int = 0
    keys: list[bytes] = field(default_factory=list)
    versions: list[bytes] = field(default_factory=list)

    def add(self, prefix: bytes, names: Sequence[bytes], slots: Sequence[Any]) -> bool:
        """Add a block of slots if all of them are such values.

        Comparing and replacing within the joined block takes a tenth of the time of a loop over its slots.

        Args:
            prefix: the prefix of the names of the entity's slots.
            names: the names of the slots.
            slots: the first `HEAD_BYTES` of each, or another reply.

        Returns:
            Whether the block was added.
        """
        count = len(names)
        try:
            heads = b"".join(slots)
        except TypeError:
            return False
        # A payload is a JSON object.
        ending = self.fingerprint + b"{"
        versions = heads[1 : -len(ending)].replace(ending + b"V", b",")
        # The versions are where they belong if the commas are.
        if not (
            heads.startswith(b"V")
            and heads.endswith(ending)
            and len(heads) == HEAD_BYTES * count
            and len(versions) == _STRIDE * count - 1
            and versions[_WIDTH::_STRIDE] == b"," * (count - 1)
            and versions.replace(b",", b"").isdigit()
        ):
            return False
        joined = _SEPARATOR + _SEPARATOR.join(names)
        keys = joined.replace(_SEPARATOR + prefix, _SEPARATOR)
        if joined.count(_SEPARATOR) != count or len(joined) - len(keys) != count * len(prefix):
            return False
        self.count += count
        self.keys.append(keys[len(_SEPARATOR) :])
        self.versions.append(versions)
        return True

    def joined(self) -> tuple[bytes, bytes]:
        """Return all keys, joined by newlines, and all versions, joined by commas."""
        return _SEPARATOR.join(self.keys), b",".join(self.versions)

    def split(self) -> tuple[list[bytes], list[bytes]]:
        """Return the keys, and each slot up to its payload."""
        keys, versions = self.joined()
        before_payloads = [b"V%b%b" % (version, self.fingerprint) for version in versions.split(b",")]
        return keys.split(_SEPARATOR), before_payloads


@dataclass(slots=True)
class Batch:
    """Slots that were read together.

    Attributes:
        values: the values of each entity with the fingerprint that is expected.
        names: the names of the other slots.
        slots: the part of each that `ComparedRows.mismatches` compares.
    """

    values: dict[str, Values] = field(default_factory=dict)
    names: Names = field(default_factory=list)
    slots: list[bytes] = field(default_factory=list)

    @property
    def count(self) -> int:
        """The number of slots."""
        return len(self.names) + sum(values.count for values in self.values.values())


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

    async def read(self, size: int) -> Batch:
        """Return the next slots.

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
        fingerprints: the fingerprint of most values, by the entity's name and the prefix of its slots' names.
    """

    def __init__(
        self,
        bulk: Bulk,
        part: Part,
        pattern: str,
        cursor: int | None,
        *,
        deep: bool,
        fingerprints: Mapping[tuple[str, bytes], bytes],
    ) -> None:
        self._bulk = bulk
        self._fingerprints = {} if deep else fingerprints
        self._part = part
        self._match = pattern.encode()
        self._deep = deep
        self.cursor = part.first if cursor is None else cursor
        self.share = part.share(self.cursor)
        self.ended = False
        # An estimate of the number of keys that remain in the part.
        self._left = _SCAN

    async def read(self, size: int) -> Batch:
        """Scan the next slots, in a thread."""
        return await asyncio.to_thread(self._read, size)

    def _read(self, size: int) -> Batch:
        batch = Batch()
        unread: Names = []
        seen = 0
        # The slots that one SCAN lists are read in the same round trip as the next SCAN.
        while not self.ended and seen < size:
            count = min(size, _SCAN, self._left)
            scan = (b"SCAN", b"%d" % self.cursor, b"MATCH", self._match, b"COUNT", b"%d" % count)
            packed, reads = _packed_reads(unread, deep=self._deep)
            reply, *found = self._bulk.send(self._bulk.pack([scan]) + packed, reads + 1)
            if isinstance(reply, ReplyError):
                raise CacheUnavailableError(str(reply))
            self._add(batch, unread, found)
            unread = reply[1]
            seen += len(unread)
            self._move(int(reply[0]), count)
        self._add(batch, unread, self._bulk.send(*_packed_reads(unread, deep=self._deep)))
        return batch

    def _add(self, batch: Batch, names: Names, replies: list[Any]) -> None:
        """Add slots to a batch."""
        for (entity, prefix), fingerprint in self._fingerprints.items():
            if not names:
                return
            values = batch.values.setdefault(entity, Values(fingerprint))
            if values.add(prefix, names, replies):
                return
            expected = [
                type(reply) is bytes
                and len(reply) == HEAD_BYTES
                and reply[FINGERPRINT] == fingerprint
                and is_value(reply)
                and name.startswith(prefix)
                and _SEPARATOR not in name
                for name, reply in zip(names, replies, strict=True)
            ]
            if any(expected) and values.add(
                prefix, list(compress(names, expected)), list(compress(replies, expected))
            ):
                names = [name for name, taken in zip(names, expected, strict=True) if not taken]
                replies = [reply for reply, taken in zip(replies, expected, strict=True) if not taken]
        batch.names += names
        batch.slots += _compared(self._bulk, names, replies, deep=self._deep)

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
        values_of: for each entity with unique lookups, returns what the rows with some keys have in them.
        deep: whether payloads are compared too.
    """

    def __init__(
        self,
        bulk: Bulk,
        service: str,
        keys: asyncpg.cursor.Cursor,
        cursor: int,
        values_of: Mapping[str, ValuesOf],
        *,
        deep: bool,
    ) -> None:
        self._bulk = bulk
        self._service = service
        self._keys = keys
        self._values_of = values_of
        self._deep = deep
        self._count = 0
        self.cursor = cursor
        self.share = 0.0
        self.ended = False

    async def read(self, size: int) -> Batch:
        """Read the slots of the log's next keys."""
        records = await self._keys.fetch(min(size, _SCAN))
        self._count += len(records)
        if records:
            self.cursor = records[-1]["version"]
            self.share = self._count / records[-1]["total"]
        self.ended = len(records) < min(size, _SCAN)
        slots = [(one["entity"], one["key"]) for one in records]
        for entity, values_of in self._values_of.items():
            slots += await values_of([key for name, key in slots if name == entity])
        names = [slot_name(self._service, *slot).encode() for slot in slots]
        return Batch(names=names, slots=await asyncio.to_thread(self._read, names))

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
