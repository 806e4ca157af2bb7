"""The tasks of a reconciliation: it is planned, its chunks are done each on its own, and it is summed up."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import BaseOperator, Param
from airflow.sdk.exceptions import AirflowFailException

from cachesync.entity import load_entities
from cachesync.postgres.connect import connected
from cachesync.reconcile import run as runs
from cachesync.reconcile.models import Parameters, Report, Task
from cachesync_airflow.connections import database, redis
from cachesync_airflow.params import names
from cachesync_airflow.settings import AirflowSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from cachesync.reconcile.chunk import Progress

_REDIS_SECONDS: Final = 5.0
_TELL_SECONDS: Final = 5.0


def params(settings: AirflowSettings) -> dict[str, Param]:
    """What a run may be asked for, as the form in Airflow's pages shows it and its API takes it."""
    entities = list(load_entities(settings.entities))
    return {
        "services": names("Whose caches; all of them where none is chosen.", list(settings.caches)),
        "entities": names("The slots of which entities; all of them where none is chosen.", entities),
        "mode": Param(
            "full",
            type="string",
            enum=["full", "delta"],
            description="full: every slot; delta: those of rows that changed since the last run that left "
            "nothing wrong.",
        ),
        "deep": Param(default=False, type="boolean", description="Compare payloads, too, not only versions."),
        "dry_run": Param(default=False, type="boolean", description="Repair nothing."),
        "rate_limit": Param(
            None, type=["null", "integer"], minimum=1, description="The most slots per second of each chunk."
        ),
    }


class PlanOperator(BaseOperator):
    """Plans the run whose id is that of the DAG's run; its XCom are the chunks."""

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Plan."""
        settings = AirflowSettings()
        asked = dict(context["params"])
        parameters = Parameters.model_validate(
            {
                **asked,
                "services": asked["services"] or settings.caches,
                "entities": asked["entities"] or tuple(load_entities(settings.entities)),
            }
        )
        tasks = asyncio.run(self._plan(_run_id(context), parameters))
        self.log.info("%d chunks", len(tasks))
        return [task.model_dump(mode="json") for task in tasks]

    @staticmethod
    async def _plan(run: str, parameters: Parameters) -> list[Task]:
        async with connected(database(), "cachesync-reconcile") as connection:
            clients = {service: redis(service, _REDIS_SECONDS) for service in parameters.services}
            return await runs.plan(connection, run, parameters, clients)


class ReconcileChunkOperator(BaseOperator):
    """Does one chunk, or what an earlier try has left of it.

    Args:
        chunk: one of those that were planned.
    """

    template_fields: Sequence[str] = ("chunk",)

    def __init__(self, *, chunk: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.chunk = chunk

    def execute(self, context: Context) -> None:
        """Do it; the log tells how far it has come every few seconds."""
        task = Task.model_validate(self.chunk)
        told = time.monotonic()
        progress: Progress | None = None

        def watch(now: Progress) -> None:
            nonlocal told, progress
            progress = now
            if time.monotonic() - told >= _TELL_SECONDS:
                told = time.monotonic()
                self._tell(task, now)

        client = redis(task.service, _REDIS_SECONDS)
        entities = load_entities(AirflowSettings().entities)
        asyncio.run(runs.run_chunk(database(), client, _run_id(context), task, entities, watch=watch))
        if progress is None:
            self.log.info("%s was done before", task.label)
        else:
            self._tell(task, progress)

    def _tell(self, task: Task, progress: Progress) -> None:
        self.log.info("%s: %.0f %%", task.label, 100 * progress.share)
        for entity, found in progress.findings.items():
            counts = found.model_dump(exclude={"samples"})
            self.log.info("  %s: %s", entity, ", ".join(f"{count} {name}" for name, count in counts.items()))


class ReportOperator(BaseOperator):
    """Sums the run up. Its XCom `return_value` is the report, also where it fails since drift is left."""

    def execute(self, context: Context) -> dict[str, Any]:
        """Sum up."""
        report = asyncio.run(self._report(_run_id(context)))
        result = report.model_dump(mode="json")
        for note in report.notes:
            self.log.info("%s", note)
        self.log.info("%s", report.model_dump_json(indent=2))
        if report.outcome == "unrepaired":
            context["ti"].xcom_push("return_value", result)
            message = f"{report.failed} slots are wrong and could not be repaired: {report.samples['failed']}"
            raise AirflowFailException(message)
        return result

    @staticmethod
    async def _report(run: str) -> Report:
        async with connected(database(), "cachesync-reconcile") as connection:
            return await runs.report(connection, run)


def _run_id(context: Context) -> str:
    run: str = context["dag_run"].run_id
    return run
