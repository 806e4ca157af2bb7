"""Rows as caches hold them, read by the background work."""

from __future__ import annotations

from typing import TYPE_CHECKING

import asyncpg

from cachesync.change import Row
from cachesync.errors import NotInstalledError
from cachesync.statements import identifier, statement

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable


class CurrentRows:
    """Reads rows from the entities' views.

    Args:
        connection: one with the rights of `cachesync_worker`, in a transaction.
    """

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._statements: dict[str, str] = {}

    async def read(self, entity: str, keys: Collection[str]) -> dict[str, Row | str]:
        """The rows with these keys, by key; where there can be no row with a key, why.

        Raises:
            NotInstalledError: the entity has no view in this database.
        """
        query = await self._statement(entity)
        try:
            return await self._read(query, entity, keys)
        except asyncpg.DataError:
            # One is none of the key's type.
            rows: dict[str, Row | str] = {}
            for key in keys:
                try:
                    rows |= await self._read(query, entity, [key])
                except asyncpg.DataError as error:
                    rows[key] = f"no row can have the key {key!r}: {error}"
            return rows

    async def _read(self, query: str, entity: str, keys: Collection[str]) -> dict[str, Row | str]:
        async with self._connection.transaction():
            return {**by_key(await self._connection.fetch(query, list(keys), entity))}

    async def _statement(self, entity: str) -> str:
        if entity not in self._statements:
            view = identifier("cachesync", entity)
            key_type = await self._connection.fetchval(statement("view_key_type"), view)
            if key_type is None:
                message = f"entity {entity!r} is not installed in this database; run `cachesync install`"
                raise NotInstalledError(message)
            self._statements[entity] = statement("rows", view=view, key_type=key_type)
        return self._statements[entity]


def by_key(records: Iterable[asyncpg.Record]) -> dict[str, Row]:
    """The rows that `rows.sql` has found, by key."""
    return {
        record["key"]: Row(
            record["key"], record["version"], record["fingerprint"].encode(), record["payload"].encode()
        )
        for record in records
    }
