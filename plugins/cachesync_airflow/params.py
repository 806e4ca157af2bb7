"""Parameters that several DAGs have."""

from __future__ import annotations

from airflow.sdk import Param


def names(description: str, known: list[str]) -> Param:
    """Any number of known names."""
    return Param(
        [],
        type="array",
        items={"type": "string", "enum": known},
        examples=known,
        description=description,
    )
