"""The properties that a table needs so that its triggers see every change of its rows."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachesync.postgres.catalog import Properties

_KINDS: Final = {
    "f": "a foreign table",
    "m": "a materialized view",
    "p": "a partitioned table",
    "v": "a view",
}


def unmet_requirement(table: str, key: Sequence[str], properties: Properties) -> str | None:
    """Return why the changes of a table's rows would be missed, and the remedy; None if they would not.

    Args:
        table: the table as declared.
        key: the key columns of the entity.
        properties: the table as the catalog describes it.
    """
    if properties.kind != "r":
        return f"it is {_KINDS.get(properties.kind, 'not a table')}; only ordinary tables can be registered"
    return _trigger_problem(properties) or _key_problem(table, key, properties)


def _trigger_problem(properties: Properties) -> str | None:
    """Return why triggers on the table would miss changes; None if they would not."""
    if properties.unlogged:
        return "it is unlogged, so a crash would empty it without firing its triggers; make it LOGGED"
    if properties.inherits:
        return "it is a partition or has inheritance; writes to a part of it would not fire its triggers"
    if properties.subscribes:
        return (
            "a subscription writes to it, which does not fire statement triggers; register the table in the "
            "publishing database instead"
        )
    if properties.late_triggers:
        names = ", ".join(map(repr, properties.late_triggers))
        return (
            f"its trigger {names} fires after those of db-cache-sync, which would miss what it does to the "
            "key; rename it so that it sorts before 'zzz_cachesync_version'"
        )
    if properties.hides_rows:
        return (
            "its row security also applies to its owner, so its triggers would miss rows; run ALTER TABLE NO "
            "FORCE ROW LEVEL SECURITY"
        )
    return None


def _key_problem(table: str, key: Sequence[str], properties: Properties) -> str | None:
    declared = ", ".join(key)
    if not properties.key_columns:
        return f"it has no primary key; run ALTER TABLE {table} ADD PRIMARY KEY ({declared})"
    if properties.key_columns != tuple(key):
        columns = ", ".join(properties.key_columns)
        return (
            f"its primary key is ({columns}); it must be the declared key ({declared}), with its columns in "
            "the same order"
        )
    if properties.key_deferrable:
        return (
            "its primary key is DEFERRABLE, so two rows can share a key for a while; make it NOT DEFERRABLE"
        )
    return None
