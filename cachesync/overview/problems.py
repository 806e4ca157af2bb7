"""What an operator should know, in words: the worst first, and causes before what follows from them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from cachesync.entity import CANARY
from cachesync.overview.models import Problem
from cachesync.overview.words import (
    START_RELAY,
    ago,
    cause,
    counted,
    duration,
    sentence,
    show_command,
    waiting,
)

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cachesync.overview.models import CacheStatus, Severity, Status

_LATE_SECONDS: Final = 5.0
"""From when a change that is not in a cache, or not published, is a warning."""
_STUCK_SECONDS: Final = 30.0
"""From when it is critical."""
_SILENT_SECONDS: Final = 30.0
"""After how long without a look the live check does not run."""
_RETRY_SECONDS: Final = 180.0
"""For how long a letter can be due although the retry runs, every minute."""
_RECONCILE_SECONDS: Final = 2 * 86_400.0
"""After how long without a run a daily reconciliation does not take place."""
_UNKNOWN: Final = {
    "capture": "Whether all changes are captured is not known",
    "live check": "What the live check has seen is not known",
    "backlog": "Which changes wait for the relay is not known",
    "letters": "Which dead letters are open is not known",
    "reconciliations": "What the last reconciliations found is not known",
    "more letters": "There are too many dead letters",
}
# Of `HORIZONS`.
_FIVE_SECONDS: Final = 2


def problems_of(status: Status) -> tuple[Problem, ...]:
    """Return what is wrong according to an overview."""
    found = [
        *_servers(status),
        *_captures(status),
        *_publishing(status),
        *(problem for cache in status.caches for problem in _of_cache(cache)),
        *(problem for cache in status.caches for problem in _behind(cache)),
        *_letters(status),
        *_reconciliations(status),
        *_live_check(status),
    ]
    return tuple(sorted(found, key=lambda problem: problem.severity != "critical"))


def _servers(status: Status) -> Iterator[Problem]:
    remedies = {
        "database": "Check PostgreSQL, and the DSN. Until it responds, only what is cached is served.",
        "kafka": "Check the brokers. Until they respond, changes wait in the change log.",
    }
    for part, reason in status.unavailable.items():
        if part in remedies:
            name = {"database": "PostgreSQL", "kafka": "Kafka"}[part]
            text = f"{name} does not respond: {cause(reason)}."
            yield Problem(severity="critical", text=text, action=remedies[part])
        elif not part.startswith("redis "):
            yield Problem(
                severity="warning",
                text=f"{_UNKNOWN[part]}: {sentence(reason)}.",
                action="Mend the cause. If PostgreSQL does not respond in time, look for locks that are held "
                "for long.",
            )


def _of_cache(cache: CacheStatus) -> Iterator[Problem]:
    service = cache.service
    said = cause(cache.redis_problem or "")
    if cache.redis == "unavailable":
        yield Problem(
            severity="critical",
            service=service,
            text=f"The Redis of {service} does not respond: {said}.",
            action="Check it. Until it responds, the database answers instead.",
        )
    elif cache.redis == "refuses writes":
        yield Problem(
            severity="critical",
            service=service,
            text=f"The Redis of {service} refuses writes: {said}.",
            action="Look at its memory, disk, role and ACL. Until it accepts them, the database answers.",
        )
    start = f"Start the DAG cache_sync, or run `cachesync stream --service {service}`."
    if cache.consumers is not None and not any(one.partitions for one in cache.consumers):
        yield Problem(
            severity="critical",
            service=service,
            text=f"Nobody consumes for {service}: no member of the group {cache.group} has a partition.",
            action=start,
        )
    elif cache.unconsumed:
        more = f" and {len(cache.unconsumed) - 1} more" if len(cache.unconsumed) > 1 else ""
        yield Problem(
            severity="warning",
            service=service,
            text=f"Nobody consumes {cache.unconsumed[0]}{more} for {service}.",
            action=f"A missing topic is made by `cachesync create-topics`. Otherwise: {start}",
        )


def _behind(cache: CacheStatus) -> Iterator[Problem]:
    service, unseen = cache.service, cache.oldest_unseen
    if unseen is not None and unseen.age_s >= _LATE_SECONDS:
        what = f"a change of {unseen.entity} {unseen.key}"
        if unseen.entity == CANARY.name:
            what = "a change of the live check"
        yield Problem(
            severity=_severity(unseen.age_s),
            service=service,
            entity=unseen.entity,
            key=unseen.key,
            text=f"{service} is behind: it has yet to follow {what} that was committed "
            f"{duration(unseen.age_s)} ago.",
            action=f"Look the key up: {show_command(unseen.entity, unseen.key)} says why.",
        )
    if cache.stale is not None:
        yield Problem(
            severity="critical",
            service=service,
            entity=cache.stale.entity,
            key=cache.stale.key,
            text=f"{service} holds other content than the database, or a higher version, in "
            f"{counted(cache.stale.slots, 'slot')}, such as that of "
            f"{cache.stale.entity} {cache.stale.key}.",
            action=f"Look the key up: {show_command(cache.stale.entity, cache.stale.key)} says why.",
        )
    late = cache.recent.judged[_FIVE_SECONDS] - cache.recent.seen[_FIVE_SECONDS]
    if late:
        followed = counted(cache.recent.judged[_FIVE_SECONDS], "change")
        yield Problem(
            severity="warning",
            service=service,
            text=f"In the last two minutes, {late:,} of {followed} reached {service} after more than 5 s or "
            "never.",
            action="The table cachesync.violation has their keys, and what was seen.",
        )


def _captures(status: Status) -> Iterator[Problem]:
    problems = {
        one.entity: one.capture_problem
        for cache in status.caches
        for one in cache.entities
        if one.capture_problem is not None
    }
    for entity, problem in problems.items():
        yield Problem(
            severity="critical",
            entity=entity,
            text=f"Changes of {entity} may go unnoticed: {sentence(problem)}.",
            action=f"Run `cachesync install`, then `cachesync reconcile --deep --entity {entity}`.",
        )


def _publishing(status: Status) -> Iterator[Problem]:
    backlog = status.backlog
    if backlog is None:
        return
    wait = ""
    if backlog.changes:
        wait = f" {waiting(backlog.changes, 'change')}, the oldest for {duration(backlog.age_s)}."
    if not backlog.relays:
        yield Problem(
            severity="critical" if backlog.changes else "warning",
            entity=backlog.entity,
            text=f"The relay is not running: changes that no service publishes wait.{wait}",
            action=START_RELAY,
        )
    elif backlog.age_s >= _LATE_SECONDS:
        yield Problem(
            severity=_severity(backlog.age_s),
            entity=backlog.entity,
            text=f"The relay runs, but is behind.{wait}",
            action="Look into its log (DAG outbox_relay): it says what it waits for.",
        )


def _letters(status: Status) -> Iterator[Problem]:
    for group in status.letters.groups if status.letters is not None else ():
        what = f"{counted(group.letters, 'change')} of {group.entity} could not be applied to {group.service}"
        show = f"`cachesync dead-letters show {group.example}`"
        if group.parked:
            yield Problem(
                severity="warning",
                service=group.service,
                entity=group.entity,
                text=f"{what} and {'is' if group.letters == 1 else 'are'} no longer retried: {group.reason}.",
                action=f"Mend the cause ({show}), then replay or discard them.",
            )
        elif group.due_s >= _RETRY_SECONDS:
            yield Problem(
                severity="warning",
                service=group.service,
                entity=group.entity,
                text=f"{what}, and the retry is overdue for {duration(group.due_s)}: {group.reason}.",
                action="See that the DAG dead_letter_retry runs.",
            )


def _reconciliations(status: Status) -> Iterator[Problem]:
    last = {run.service: run for run in reversed(status.reconciliations or ()) if run.finished_at is not None}
    for service, run in last.items():
        if run.outcome == "unrepaired":
            yield Problem(
                severity="critical",
                service=service,
                text=f"The reconciliation {run.run} left {counted(run.failed, 'wrong slot')} in {service}.",
                action="See its log, mend the cause, and reconcile again.",
            )
        elif run.outcome == "drift":
            slots = counted(sum(run.found.values()), "wrong slot")
            yield Problem(
                severity="warning",
                service=service,
                text=f"The dry run {run.run} found {slots} in {service}.",
                action=f"Run `cachesync reconcile --service {service}`.",
            )
        elif (status.taken_at - run.started_at).total_seconds() > _RECONCILE_SECONDS:
            yield Problem(
                severity="warning",
                service=service,
                text=f"The last reconciliation of {service} was {ago(status.taken_at, run.started_at)}.",
                action="See that the DAG reconcile runs daily.",
            )


def _live_check(status: Status) -> Iterator[Problem]:
    if "database" in status.unavailable or "live check" in status.unavailable:
        return
    looked = status.live_check_at
    if looked is None or (status.taken_at - looked).total_seconds() > _SILENT_SECONDS:
        since = "has never looked" if looked is None else f"last looked {ago(status.taken_at, looked)}"
        yield Problem(
            severity="warning",
            text=f"The live check {since}: lag and nines are not measured.",
            action="Start the DAG live_check, or run `cachesync live-check`.",
        )


def _severity(seconds: float) -> Severity:
    return "critical" if seconds >= _STUCK_SECONDS else "warning"
