"""What a reconciliation is asked for, its chunks, and its report."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - pydantic reads it
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

from cachesync.reconcile.drift import Findings


class Parameters(BaseModel):
    """What a run is asked for.

    Attributes:
        services: whose caches.
        entities: the slots of which entities.
        mode: `full`: all slots; `delta`: those of rows that changed since the last run.
        deep: whether payloads are compared, too, not only versions.
        dry_run: whether nothing is repaired.
        rate_limit: the most slots per second and chunk; None: as fast as it goes.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    services: tuple[str, ...] = Field(min_length=1)
    entities: tuple[str, ...] = Field(min_length=1)
    mode: Literal["full", "delta"] = "full"
    deep: bool = False
    dry_run: bool = False
    rate_limit: int | None = Field(default=None, gt=0)


class Task(BaseModel):
    """One chunk of a run.

    Attributes:
        service: whose cache.
        number: which of the service's, from 0.
        count: how many the service has.
        entities: the slots of which entities.
        part: which part of the keyspace, and of how many; None: the slots of changed rows.
        since: since when those have changed.
        node: on which primary of a Redis Cluster; None: it is one Redis.
    """

    model_config = ConfigDict(frozen=True)

    service: str
    number: int
    count: int = 0
    entities: tuple[str, ...]
    part: tuple[int, int] | None = None
    since: datetime | None = None
    node: str | None = None

    @computed_field  # type: ignore[prop-decorator]
    @property
    def label(self) -> str:
        """What progress is told of it as, such as `sb 3/8`."""
        return f"{self.service} {self.number + 1}/{self.count}"


class Report(Findings):
    """What a run came to; the counts are of all services, the samples are names of slots.

    Attributes:
        run: its id.
        outcome: `clean`: nothing was wrong; `repaired`: all that was is right now; `drift`: a dry run found
            some; `unrepaired`: some could not be repaired.
        parameters: what it was asked for.
        notes: what it did otherwise than asked, and why.
        started_at: when it was planned.
        duration_s: seconds from then to its report.
        rows_per_s: slots examined in each of them.
        services: what was found, by service and entity.
    """

    run: str
    outcome: Literal["clean", "repaired", "drift", "unrepaired"]
    parameters: Parameters
    notes: tuple[str, ...]
    started_at: datetime
    duration_s: float
    rows_per_s: float
    services: dict[str, dict[str, Findings]]
