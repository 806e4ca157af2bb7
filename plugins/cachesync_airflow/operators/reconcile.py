"""The operators of the DAG `reconcile`: plan a run, reconcile each chunk, and report."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import quote

from airflow.sdk import BaseOperator, Param
from airflow.sdk.configuration import conf
from airflow.sdk.exceptions import AirflowFailException

from cachesync.entity import load_entities
from cachesync.postgres.connect import connected
from cachesync.reconcile import run as runs
from cachesync.reconcile.models import MAX_RATE, Parameters, Report, Task
from cachesync_airflow.connections import database, redis
from cachesync_airflow.failures import final_failures
from cachesync_airflow.params import names, validated
from cachesync_airflow.settings import AirflowSettings

if TYPE_CHECKING:
    from collections.abc import Sequence

    from airflow.sdk import Context

    from cachesync.reconcile.chunk import Progress

_REDIS_SECONDS: Final = 5.0
_LOG_SECONDS: Final = 5.0


def params(settings: AirflowSettings) -> dict[str, Param]:
    """Return the parameters of a run, which Airflow's trigger form shows and its API accepts.

    Args:
        settings: the settings; they determine which services and entities can be selected.
    """
    entities = list(load_entities(settings.entities))
    return {
        "services": names(
            "Only these services' caches; all services if none is selected.", list(settings.caches)
        ),
        "entities": names("Only slots of these entities; all entities if none is selected.", entities),
        "mode": Param(
            "full",
            type="string",
            enum=["full", "delta"],
            description="full: examine every slot. delta: examine only the keys that changed since the last "
            "run that left no drift.",
        ),
        "deep": Param(default=False, type="boolean", description="Compare payloads too, not only versions."),
        "dry_run": Param(default=False, type="boolean", description="Report drift without repairing it."),
        "rate_limit": Param(
            None,
            type=["null", "integer"],
            minimum=1,
            maximum=MAX_RATE,
            description="Maximum number of slots per second and chunk.",
        ),
    }


class PlanOperator(BaseOperator):
    """Plans a reconciliation with the id of the DAG run; its XCom `return_value` is the list of chunks."""

    def execute(self, context: Context) -> list[dict[str, Any]]:
        """Divide the selected caches into chunks, or return the chunks of a run that has not ended.

        Raises:
            AirflowFailException: a parameter or a setting is invalid, or the database side is not installed.
            CacheSyncError: the database or a Redis is unavailable.
        """
        with final_failures():
            settings = AirflowSettings.load()
            requested = dict(context["params"])
            parameters = validated(
                Parameters,
                {
                    **requested,
                    "services": requested["services"] or settings.caches,
                    "entities": requested["entities"] or tuple(load_entities(settings.entities)),
                },
            )
            tasks = asyncio.run(self._plan(_run_id(context), parameters, _link(context)))
        self.log.info("%d chunks", len(tasks))
        return [task.model_dump(mode="json") for task in tasks]

    @staticmethod
    async def _plan(run: str, parameters: Parameters, link: str) -> list[Task]:
        async with connected(database(), "cachesync-reconcile") as connection:
            clients = {service: redis(service, _REDIS_SECONDS) for service in parameters.services}
            return await runs.plan(connection, run, parameters, clients, link)


class ReconcileChunkOperator(BaseOperator):
    """Reconciles one chunk, or the part of it that an earlier attempt has not finished.

    Args:
        chunk: one of the chunks that `PlanOperator` returned.
    """

    template_fields: Sequence[str] = ("chunk",)

    def __init__(self, *, chunk: dict[str, Any], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.chunk = chunk

    def execute(self, context: Context) -> None:
        """Reconcile the chunk, and log the progress every few seconds.

        Raises:
            AirflowFailException: a setting is invalid, or the run must be planned again.
            CacheSyncError: the chunk could not be finished; the next attempt resumes it.
        """
        task = Task.model_validate(self.chunk)
        logged_at = time.monotonic()
        last: Progress | None = None

        def on_progress(progress: Progress) -> None:
            nonlocal logged_at, last
            last = progress
            if time.monotonic() - logged_at >= _LOG_SECONDS:
                logged_at = time.monotonic()
                self._log_progress(task, progress)

        with final_failures():
            client = redis(task.service, _REDIS_SECONDS)
            entities = load_entities(AirflowSettings.load().entities)
            asyncio.run(
                runs.run_chunk(database(), client, _run_id(context), task, entities, on_progress=on_progress)
            )
        if last is None:
            self.log.info("%s: finished by an earlier attempt", task.label)
        else:
            self._log_progress(task, last)

    def _log_progress(self, task: Task, progress: Progress) -> None:
        self.log.info("%s: %.0f %%", task.label, 100 * progress.share)
        for entity, found in progress.findings.items():
            counts = found.model_dump(exclude={"samples"})
            self.log.info("  %s: %s", entity, ", ".join(f"{count} {name}" for name, count in counts.items()))


class ReportOperator(BaseOperator):
    """Combines the results of the chunks; its XCom `return_value` is the report, even if the task fails."""

    def execute(self, context: Context) -> dict[str, Any]:
        """Report on the run.

        Raises:
            AirflowFailException: drift remains because some slots could not be repaired, or a chunk is not
                finished.
            CacheSyncError: the database is unavailable.
        """
        with final_failures():
            report = asyncio.run(self._report(_run_id(context)))
        result = report.model_dump(mode="json")
        for note in report.notes:
            self.log.info("%s", note)
        self.log.info("%s", report.model_dump_json(indent=2))
        if report.outcome == "unrepaired":
            context["ti"].xcom_push("return_value", result)
            message = (
                f"{report.failed} slots could not be repaired, such as {', '.join(report.samples['failed'])}"
            )
            raise AirflowFailException(message)
        return result

    @staticmethod
    async def _report(run: str) -> Report:
        async with connected(database(), "cachesync-reconcile") as connection:
            return await runs.report(connection, run)


def _run_id(context: Context) -> str:
    run: str = context["dag_run"].run_id
    return run


def _link(context: Context) -> str:
    """Return where Airflow shows the run."""
    run = context["dag_run"]
    base = conf.get("api", "base_url", fallback="").rstrip("/")
    return f"{base}/dags/{run.dag_id}/runs/{quote(run.run_id)}"
