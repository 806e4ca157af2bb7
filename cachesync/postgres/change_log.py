"""Access to the change log that all publishers share."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cachesync.change import Change, Operation
from cachesync.postgres.statements import statement
from cachesync.value import encode_value

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import asyncpg

    from cachesync.postgres.connect import Connection


async def mark_published(connection: Connection, versions: Sequence[int]) -> None:
    """Mark changes as published, so that the relay does not publish them again.

    Args:
        connection: a connection with the role `cachesync_worker`, which marks all changes, or
            `cachesync_service`, which marks only those that the same login made.
        versions: the row versions of the changes.
    """
    await connection.execute(statement("postgres/mark_published"), versions)


def change_of(line: asyncpg.Record | Mapping[str, Any]) -> Change:
    """Return the change in a line of the change log; without its payload if the line was read without it."""
    return Change(
        entity=line["entity"],
        key=line["key"],
        version=line["version"],
        operation=Operation(line["operation"]),
        value=None
        if line["payload"] is None
        else encode_value(line["version"], line["fingerprint"].encode(), line["payload"].encode()),
        source=line["source"],
        changed_at=line["changed_at"],
    )
