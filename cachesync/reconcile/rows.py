"""The rows of one entity, as reconciliation asks for them: many at a time, and only for what differs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, Self

import asyncpg

from cachesync.catalogue import describe_relation
from cachesync.database import connect
from cachesync.errors import InvalidValueError, NotInstalledError
from cachesync.rows import by_key
from cachesync.statements import identifier, statement

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cachesync.catalogue import Column
    from cachesync.change import Row
    from cachesync.entity import Entity

# Whatever the statistics say: the key's index, and a hash to bring slots and rows together.
_PLAN: Final = """
SET plan_cache_mode = force_generic_plan;
SET enable_seqscan = off;
SET enable_nestloop = off;
SET jit = off;
"""


async def connect_for_rows(dsn: str | None) -> asyncpg.Connection:
    """A connection for `Rows`.

    Raises:
        DatabaseUnavailableError: the database does not let us in.
    """
    connection = await connect(dsn, "cachesync-reconcile")
    await connection.execute(_PLAN)
    return connection


class Rows:
    """Reads the rows of one entity.

    Args:
        connection: one of `connect_for_rows`.
        entity: the entity.
        key: its key column.
        deep: whether slots come with digests of their payloads.
    """

    def __init__(self, connection: asyncpg.Connection, entity: Entity, key: Column, *, deep: bool) -> None:
        self._connection = connection
        self._entity = entity.name
        self._key = key
        fragments = {"view": identifier("cachesync", entity.name), "key_type": f"pg_catalog.{key.base_type}"}
        self._disagreeing = statement("disagreeing", digest="md5(r.payload)" if deep else "''", **fragments)
        self._rows = statement("rows", **fragments)

    @classmethod
    async def open(cls, connection: asyncpg.Connection, entity: Entity, *, deep: bool) -> Self:
        """Look up the key's type.

        Raises:
            NotInstalledError: the entity is not installed.
        """
        view = identifier("cachesync", entity.name)
        relation = await describe_relation(connection, entity)
        if relation is None or await connection.fetchval("SELECT to_regclass($1)", view) is None:
            message = f"entity {entity.name!r} is declared but not installed; run `cachesync install`"
            raise NotInstalledError(message)
        key = next(column for column in relation.columns if column.name == entity.key)
        return cls(connection, entity, key, deep=deep)

    async def disagreeing(self, keys: list[str], slots: list[str]) -> list[tuple[int, int | None]]:
        """Which slots differ from what their rows would fill them with.

        Args:
            keys: the keys.
            slots: what each one's slot holds up to the payload; where deep, and its digest.

        Returns:
            The place of each that differs, and the version of its row, None where there is none.
        """
        try:
            found = await self._connection.fetch(self._disagreeing, keys, slots, self._entity)
            return [(record["number"] - 1, record["version"]) for record in found]
        except (asyncpg.DataError, UnicodeEncodeError):
            # Somebody else's strings are among the slots: no row can have such a key, no slot a NUL.
            possible = [place for place, key in enumerate(keys) if self._is_possible(key)]
            cleaned = [slots[place].replace("\0", "?") for place in possible]
            if cleaned == slots:
                raise
        rest = await self.disagreeing([keys[place] for place in possible], cleaned)
        impossible = sorted(set(range(len(keys))).difference(possible))
        return [
            *((place, None) for place in impossible),
            *((possible[place], version) for place, version in rest),
        ]

    async def read(self, keys: Iterable[str]) -> dict[str, Row]:
        """The rows that there are, by key."""
        possible = [key for key in keys if self._is_possible(key)]
        records = await self._connection.fetch(self._rows, possible, self._entity)
        return by_key(records)

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
            statement("in_flight"),
            self._entity,
            versions,
            [key for key in gone if self._is_possible(key)],
        )
        asked = set(versions)
        keys = {record["key"] for record in found if record["version"] not in asked}
        return {record["version"] for record in found} & asked, None if None in keys else keys

    def _is_possible(self, key: str) -> bool:
        """Whether a row may have this key, and in this form."""
        try:
            key.encode()
            return self._key.canonical_key(key) == key
        except (InvalidValueError, UnicodeEncodeError):
            return False
