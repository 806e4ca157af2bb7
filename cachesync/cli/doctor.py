"""The command `cachesync doctor`."""

from __future__ import annotations

import os
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer
from rich.console import Console
from rich.text import Text

from cachesync.cli.options import (
    Dsn,
    EntitiesFile,
    Groups,
    Json,
    KnownBootstrapServers,
    RedisUrls,
    console,
    consumer_groups,
    kafka_settings,
    print_json,
    redis_urls,
    run,
)
from cachesync.cli.rows import printable
from cachesync.doctor.airflow import Airflow
from cachesync.doctor.doctor import System, examine
from cachesync.doctor.finding import Severity

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cachesync.doctor.finding import Finding

_ERRORS: Final = 3
_DATABASE_VARIABLES: Final = ("PGHOST", "PGPORT", "PGUSER", "PGDATABASE", "PGSERVICE")
_STYLES: Final = {
    Severity.ERROR: "bold red",
    Severity.WARNING: "yellow",
    Severity.NOT_CHECKED: "dim",
    Severity.OK: "green",
}


def doctor(
    *,
    dsn: Dsn = None,
    redis: RedisUrls = None,
    bootstrap_servers: KnownBootstrapServers = None,
    groups: Groups = None,
    airflow: Annotated[
        str | None,
        typer.Option(
            envvar="AIRFLOW_URL",
            metavar="URL",
            help="Address of Airflow. AIRFLOW_USERNAME and AIRFLOW_PASSWORD are the login.",
        ),
    ] = None,
    entities: EntitiesFile = Path("entities.toml"),
    as_json: Json = False,
) -> None:
    """Examine the whole installation, and say what is wrong and what to do about it.

    What has no address is not checked. In each Redis, a key that is never a slot is written and deleted;
    nothing else is changed.

    Exit status: 0 if there are no errors, 1 if the command could not run, 3 if there are errors.
    """

    async def work() -> None:
        urls = redis_urls(redis)
        found = await examine(
            System(
                entities,
                dsn,
                has_database=dsn is not None or any(os.environ.get(name) for name in _DATABASE_VARIABLES),
                redis=urls,
                kafka=kafka_settings(bootstrap_servers) if bootstrap_servers else None,
                groups=consumer_groups(groups, urls),
                airflow=_airflow(airflow),
            )
        )
        if as_json:
            print_json({"findings": [finding.model_dump(mode="json") for finding in found]})
        else:
            _print(found)
        counts = Counter(finding.severity for finding in found)
        console.print(", ".join(f"{counts[severity]} {severity.value}" for severity in Severity))
        if counts[Severity.ERROR]:
            raise typer.Exit(_ERRORS)

    run(work())


def _print(findings: Sequence[Finding]) -> None:
    output = Console(highlight=False, markup=False)
    for finding in findings:
        output.print(
            Text(finding.severity.value, style=_STYLES[finding.severity])
            + Text(f"  {finding.part}, {finding.check}: {printable(finding.found)}"),
            soft_wrap=True,
        )
        if finding.remedy is not None:
            output.print(f"  -> {printable(finding.remedy)}", soft_wrap=True)


def _airflow(url: str | None) -> Airflow | None:
    if not url:
        return None
    user, password = (os.environ.get(f"AIRFLOW_{name}", "") for name in ("USERNAME", "PASSWORD"))
    airflow = Airflow(url, user, password, os.environ)
    airflow.check()
    return airflow
