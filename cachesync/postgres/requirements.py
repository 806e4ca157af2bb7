"""The properties that a table needs so that its triggers see every change of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cachesync.postgres.catalog import Properties

_KINDS: Final = {
    "f": "a foreign table",
    "m": "a materialized view",
    "v": "a view",
}


def unmet_requirements(table: str, key: Sequence[str], properties: Properties) -> Iterator[str]:
    """Yield why the changes of a table's rows would be missed, each with the remedy.

    Args:
        table: the table as declared.
        key: the key columns of the entity.
        properties: the table as the catalog describes it.
    """
    if properties.kind not in {"r", "p"}:
        yield f"it is {_KINDS.get(properties.kind, 'not a table')}; only tables can be registered"
        return
    if properties.foreign_partitions:
        yield (
            f"its partition {', '.join(properties.foreign_partitions)} is a foreign table, whose rows others "
            "can change without firing its triggers; detach it"
        )
    yield from _trigger_problems(properties)
    yield from _key_problems(table, key, properties)


def _trigger_problems(properties: Properties) -> Iterator[str]:
    """Yield why triggers on the table would miss changes."""
    if properties.unlogged:
        unlogged = "a partition of it is" if properties.kind == "p" else "it is"
        yield f"{unlogged} unlogged, so a crash would empty it without firing its triggers; make it LOGGED"
    if properties.inherits:
        yield "it has inheritance; writes to a part of it would not fire its triggers"
    if properties.subscribes:
        yield (
            "a subscription writes to it, which does not fire statement triggers; register the table in the "
            "publishing database instead"
        )
    if properties.late_triggers:
        names = ", ".join(map(repr, properties.late_triggers))
        yield (
            f"its trigger {names} fires after those of db-cache-sync, which would miss what it does to the "
            "key; rename it so that it sorts before 'zzz_cachesync_version'"
        )
    if properties.hides_rows:
        yield (
            "its row security also applies to its owner, so its triggers would miss rows; run ALTER TABLE NO "
            "FORCE ROW LEVEL SECURITY"
        )


def _key_problems(table: str, key: Sequence[str], properties: Properties) -> Iterator[str]:
    declared = ", ".join(key)
    if not properties.key_columns:
        yield f"it has no primary key; run ALTER TABLE {table} ADD PRIMARY KEY ({declared})"
    elif properties.key_columns != tuple(key):
        columns = ", ".join(properties.key_columns)
        yield (
            f"its primary key is ({columns}); it must be the declared key ({declared}), with its columns in "
            "the same order"
        )
    if properties.key_incomplete:
        yield (
            "some of its partitions lack its primary key, so two rows can share a key; create it in them, "
            "and attach its indexes (ALTER INDEX ... ATTACH PARTITION)"
        )
    if properties.key_deferrable:
        yield "its primary key is DEFERRABLE, so two rows can share a key for a while; make it NOT DEFERRABLE"
