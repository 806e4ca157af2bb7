"""The services in examples/, as their users start them."""

from __future__ import annotations

import os
import secrets
import sys

from psycopg.conninfo import conninfo_to_dict

from local.settings import REPOSITORY

EXAMPLES = REPOSITORY / "examples"
# Django's workers are forked from a process that has loaded the service.
PROGRAMS = {
    "fastapi": ["uvicorn", "--log-level", "warning", "--port", "{port}", "shop:app"],
    "django": [
        *("gunicorn", "--log-level", "warning", "--preload", "--workers", "2", "--threads", "2"),
        *("--bind", "127.0.0.1:{port}", "shop.wsgi"),
    ],
}


def command(kind: str, port: int) -> list[str]:
    """Return the command line of a service, for the folder of the example."""
    return [sys.executable, "-m", *(part.format(port=port) for part in PROGRAMS[kind])]


def environment(dsn: str, redis_url: str) -> dict[str, str]:
    """Return the environment of a service, given its database, with its login, and its Redis."""
    options = conninfo_to_dict(dsn)
    return {
        **os.environ,
        "PYTHONPATH": str(REPOSITORY),
        "DATABASE_URL": dsn.replace("postgresql://", "postgresql+asyncpg://"),
        "DB_HOST": str(options["host"]),
        "DB_PORT": str(options["port"]),
        "DB_NAME": str(options["dbname"]),
        "DB_USERNAME": str(options["user"]),
        "DB_PASSWORD": str(options["password"]),
        "REDIS_URL": redis_url,
        "SECRET_KEY": secrets.token_hex(),
    }
