"""A row's payload: the JSON text that PostgreSQL makes of it, the same from a query and from a trigger."""

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
"""What decides how PostgreSQL writes values as text; the triggers pin the same."""


def payload_expression(row: str, columns: Collection[str]) -> str:
    """The SQL expression for the payload of a row that goes by the name `row`."""
    members = ", ".join(f"{row}.{identifier(column)}" for column in columns)
    return statement("postgres/payload", columns=members).strip()
