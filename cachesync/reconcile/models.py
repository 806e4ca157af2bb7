"""A reconciliation's parameters, chunks and report, as stored in the database and in XComs."""

from __future__ import annotations

from datetime import datetime  # noqa: TC003 - pydantic reads it
from typing import Final, Literal

from pydantic import BaseModel, ConfigDict, Field, computed_field

from cachesync.reconcile.drift import Findings, Outcome

MAX_RATE: Final = 1_000_000_000
"""The largest rate limit, in slots per second. No cache can be examined that fast."""


class Parameters(BaseModel):
    """The parameters of a run.

    Attributes:
        services: the services whose caches to examine.
        entities: the entities whose slots to examine.
        mode: `full` to examine all slots; `delta` to examine only the keys that changed since the last run
            that left no drift.
        deep: whether to compare payloads too, not only versions.
        dry_run: whether to report drift without repairing it.
        rate_limit: the maximum number of slots per second and chunk; None for no limit.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    services: tuple[str, ...] = Field(min_length=1)
    entities: tuple[str, ...] = Field(min_length=1)
    mode: Literal["full", "delta"] = "full"
    deep: bool = False
    dry_run: bool = False
    rate_limit: int | None = Field(default=None, gt=0, le=MAX_RATE)


class Task(BaseModel):
    """One chunk of a run.

    Attributes:
        service: the service whose cache to examine.
        number: the number of the chunk among those of the service, from 0.
        count: the number of chunks of the service.
        entities: the entities whose slots to examine.
        part: the number of the part of the keyspace and the number of parts; None to examine changed keys.
        since: in that case, the time since which the keys have changed.
        node: the primary of a Redis Cluster, as `host:port`; None for a single Redis.
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
        """The name of the chunk in progress messages, such as `sb 3/8`."""
        return f"{self.service} {self.number + 1}/{self.count}"


class Report(Findings):
    """The result of a run. The counts are totals over all services, and the samples are names of slots.

    Attributes:
        run: the run's id.
        outcome: what it means; see `Outcome`.
        parameters: the requested parameters.
        notes: where the run deviated from the request, and why.
        started_at: when the run was planned.
        duration_s: the time from the plan to the report, in seconds.
        rows_per_s: slots examined per second over that time.
        services: the findings by service and entity.
    """

    run: str
    outcome: Outcome
    parameters: Parameters
    notes: tuple[str, ...]
    started_at: datetime
    duration_s: float
    rows_per_s: float
    services: dict[str, dict[str, Findings]]
