"""CPU that the system uses while nothing happens."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

from benchmarks.cpu import accounting
from local.airflow import Airflow
from local.postgres import Postgres

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from local.process import Process


async def measure(processes: Sequence[Process], rounds: int, seconds: float) -> list[dict[str, float]]:
    """Return, by round, the cores in use by each process, and by all of them."""
    results = []
    for _ in range(rounds):
        with accounting(processes) as usage:
            await asyncio.sleep(seconds)
        cores = {f"cores.{name}": used / usage.seconds for name, used in usage.used.items()}
        results.append({"cores": usage.total() / usage.seconds, **cores})
    return results


async def of_airflow(folder: Path, rounds: int, seconds: float) -> list[dict[str, float]]:
    """Return the same of Airflow without a DAG, with a PostgreSQL of its own for its metadata."""
    dags = folder / "no-dags"
    dags.mkdir(parents=True, exist_ok=True)
    with (
        Postgres(folder) as postgres,
        Airflow(folder / "airflow", admin_dsn=postgres.dsn, environment={}, dags=dags) as airflow,
    ):
        # What it does at its start is not measured.
        await asyncio.sleep(seconds)
        return await measure([postgres, *airflow.components], rounds, seconds)
