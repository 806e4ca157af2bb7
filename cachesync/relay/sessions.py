"""The sessions of the running relays, by which others recognize that one is running."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cachesync.postgres.statements import statement

if TYPE_CHECKING:
    from cachesync.postgres.connect import Connection

SESSION_NAME: Final = "cachesync-relay"
"""The `application_name` of a relay's session."""


async def connected_relays(connection: Connection) -> int:
    """Return the number of relays that are connected to the database of this connection."""
    count: int = await connection.fetchval(statement("relay/sessions"), SESSION_NAME)
    return count
