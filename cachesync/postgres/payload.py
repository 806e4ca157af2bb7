"""The payload of a row: its JSON text as PostgreSQL writes it, identical in queries and in triggers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cachesync.postgres.statements import identifier, statement

if TYPE_CHECKING:
    from collections.abc import Collection

PAYLOAD_SETTINGS: Final = {
    "timezone": "UTC",
    "datestyle": "ISO",
    "intervalstyle": "iso_8601",
    "bytea_output": "hex",
    "extra_float_digits": "1",
}
"""The settings that determine how PostgreSQL converts values of most types to text.

The triggers set the same values. For the other types, see `Column.session_text`."""


def payload_expression(row: str, columns: Collection[str], *, session_text: bool) -> str:
    """Return the SQL expression for the payload of a row.

    Args:
        row: the alias of the row in the statement, unquoted.
        columns: the names of the served columns.
        session_text: whether this holds for one of them, as in `Column`.
    """
    members = ", ".join(f"{row}.{identifier(column)}" for column in columns)
    schema = "cachesync" if session_text else "pg_catalog"
    return statement("postgres/payload", columns=members, schema=schema).strip()
