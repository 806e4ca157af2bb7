"""What a transaction of this login has changed, according to the change log."""

from __future__ import annotations

from datetime import timedelta
from typing import TYPE_CHECKING, Any, Final

from cachesync.change import EPOCH, Change, Operation
from cachesync.postgres.change_log import change_of
from cachesync.postgres.statements import statement
from cachesync.service.settling import Rest

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import datetime

    from cachesync.postgres.connect import Connection
    from cachesync.service.database import Database

# After so many lines of the change log, a transaction counts as one that has changed all rows of an entity.
_LINES: Final = 10_000
# As much as the changes of a transaction have in all, unless most of them have no payloads.
_PAYLOAD_BYTES: Final = 4 << 20


class Later(Change):
    """All changes of a serializable transaction, which are looked up after its commit.

    Its key is the transaction, and its time is when that began.
    """


_STAND_INS: Final[dict[str, type[Change]]] = {"rest": Rest, "later": Later}
"""What stands for several changes, by the operation in the result of the query."""


def final_changes() -> str:
    """Return the query for what the present transaction has changed, as its last statement.

    It has no parameters, because each driver writes them differently.
    """
    return statement("service/own_changes", function=f"final_changes({_LINES}, {_PAYLOAD_BYTES})")


def changes_in(lines: Iterable[Any]) -> list[Change]:
    """Return the changes in the result of that query."""
    return [_change_in(line) for line in lines]


async def committed_changes(
    connection: Connection, transaction: str, began: datetime, *, unpublished: bool
) -> list[Change]:
    """Return the changes of a committed transaction of this login.

    Args:
        connection: a connection with the role `cachesync_service`.
        transaction: its ID in the change log.
        began: when it began, according to the database.
        unpublished: whether the relay cannot have published any of them, which is faster.
    """
    function = f"transaction_changes($1::text::xid8, $2, $3, {_LINES}, {_PAYLOAD_BYTES})"
    query = statement("service/own_changes", function=function)
    return changes_in(await connection.fetch(query, transaction, began, unpublished))


async def looked_up(changes: Iterable[Change], database: Database) -> list[Change]:
    """Return the changes of a transaction that has ended, with those that could not be known before.

    Raises:
        DatabaseError: PostgreSQL did not respond, or the login is another one.
    """
    known: list[Change] = []
    for change in changes:
        if not isinstance(change, Later):
            known.append(change)
        elif change.key is not None:
            async with database.connection() as connection:
                known += await committed_changes(connection, change.key, change.changed_at, unpublished=False)
    return known


def _change_in(line: Any) -> Change:
    changed_at = EPOCH + timedelta(microseconds=line["changed_us"])
    stand_in = _STAND_INS.get(line["operation"])
    if stand_in is None:
        return change_of({**line, "changed_at": changed_at})
    return stand_in(
        entity=line["entity"] or "",
        key=line["key"],
        version=line["version"] or 0,
        operation=Operation.TRUNCATE,
        value=None,
        source=line["source"] or "",
        changed_at=changed_at,
    )
