"""Access to the change log that all publishers share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cachesync.postgres.statements import statement

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachesync.postgres.connect import Connection


async def mark_published(connection: Connection, versions: Sequence[int]) -> None:
    """Mark changes as published, so that the relay does not publish them again.

    Args:
        connection: a connection with the role `cachesync_worker`, which marks all changes, or
            `cachesync_service`, which marks only those that the same login made.
        versions: the row versions of the changes.
    """
    await connection.execute(statement("postgres/mark_published"), versions)
