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
"""The settings that determine how PostgreSQL converts values to text; the triggers set the same values."""


def payload_expression(row: str, columns: Collection[str]) -> str:
    """Return the SQL expression for the payload of a row.

    Args:
        row: the alias of the row in the statement, unquoted.
        columns: the served columns.
    """
    members = ", ".join(f"{row}.{identifier(column)}" for column in columns)
    return statement("postgres/payload", columns=members).strip()
