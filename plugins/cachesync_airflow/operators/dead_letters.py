"""The task that carries out what is asked about dead letters."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import BaseOperator, Param

from cachesync.dead_letters.request import LETTER, LetterTopic, Request, RequestAction
from cachesync.dead_letters.service import DeadLetterService
from cachesync.entity import load_entities
from cachesync_airflow.connections import brokers, database, redis
from cachesync_airflow.params import names
from cachesync_airflow.settings import AirflowSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.sdk import Context

    from cachesync.dead_letters.audit import AuditEntry

_REDIS_SECONDS: Final = 5.0
_TELL_SECONDS: Final = 5.0
# Of thousands that failed together the rest is told by their number, and in the record.
_MOST_TOLD: Final = 50


def params(settings: AirflowSettings) -> dict[str, Param]:
    """What a run may be asked for, as the form in Airflow's pages shows it and its API takes it."""
    entities = list(load_entities(settings.entities))
    return {
        "action": Param(
            RequestAction.RETRY.value,
            type="string",
            enum=[ask.value for ask in RequestAction],
            description="retry: try those whose time has come; list, show, stats: tell; replay: try at once, "
            "parked ones too; discard: close untried.",
        ),
        "letters": Param(
            [],
            type="array",
            items={"type": "string", "pattern": LETTER},
            description="Only these, such as parking-lot:0:17; list names them.",
        ),
        "topic": Param(
            None,
            type=["null", "string"],
            enum=[None, *(where.value for where in LetterTopic)],
            description="Only those that wait, or that are parked; both where none is chosen.",
        ),
        "services": names("Only those of these services' caches.", list(settings.caches)),
        "entities": names("Only those about these entities.", entities),
        "keys": Param(
            [],
            type="array",
            items={"type": "string"},
            description="Only those about the rows with these keys.",
        ),
        "all": Param(
            default=False,
            type="boolean",
            description="For replay and discard: all of them, where nothing else is said.",
        ),
        "dry_run": Param(
            default=False, type="boolean", description="For replay and discard: tell, and do nothing."
        ),
        "rate": Param(
            None,
            type=["null", "number"],
            exclusiveMinimum=0,
            description="For replay: the most letters per second.",
        ),
        "reason": Param(None, type=["null", "string"], description="For discard: why. It is kept."),
        "limit": Param(100, type="integer", minimum=1, description="For list: the most letters to tell."),
    }


class DeadLettersOperator(BaseOperator):
    """Carries out what the run's parameters ask for; its XCom is the answer."""

    def execute(self, context: Context) -> dict[str, Any]:
        """Carry it out."""
        settings = AirflowSettings()
        request = Request.model_validate(dict(context["params"]))
        office = DeadLetterService(
            database(),
            brokers(),
            {service: redis(service, _REDIS_SECONDS) for service in settings.caches},
            load_entities(settings.entities),
            _actor(context),
            settings.retry_policy,
        )
        answer = asyncio.run(office.carry_out(request, _Log(self.log.info)))
        self.log.info("%s", json.dumps(answer, ensure_ascii=False, indent=2))
        return answer


class _Log:
    """Tells in the task's log how far the work has come."""

    def __init__(self, tell: Callable[..., None]) -> None:
        self._tell = tell
        self._told_at = time.monotonic()
        self._told = 0
        self._expected = 0
        self._passed = 0

    def expect(self, messages: int) -> None:
        """So many messages will be looked at."""
        self._expected = messages

    def pass_by(self, messages: int) -> None:
        """So many more were looked at."""
        self._passed += messages
        if time.monotonic() - self._told_at >= _TELL_SECONDS:
            self._told_at = time.monotonic()
            self._tell("%d of %d letters looked at", self._passed, self._expected)

    def end(self, ending: AuditEntry) -> None:
        """Something was done with a letter, or would be."""
        self._told += 1
        if self._told <= _MOST_TOLD:
            letter = ending.letter
            self._tell(
                "%s %s (%s %s, attempt %d of %d): %s",
                letter.id,
                ending.action.value,
                letter.service,
                letter.entity,
                ending.attempt,
                letter.maximum,
                ending.error,
            )


def _actor(context: Context) -> str:
    """For the record: the run that somebody started, or Airflow itself."""
    run = context["dag_run"]
    return "airflow" if run.run_type == "scheduled" else f"airflow {run.run_id}"
