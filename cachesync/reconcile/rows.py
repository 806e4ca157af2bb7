"""Compares slots with the rows of one entity, many at a time; only differences leave the database."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

import asyncpg

from cachesync.errors import NotInstalledError
from cachesync.lookup import lookup_name, values_in
from cachesync.postgres.connect import connect
from cachesync.postgres.rows import Rows
from cachesync.postgres.statements import statement
from cachesync.slots.layout import ABSENT

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cachesync.change import Row
    from cachesync.entity import Entity
    from cachesync.postgres.key import Key
    from cachesync.postgres.lookup import Lookup
    from cachesync.reconcile.source import Values

# Forces the good plan, even if statistics are outdated: the key's index, and a hash join of slots and rows.
_PLANNER_SETTINGS: Final = {
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
    "enable_nestloop": "off",
    "jit": "off",
    # For the largest round; a smaller hash table would be split into files.
    "work_mem": "32MB",
}


async def connect_for_rows(dsn: str | None) -> asyncpg.Connection:
    """Open a connection for `ComparedRows`.

    Args:
        dsn: the database; None to use the variables PGHOST, PGUSER and so on.

    Raises:
        DatabaseUnavailableError: the database did not respond or rejected the login.
    """
    return await connect(dsn, "cachesync-reconcile", settings=_PLANNER_SETTINGS)


class ComparedRows(Rows):
    """Compares slots with the rows of one entity. Requires a connection made by `connect_for_rows`.

    Args:
        connection: the connection.
        entity: the entity.
        key: the key of the entity.
        lookups: its unique lookups, as columns of the view.
    """

    def __init__(
        self, connection: asyncpg.Connection, entity: Entity, key: Key, lookups: Mapping[str, Lookup]
    ) -> None:
        super().__init__(connection, entity, key, lookups)
        shown = key.in_view()
        if len(shown.columns) == 1:
            key_type = shown.columns[0].sql_type
            rows = statement("reconcile/rows_by_keys", view=self._view, key_type=key_type)
        else:
            # An index of several columns finds one key at a time.
            key_type = "text"
            rows = statement("reconcile/row_by_key", view=self._view, has_key=shown.matches("t", "s.key"))
        self._fragments = {"rows": rows.strip(), "key_type": key_type}

    async def lookups(self) -> list[ComparedLookup]:
        """Return the unique lookups of the entity.

        Raises:
            NotInstalledError: they were declared after the installation.
        """
        shown = {name for lookup in self._lookups.values() for name in lookup.names}
        if not await self._connection.fetchval(statement("reconcile/shows_columns"), self._view, list(shown)):
            message = (
                f"the unique lookups of entity {self._entity!r} are not installed; run `cachesync install`"
            )
            raise NotInstalledError(message)
        return [
            ComparedLookup(lookup_name(self._entity, name), self, lookup)
            for name, lookup in self._lookups.items()
        ]

    async def values_of(self, keys: Iterable[str]) -> list[tuple[str, str]]:
        """Return what rows have in the unique lookups: the names of these, and the texts of the values."""
        rows = await self.read(keys)
        return [
            (lookup_name(self._entity, name), text)
            for row in rows.values()
            for name, text in (values_in(self._declared.lookups, row.payload) or {}).items()
            if text is not None
        ]

    async def fingerprint(self) -> bytes:
        """Return the entity's schema fingerprint.

        Raises:
            NotInstalledError: the entity is no longer installed.
        """
        found = await self._connection.fetchval(
            "SELECT fingerprint FROM cachesync.entity WHERE name = $1", self._entity
        )
        if found is None:
            message = f"entity {self._entity!r} is not installed; run `cachesync install`"
            raise NotInstalledError(message)
        return bytes(found.encode())

    async def other_versions(self, values: Values) -> list[tuple[int, int | None]]:
        """Find the values whose version is not that of their row, in a tenth of the time of `mismatches`.

        Args:
            values: the values.

        Returns:
            As `mismatches`. If the entity has another fingerprint in the meantime, all values.
        """
        keys, versions = values.joined()
        try:
            found = await self._connection.fetch(
                statement("reconcile/other_versions", **self._fragments),
                keys.decode(),
                versions.decode(),
                self._entity,
                values.fingerprint.decode(),
            )
        except (asyncpg.DataError, UnicodeDecodeError):
            # Some of the slots were written by other programs.
            return await self.mismatches(*values.split(), deep=False)
        return [(record["number"] - 1, record["version"]) for record in found]

    async def mismatches(
        self, keys: Sequence[bytes], slots: Sequence[bytes], *, deep: bool
    ) -> list[tuple[int, int | None]]:
        """Find the slots that differ from what their rows would fill them with.

        Args:
            keys: the keys.
            slots: the slot of each key up to its payload; if `deep`, followed by the payload's digest.
            deep: whether to compare the digests too.

        Returns:
            The index of each slot that differs, and the version of its row; None if there is no row.
        """
        if not keys:
            return []
        query = statement(
            "reconcile/mismatches", digest="md5(r.payload)" if deep else "''", **self._fragments
        )
        try:
            # Bytes that are not text differ from everything that a row would fill in, and so does what
            # replaces them.
            joined_slots, separator = _joined(slots, "replace")
            found = await self._connection.fetch(
                query, *_joined(keys, "strict"), joined_slots.replace("\0", "?"), separator, self._entity
            )
            return [(record["number"] - 1, record["version"]) for record in found]
        except (asyncpg.DataError, UnicodeDecodeError):
            # Some of the slots were written by other programs: no row can have such a key.
            texts = [key.decode(errors="surrogateescape") for key in keys]
            possible = [index for index, key in enumerate(texts) if self.impossible(key) is None]
            if len(possible) == len(keys):
                raise
        rest = await self.mismatches(
            [keys[index] for index in possible], [slots[index] for index in possible], deep=deep
        )
        return [
            *((index, None) for index in sorted(set(range(len(keys))).difference(possible))),
            *((possible[index], version) for index, version in rest),
        ]

    async def in_flight(self, versions: list[int], gone: list[str]) -> tuple[set[int], set[str] | None]:
        """Find changes that may still be in flight to the caches.

        Args:
            versions: the versions of rows that differ from their slots.
            gone: the keys of slots that have no row.

        Returns:
            The versions whose change may be in flight, and the keys whose delete may be; None instead of the
            keys if all of them may be, because the table was truncated.
        """
        found = await self._connection.fetch(
            statement("reconcile/in_flight"),
            self._entity,
            versions,
            [key for key in gone if self.impossible(key) is None],
        )
        of_rows = set(versions)
        keys = {record["key"] for record in found if record["version"] not in of_rows}
        return {record["version"] for record in found} & of_rows, None if None in keys else keys


class ComparedLookup:
    """Compares the slots of a unique lookup with the rows, as `ComparedRows` compares those of the rows.

    What a slot says of a row is compared with the row by every read, so that only *absent* can be wrong.

    Args:
        name: what takes the place of the entity in the names of its slots.
        rows: the rows of the entity.
        lookup: the lookup, with the columns of the view.

    Attributes:
        name: as given.
    """

    def __init__(self, name: str, rows: ComparedRows, lookup: Lookup) -> None:
        self.name = name
        self._rows = rows
        self._lookup = lookup

    async def other_versions(self, _values: Values) -> list[tuple[int, int | None]]:
        """Return no values."""
        return []

    async def mismatches(
        self,
        keys: Sequence[bytes],
        slots: Sequence[bytes],
        *,
        deep: bool,  # noqa: ARG002 - the payload is a key
    ) -> list[tuple[int, int | None]]:
        """Find the slots that say *absent* of a value that a row has.

        Args:
            keys: the texts of the values.
            slots: the slots.
            deep: makes no difference.

        Returns:
            The index of each such slot, and the version of the row.
        """
        texts = {
            index: key.decode(errors="surrogateescape")
            for index, (key, slot) in enumerate(zip(keys, slots, strict=True))
            if slot == ABSENT
        }
        rows = await self.read(texts.values())
        return [(index, rows[text].version) for index, text in texts.items() if text in rows]

    async def read(self, texts: Iterable[str]) -> dict[str, Row]:
        """Return the rows that have values, by the text of the value."""
        return await self._rows.having(self._lookup, texts)

    async def in_flight(self, versions: list[int], _gone: list[str]) -> tuple[set[int], set[str] | None]:
        """Return the versions of rows whose change may be in flight, as `ComparedRows` does."""
        return await self._rows.in_flight(versions, [])


def _joined(parts: Sequence[bytes], errors: str) -> tuple[str, str]:
    """Return the parts as one text, and the character that separates them.

    Passing this many parts as an array takes ten times as long.
    """
    text = b"".join(parts).decode(errors=errors)
    separator = next(one for one in map(chr, range(1, 0xD800)) if one not in text)
    return separator.encode().join(parts).decode(errors=errors), separator
