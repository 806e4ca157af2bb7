"""A unique lookup of an entity: its columns, and the text of a value in the names of slots."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from cachesync.entity import SEGMENTS_BEFORE_VALUES, TYPE_PARAMETER
from cachesync.errors import InvalidValueError
from cachesync.postgres.key import Key
from cachesync.postgres.statements import identifier

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping

    from cachesync.entity import Entity
    from cachesync.postgres.catalog import Column


class Lookup(Key):
    """The columns of a unique lookup. `matches` is the condition that a row has a value."""

    __slots__ = ()

    def canonical(self, given: object) -> str:
        """Return the text of a value, as `cachesync.lookup` finds it in a payload.

        Args:
            given: as for `Key.canonical`.

        Raises:
            InvalidValueError: no row can have this value.
        """
        parts = self.parts(super().canonical(given))
        return self.text_of(
            [column.in_payload(part) for column, part in zip(self.columns, parts, strict=True)]
        )

    def impossible(self, text: str) -> str | None:
        """Return why no row can have a value with this text; None if a row can."""
        try:
            canonical = self.canonical(text)
        except InvalidValueError as error:
            return error.message
        return None if canonical == text else f"its canonical form is {canonical!r}"


def lookups_of(entity: Entity, columns: Iterable[Column]) -> dict[str, Lookup]:
    """Return the unique lookups of an entity by their names.

    Args:
        entity: the entity.
        columns: the columns of its table.
    """
    by_name = {column.name: column for column in columns}
    return {
        name: Lookup(tuple(by_name[column] for column in names)) for name, names in entity.lookups.items()
    }


def lookups_in_view(entity: Entity, columns: Iterable[Column]) -> dict[str, Lookup]:
    """Return the unique lookups of an entity as columns of its view, by their names."""
    shown = _shown(entity)
    return {
        name: Lookup(tuple(replace(column, name=shown[column.name]) for column in lookup.columns))
        for name, lookup in lookups_of(entity, columns).items()
    }


def view_columns(entity: Entity, row: str) -> str:
    """Return the expressions for these columns of the view, each with a comma before it."""
    return "".join(
        f",\n    {row}.{identifier(column)} AS {identifier(shown)}"
        for column, shown in _shown(entity).items()
    )


def _shown(entity: Entity) -> dict[str, str]:
    columns = dict.fromkeys(column for names in entity.unique for column in names)
    return {column: f"unique_{number}" for number, column in enumerate(columns, 1)}


def possible_lookups(
    entity: Entity, columns: Iterable[Column], unique: Iterable[frozenset[str]]
) -> list[tuple[str, ...]]:
    """Return the columns of the unique lookups that an entity could declare, in the order of the columns.

    Args:
        entity: the entity.
        columns: its served columns.
        unique: as for `lookup_problems`.
    """
    names = [column.name for column in columns if column.can_be_found and column.name != TYPE_PARAMETER]
    possible = [
        tuple(name for name in names if name in index)
        for index in unique
        if index <= set(names) and len(entity.key) != len(index) + SEGMENTS_BEFORE_VALUES
    ]
    return sorted(
        (listed for listed in possible if set(listed) != set(entity.key)),
        key=lambda listed: [*map(names.index, listed)],
    )


def lookup_problems(
    entity: Entity, columns: Mapping[str, Column], unique: Iterable[frozenset[str]]
) -> Iterator[str]:
    """Yield why the unique lookups of an entity are not possible on its table.

    Args:
        entity: the entity.
        columns: the columns of the table, by name.
        unique: the sets of columns on which the table has a unique index that can be used.
    """
    known = set(unique)
    for names in entity.unique:
        listed = ", ".join(names)
        missing = [name for name in names if name not in columns]
        if missing:
            yield f"unique: it has no column {', '.join(map(repr, missing))}"
            continue
        if frozenset(names) not in known:
            yield (
                f"unique: it has no valid unique index on ({listed}) for all rows, without other columns or "
                f"expressions; run CREATE UNIQUE INDEX CONCURRENTLY ON {entity.table} ({listed}), on a "
                "partitioned table without CONCURRENTLY and with the columns that decide the partition, or "
                "remove the columns from unique"
            )
        for name in names:
            if not columns[name].can_be_found:
                collation = "" if columns[name].deterministic else " with a nondeterministic collation"
                yield (
                    f"unique: its column {name!r} has the type {columns[name].declared_type}{collation}, so "
                    "that equal values can have different texts; remove it from unique"
                )
