"""Airflow's health check: exits with 0 if this container's component has a recent heartbeat, or 1 if not.

Airflow's own command for this loads all of Airflow, which takes a second of CPU time per check.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import psycopg

_QUERY = Path(__file__).with_suffix(".sql")


def beats(dsn: str, job_type: str, hostname: str) -> bool:
    """Return whether the component has a recent heartbeat.

    Args:
        dsn: the connection string of Airflow's database.
        job_type: the component, as named in Airflow's `job` table.
        hostname: the host that the component runs on.
    """
    with psycopg.connect(dsn, connect_timeout=3) as connection:
        query = _QUERY.read_bytes()
        row = connection.execute(query, {"job_type": job_type, "hostname": hostname}).fetchone()
    return row is not None and bool(row[0])


if __name__ == "__main__":
    dsn = os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2", "", 1)
    sys.exit(not beats(dsn, sys.argv[1], socket.getfqdn()))
