"""How Airflow lists this package among its providers."""

from __future__ import annotations

from typing import Any


def get_provider_info() -> dict[str, Any]:
    """Return what `airflow providers` shows; the entry point `apache_airflow_provider` leads here."""
    return {
        "package-name": "db-cache-sync",
        "name": "db-cache-sync",
        "description": "Keeps the Redis caches of several services consistent with PostgreSQL.",
    }
