"""DAG parameters that several DAGs share."""

from __future__ import annotations

from airflow.sdk import Param


def names(description: str, known: list[str]) -> Param:
    """Return a parameter for a list of names, empty by default.

    Args:
        description: the description shown in Airflow's trigger form.
        known: the names that are allowed.
    """
    return Param(
        [],
        type="array",
        items={"type": "string", "enum": known},
        examples=known,
        description=description,
    )
