"""Airflow's health check: ends with 0 if the component in this container beats, as Airflow's database tells.

Airflow's own command for this starts all of Airflow, at a second of processor a time.
"""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path

import psycopg

_QUERY = Path(__file__).with_suffix(".sql")


def beats(dsn: str, job_type: str, hostname: str) -> bool:
    """Whether the component beats.

    Arguments:
        dsn: Airflow's database
        job_type: the component, as Airflow's table of jobs calls it
        hostname: where it runs

    """
    with psycopg.connect(dsn, connect_timeout=3) as connection:
        query = _QUERY.read_bytes()
        row = connection.execute(query, {"job_type": job_type, "hostname": hostname}).fetchone()
    return row is not None and bool(row[0])


if __name__ == "__main__":
    dsn = os.environ["AIRFLOW__DATABASE__SQL_ALCHEMY_CONN"].replace("+psycopg2", "", 1)
    sys.exit(not beats(dsn, sys.argv[1], socket.getfqdn()))
