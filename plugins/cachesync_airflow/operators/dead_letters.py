"""The operator of the DAG `dead_letter_retry`."""

from __future__ import annotations

import asyncio
import json
import time
from typing import TYPE_CHECKING, Any, Final

from airflow.sdk import BaseOperator, Param

from cachesync.dead_letters.request import (
    LETTER,
    MAX_LISTED,
    MAX_RATE,
    MAX_REASON,
    MIN_RATE,
    REASON,
    LetterTopic,
    Request,
    RequestAction,
)
from cachesync.dead_letters.service import DeadLetterService
from cachesync.entity import load_entities
from cachesync_airflow.connections import brokers, database, redis
from cachesync_airflow.failures import final_failures
from cachesync_airflow.params import names, validated
from cachesync_airflow.settings import AirflowSettings

if TYPE_CHECKING:
    from collections.abc import Callable

    from airflow.sdk import Context

    from cachesync.dead_letters.audit import AuditEntry

_REDIS_SECONDS: Final = 5.0
_LOG_SECONDS: Final = 5.0
# Thousands of letters can fail together: the result counts all actions, and the audit table lists them.
_MAX_LOGGED: Final = 50


def params(settings: AirflowSettings) -> dict[str, Param]:
    """Return the parameters of a run, which Airflow's trigger form shows and its API accepts.

    Args:
        settings: the settings; they determine which services and entities can be selected.
    """
    entities = list(load_entities(settings.entities))
    return {
        "action": Param(
            RequestAction.RETRY.value,
            type="string",
            enum=[action.value for action in RequestAction],
            description="retry: retry the letters that are due. list: return the open letters. show: return "
            "one letter in full. stats: count the open letters and the actions of the last day. replay: "
            "retry letters now, including parked ones. discard: close letters without retrying them.",
        ),
        "letters": Param(
            [],
            type="array",
            items={"type": "string", "pattern": LETTER},
            description="Only these letters, such as parking-lot:0:17; use list to find them.",
        ),
        "topic": Param(
            None,
            type=["null", "string"],
            enum=[None, *(topic.value for topic in LetterTopic)],
            description="Only letters in this topic; both topics if none is selected.",
        ),
        "services": names("Only letters of these services' caches.", list(settings.caches)),
        "entities": names("Only letters of these entities.", entities),
        "keys": Param(
            [],
            type="array",
            items={"type": "string"},
            description="Only letters of the rows with these keys.",
        ),
        "all": Param(
            default=False,
            type="boolean",
            description="replay, discard: select every letter if no filter is given.",
        ),
        "dry_run": Param(
            default=False,
            type="boolean",
            description="replay, discard: return what would be done without doing it.",
        ),
        "rate": Param(
            None,
            type=["null", "number"],
            minimum=MIN_RATE,
            maximum=MAX_RATE,
            description="replay: maximum number of letters per second.",
        ),
        "reason": Param(
            None,
            type=["null", "string"],
            maxLength=MAX_REASON,
            pattern=REASON,
            description="discard: the reason, which is stored in the audit table.",
        ),
        "limit": Param(
            100,
            type="integer",
            minimum=1,
            maximum=MAX_LISTED,
            description="list: maximum number of letters to return.",
        ),
    }


class DeadLettersOperator(BaseOperator):
    """Carries out the request in the run's parameters; its XCom `return_value` is the result."""

    def execute(self, context: Context) -> dict[str, Any]:
        """Carry out the request.

        Raises:
            AirflowFailException: a parameter or a setting is invalid, or the letter does not exist.
            CacheSyncError: the request was not carried out, or only in part.
        """
        with final_failures():
            settings = AirflowSettings.load()
            request = validated(Request, context["params"])
            dead_letters = DeadLetterService(
                database(),
                brokers(),
                {service: redis(service, _REDIS_SECONDS) for service in settings.caches},
                load_entities(settings.entities),
                _actor(context),
                settings.retry_policy,
            )
            answer = asyncio.run(dead_letters.carry_out(request, _ProgressLog(self.log.info)))
        self.log.info("%s", json.dumps(answer, ensure_ascii=False, indent=2))
        return answer


class _ProgressLog:
    """Logs the progress every few seconds, and the first actions."""

    def __init__(self, log: Callable[..., None]) -> None:
        self._log = log
        self._logged_at = time.monotonic()
        self._actions = 0
        self._total = 0
        self._read = 0

    def on_start(self, messages: int) -> None:
        self._total = messages

    def on_progress(self, messages: int) -> None:
        self._read += messages
        if time.monotonic() - self._logged_at >= _LOG_SECONDS:
            self._logged_at = time.monotonic()
            self._log("%d of %d letters read", self._read, self._total)

    def on_action(self, entry: AuditEntry) -> None:
        self._actions += 1
        if self._actions <= _MAX_LOGGED:
            letter = entry.letter
            self._log(
                "%s %s (%s %s, attempt %d of %d): %s",
                letter.id,
                entry.action.value,
                letter.service,
                letter.entity,
                entry.attempt,
                letter.max_attempts,
                entry.error,
            )


def _actor(context: Context) -> str:
    """Return the actor for the audit table: Airflow itself, or the run that someone triggered."""
    run = context["dag_run"]
    return "airflow" if run.run_type == "scheduled" else f"airflow {run.run_id}"
