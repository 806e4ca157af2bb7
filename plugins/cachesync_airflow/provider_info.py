"""The metadata with which Airflow lists this package among its providers."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return the metadata that `airflow providers` shows; called through an entry point of the package."""
    return {
        "package-name": "db-cache-sync",
        "name": "db-cache-sync",
        "description": "Keeps the Redis caches of several services consistent with PostgreSQL.",
    }
