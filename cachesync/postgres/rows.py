"""Reading rows in the form in which they are cached, for the background work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from cachesync.change import Row
from cachesync.errors import InvalidValueError, NotInstalledError
from cachesync.postgres.catalog import describe_relation
from cachesync.postgres.key import Key
from cachesync.postgres.lookup import lookups_in_view
from cachesync.postgres.statements import identifier, statement

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    import asyncpg

    from cachesync.entity import Entity
    from cachesync.postgres.lookup import Lookup


class Rows:
    """Reads the rows of one entity from its view.

    Args:
        connection: a connection with the role `cachesync_worker`.
        entity: the entity.
        key: the key of the entity.
        lookups: its unique lookups, as columns of the view.
    """

    def __init__(
        self, connection: asyncpg.Connection, entity: Entity, key: Key, lookups: Mapping[str, Lookup]
    ) -> None:
        self._connection = connection
        self._declared = entity
        self._entity = entity.name
        self._key = key
        self._lookups = lookups
        self._view = identifier("cachesync", entity.name)

    @classmethod
    async def open(cls, connection: asyncpg.Connection, entity: Entity) -> Self:
        """Look up the key columns and return the reader.

        Args:
            connection: a connection with the role `cachesync_worker`.
            entity: the entity.

        Raises:
            NotInstalledError: the entity is not installed.
        """
        view = identifier("cachesync", entity.name)
        relation = await describe_relation(connection, entity)
        if relation is None or await connection.fetchval("SELECT to_regclass($1)", view) is None:
            message = f"entity {entity.name!r} is declared but not installed; run `cachesync install`"
            raise NotInstalledError(message)
        lookups = lookups_in_view(entity, relation.columns)
        return cls(connection, entity, Key.of(entity, relation.columns), lookups)

    def canonical(self, given: object) -> str:
        """Return the text of a key in canonical form.

        Args:
            given: the text in any spelling of its values, or a sequence with the text of each column's value.

        Raises:
            InvalidValueError: this cannot be the key of a row.
        """
        return self._key.canonical(given)

    async def read(self, keys: Iterable[str]) -> dict[str, Row]:
        """Return the rows that exist, by key; keys that no row can have are skipped."""
        possible = [key for key in keys if self.impossible(key) is None]
        return await self._read(self._key.in_view(), possible)

    async def keys_after(self, key: str | None, count: int) -> list[str]:
        """Return the keys of the next rows, in the order of the key.

        Args:
            key: the key that precedes them; None for the first ones.
            count: the maximum number of keys.
        """
        shown = self._key.in_view()
        query = statement(
            "postgres/keys_after",
            view=self._view,
            key_text=shown.text("v"),
            key_columns=shown.listed("v"),
            follows="$1::text IS NULL" if key is None else shown.follows("v", "$1::text"),
        )
        return [record["key"] for record in await self._connection.fetch(query, key, count)]

    async def having(self, lookup: Lookup, texts: Iterable[str]) -> dict[str, Row]:
        """Return the rows that have values in unique columns, by the text of the value.

        Args:
            lookup: the columns of the view.
            texts: the texts of the values; those that no row can have are skipped.
        """
        return await self._read(lookup, [text for text in texts if lookup.impossible(text) is None])

    async def _read(self, columns: Key, texts: list[str]) -> dict[str, Row]:
        query = statement(
            "postgres/rows",
            view=self._view,
            key_text=self._key.in_view().text("v"),
            has_text=columns.matches("v", "u.text"),
        )
        return {
            record["text"]: Row(
                record["key"], record["version"], record["fingerprint"].encode(), record["payload"].encode()
            )
            for record in await self._connection.fetch(query, texts, self._entity)
        }

    def impossible(self, key: str) -> str | None:
        """Return why no row can have this key in this form; None if a row can."""
        try:
            canonical = self._key.canonical(key)
            if canonical == key:
                return None
            reason = f"its canonical form is {canonical!r}"
        except InvalidValueError as error:
            reason = error.message
        return f"no row can have the key {key!r}: {reason}"
