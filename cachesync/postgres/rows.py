"""Reading rows in the form in which they are cached, for the background work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from cachesync.change import Row
from cachesync.errors import InvalidValueError, NotInstalledError
from cachesync.postgres.catalog import describe_relation
from cachesync.postgres.key import Key
from cachesync.postgres.statements import identifier, statement

if TYPE_CHECKING:
    from collections.abc import Iterable

    import asyncpg

    from cachesync.entity import Entity


class Rows:
    """Reads the rows of one entity from its view.

    Args:
        connection: a connection with the role `cachesync_worker`.
        entity: the entity.
        key: the key of the entity.
    """

    def __init__(self, connection: asyncpg.Connection, entity: Entity, key: Key) -> None:
        self._connection = connection
        self._entity = entity.name
        self._key = key
        self._view = identifier("cachesync", entity.name)
        self._read = statement("postgres/rows", view=self._view, has_key=key.in_view().matches("v", "u.key"))

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
        return cls(connection, entity, Key.of(entity, relation.columns))

    async def read(self, keys: Iterable[str]) -> dict[str, Row]:
        """Return the rows that exist, by key; keys that no row can have are skipped."""
        possible = [key for key in keys if self.impossible(key) is None]
        records = await self._connection.fetch(self._read, possible, self._entity)
        return {
            record["key"]: Row(
                record["key"], record["version"], record["fingerprint"].encode(), record["payload"].encode()
            )
            for record in records
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
