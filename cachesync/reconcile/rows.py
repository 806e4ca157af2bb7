"""The rows of one entity, as reconciliation asks for them: many at a time, and only for what differs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import asyncpg

from cachesync.postgres.connect import connect
from cachesync.postgres.rows import Rows
from cachesync.postgres.statements import statement

if TYPE_CHECKING:
    from collections.abc import Sequence

# Whatever the statistics say: the key's index, and a hash to bring slots and rows together.
_PLAN: Final = """
SET plan_cache_mode = force_generic_plan;
SET enable_seqscan = off;
SET enable_nestloop = off;
SET jit = off;
"""


async def connect_for_rows(dsn: str | None) -> asyncpg.Connection:
    """A connection for `ComparedRows`.

    Raises:
        DatabaseUnavailableError: the database does not let us in.
    """
    connection = await connect(dsn, "cachesync-reconcile")
    await connection.execute(_PLAN)
    return connection


class ComparedRows(Rows):
    """Compares slots with the rows of one entity; its connection is one of `connect_for_rows`."""

    async def disagreeing(
        self, keys: Sequence[bytes], slots: Sequence[bytes], *, deep: bool
    ) -> list[tuple[int, int | None]]:
        """Which slots differ from what their rows would fill them with.

        Args:
            keys: the keys.
            slots: what each one's slot holds up to the payload; where deep, and its digest.
            deep: whether it does.

        Returns:
            The place of each that differs, and the version of its row, None where there is none.
        """
        if not keys:
            return []
        query = statement(
            "reconcile/disagreeing", digest="md5(r.payload)" if deep else "''", **self._fragments
        )
        try:
            # What is no text in a slot differs from all that a row would put there, like what replaces it.
            held, between_held = _joined(slots, "replace")
            found = await self._connection.fetch(
                query, *_joined(keys, "strict"), held.replace("\0", "?"), between_held, self._entity
            )
            return [(record["number"] - 1, record["version"]) for record in found]
        except (asyncpg.DataError, UnicodeDecodeError):
            # Somebody else's strings are among the slots: no row can have such a key.
            texts = [key.decode(errors="surrogateescape") for key in keys]
            possible = [place for place, key in enumerate(texts) if self.impossible(key) is None]
            if len(possible) == len(keys):
                raise
        rest = await self.disagreeing(
            [keys[place] for place in possible], [slots[place] for place in possible], deep=deep
        )
        return [
            *((place, None) for place in sorted(set(range(len(keys))).difference(possible))),
            *((possible[place], version) for place, version in rest),
        ]

    async def in_flight(self, versions: list[int], gone: list[str]) -> tuple[set[int], set[str] | None]:
        """Which changes may still be on their way to the caches.

        Args:
            versions: those of rows that differ from their slots.
            gone: keys of slots that have no row.

        Returns:
            Those of the versions, and those of the keys; None in place of the keys: all of them, the table
            was truncated.
        """
        found = await self._connection.fetch(
            statement("reconcile/in_flight"),
            self._entity,
            versions,
            [key for key in gone if self.impossible(key) is None],
        )
        asked = set(versions)
        keys = {record["key"] for record in found if record["version"] not in asked}
        return {record["version"] for record in found} & asked, None if None in keys else keys


def _joined(parts: Sequence[bytes], errors: str) -> tuple[str, str]:
    """The parts as one text, and the character between them: an array of so many takes ten times as long."""
    text = b"".join(parts).decode(errors=errors)
    between = next(one for one in map(chr, range(1, 0xD800)) if one not in text)
    return between.encode().join(parts).decode(errors=errors), between
