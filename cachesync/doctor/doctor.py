"""Examines all parts of the system at once."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

from cachesync.doctor.airflow import examine_airflow
from cachesync.doctor.cache import examine_cache
from cachesync.doctor.database import examine_database
from cachesync.doctor.declaration import examine_declaration
from cachesync.doctor.finding import Finding, Part, Severity
from cachesync.doctor.kafka import examine_groups, examine_topics
from cachesync.doctor.packages import examine_packages
from cachesync.entity import with_canary
from cachesync.kafka.groups import group_of

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping
    from pathlib import Path

    from cachesync.doctor.airflow import Airflow

SECONDS: Final = 30.0
"""How long one part can take; each request to a server has a shorter timeout."""

_ORDER: Final = list(Severity)


@dataclass(frozen=True, slots=True)
class System:
    """How to reach the parts of a system; a part without an address is not examined.

    Attributes:
        entities_file: the entities file.
        dsn: the database; None to use the variables PGHOST, PGUSER and so on.
        has_database: whether the database is to be examined.
        redis: the URL of each service's Redis, by the service's name.
        kafka: librdkafka's settings for connecting to the brokers; None if they are not known.
        groups: the consumer groups of services whose group is not the usual one.
        airflow: Airflow's API; None if it is not known.
    """

    entities_file: Path
    dsn: str | None = None
    has_database: bool = True
    redis: Mapping[str, str] = field(default_factory=dict)
    kafka: Mapping[str, str] | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    airflow: Airflow | None = None


async def examine(system: System) -> list[Finding]:
    """Examine a system; nothing is changed.

    All parts are examined at once. One that does not respond does not keep the others from being examined.

    Args:
        system: how to reach its parts.

    Returns:
        The findings, the worst first.
    """
    parts: list[Part] = []
    work: list[Coroutine[None, None, None]] = []

    def part(name: str) -> Part:
        parts.append(Part(name))
        return parts[-1]

    examine_packages(part("packages"))
    declared = examine_declaration(part("entities file"), system.entities_file)
    entities = with_canary(declared) if declared else {}
    database = part("PostgreSQL")
    if system.has_database:
        work.append(_examined(database, examine_database(database, system.dsn, entities)))
    else:
        database.not_checked("connection", "no database is given", "give --dsn (CACHESYNC_DSN)")
    for service, url in system.redis.items():
        cache = part(f"Redis of {service}")
        work.append(_examined(cache, examine_cache(cache, service, url, entities)))
    if not system.redis:
        part("Redis").not_checked(
            "connection",
            "no Redis is given",
            "give --redis SERVICE=URL for each service (CACHESYNC_REDIS_URLS)",
        )
    # The connections of Airflow say which groups the caches have.
    groups: asyncio.Future[dict[str, str]] = asyncio.get_running_loop().create_future()
    usual = {service: group_of(service) for service in system.redis}
    airflow = part("Airflow")

    async def examine_airflow_and_name_groups() -> None:
        in_airflow: dict[str, str] = {}
        try:
            if system.airflow is not None:
                await examine_airflow(airflow, system.airflow, system.redis, in_airflow)
        finally:
            groups.set_result({**usual, **in_airflow, **system.groups})

    if system.airflow is None:
        airflow.not_checked("connection", "no address is given", "give --airflow URL (AIRFLOW_URL)")
    work.append(_examined(airflow, examine_airflow_and_name_groups()))
    kafka = part("Kafka")
    if system.kafka is None:
        kafka.not_checked(
            "connection", "no brokers are given", "give --bootstrap-servers (KAFKA_BOOTSTRAP_SERVERS)"
        )
    else:
        streams = part("streams")
        work.append(_examined(kafka, examine_topics(kafka, system.kafka, entities)))
        work.append(_examined(streams, examine_groups(streams, system.kafka, groups, entities)))
    await asyncio.gather(*work)
    findings = [finding for one in parts for finding in one.findings]
    return sorted(findings, key=lambda finding: _ORDER.index(finding.severity))


async def _examined(part: Part, work: Coroutine[None, None, None]) -> None:
    """Examine one part, whatever happens."""
    try:
        async with asyncio.timeout(SECONDS):
            await work
    except TimeoutError:
        part.error(
            "response", f"no response within {SECONDS:.0f} seconds", "see whether the server is overloaded"
        )
    except Exception as error:  # noqa: BLE001 - the findings about other parts must not be lost
        part.not_checked("all", f"the check failed: {type(error).__name__}: {error}", "report this as a bug")
