"""A run of the reconciliation: planned as chunks, each of which can be done, or done again, on its own.

How far each has come is kept in the database, so that a run that was interrupted goes on where it was.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, aclosing
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final, Literal

from pydantic import TypeAdapter

from cachesync.errors import NotInstalledError, ReconcileError
from cachesync.postgres.connect import connect, translate_postgres_errors
from cachesync.postgres.statements import statement
from cachesync.reconcile.bulk import Bulk
from cachesync.reconcile.chunk import SETTLE_SECONDS, Chunk, Progress
from cachesync.reconcile.drift import Findings
from cachesync.reconcile.keyspace import Part, parts
from cachesync.reconcile.models import Parameters, Report, Task
from cachesync.reconcile.rows import ComparedRows, connect_for_rows
from cachesync.reconcile.source import Changed, Keyspace, Source
from cachesync.slots.clients import primaries, translate_redis_errors
from cachesync.slots.layout import slot_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import asyncpg

    from cachesync.entity import Entity
    from cachesync.slots.clients import WorkerRedis

_SLOTS_PER_CHUNK: Final = 1_000_000
_SAVE_SECONDS: Final = 2.0
# A delta looks back so much further: what was under way when the earlier run looked, it let be.
_MARGIN: Final = timedelta(minutes=1)

_FINDINGS: Final = TypeAdapter(dict[str, Findings])


async def plan(
    connection: asyncpg.Connection, run: str, parameters: Parameters, clients: Mapping[str, WorkerRedis]
) -> list[Task]:
    """Plan a run, or take up the plan of the run that has this id and has not ended.

    Raises:
        NotInstalledError: the database side is missing or older than this.
        CacheUnavailableError: a service's Redis does not answer.
    """
    await _require_installed(connection)
    async with connection.transaction():
        await connection.execute(statement("reconcile/forget"), run)
        await connection.execute(
            "INSERT INTO cachesync.reconciliation (run, parameters) VALUES ($1, $2) ON CONFLICT DO NOTHING",
            run,
            parameters.model_dump_json(),
        )
        former = await _tasks(connection, run)
        if former:
            if _fit(former, clients):
                return former
            await connection.execute("DELETE FROM cachesync.reconciliation_chunk WHERE run = $1", run)
        tasks: list[Task] = []
        notes: list[str] = []
        for service in parameters.services:
            planned = await _planned(connection, parameters, service, clients[service], notes)
            tasks += [
                task.model_copy(update={"number": number, "count": len(planned)})
                for number, task in enumerate(planned)
            ]
        await connection.executemany(
            "INSERT INTO cachesync.reconciliation_chunk (run, service, number, task, cursor) "
            "VALUES ($1, $2, $3, $4, $5)",
            [(run, task.service, task.number, task.model_dump_json(), _first_cursor(task)) for task in tasks],
        )
        await connection.execute("UPDATE cachesync.reconciliation SET notes = $2 WHERE run = $1", run, notes)
    return tasks


async def _require_installed(connection: asyncpg.Connection) -> None:
    if await connection.fetchval("SELECT to_regclass('cachesync.reconciliation')") is None:
        message = "the database has no table cachesync.reconciliation; run `cachesync install`"
        raise NotInstalledError(message)


async def _tasks(connection: asyncpg.Connection, run: str) -> list[Task]:
    records = await connection.fetch(
        "SELECT task FROM cachesync.reconciliation_chunk WHERE run = $1 ORDER BY service, number", run
    )
    return [Task.model_validate_json(record["task"]) for record in records]


def _fit(tasks: list[Task], clients: Mapping[str, WorkerRedis]) -> bool:
    """Whether each service's chunks are of the primaries that it has now, all of them."""
    nodes: dict[str, set[str | None]] = {}
    for task in tasks:
        nodes.setdefault(task.service, set()).add(task.node)
    return all(nodes[service] == set(primaries(clients[service])) for service in nodes)


async def unfinished(connection: asyncpg.Connection, prefix: str, parameters: Parameters) -> str | None:
    """The last run that was asked for the same and has no report, claimed; None if older than a day."""
    await _require_installed(connection)
    run: str | None = await connection.fetchval(
        statement("reconcile/unfinished"), prefix, parameters.model_dump_json()
    )
    return run


async def claim(connection: asyncpg.Connection, run: str) -> None:
    """Keep others from going on with a run as long as the connection lasts."""
    await connection.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", run)


async def run_chunk(
    dsn: str | None,
    client: WorkerRedis,
    run: str,
    task: Task,
    entities: Mapping[str, Entity],
    *,
    watch: Callable[[Progress], None],
    settle_seconds: float = SETTLE_SECONDS,
) -> None:
    """Do a chunk, or what is left of it.

    Args:
        dsn: the database.
        client: the Redis of the chunk's service.
        run: the run.
        task: the chunk.
        entities: the declared entities.
        watch: told of the progress after each round.
        settle_seconds: how long a slot has to be wrong before it is called so.

    Raises:
        ReconcileError: the chunk, or its primary, is there no more.
        CacheUnavailableError: Redis does not answer, or its keys move to another node.
        DatabaseUnavailableError: PostgreSQL does not answer.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(translate_postgres_errors())
        connection = await connect_for_rows(dsn)
        stack.push_async_callback(connection.close)
        reached = await connection.fetchrow(
            "SELECT c.cursor, c.findings, c.finished_at, r.parameters "
            "FROM cachesync.reconciliation_chunk AS c JOIN cachesync.reconciliation AS r USING (run) "
            "WHERE c.run = $1 AND c.service = $2 AND c.number = $3",
            run,
            task.service,
            task.number,
        )
        if reached is None:
            message = f"no run {run!r} has a chunk {task.label}; it was uninstalled meanwhile?"
            raise ReconcileError(message)
        if reached["finished_at"] is not None:
            return
        parameters = Parameters.model_validate_json(reached["parameters"])
        rows = {name: await ComparedRows.open(connection, entities[name]) for name in task.entities}
        redis = primaries(client).get(task.node)
        if redis is None:
            message = (
                f"the Redis Cluster of {task.service} has no primary {task.node} any more; plan the run anew"
            )
            raise ReconcileError(message)
        bulk = stack.enter_context(Bulk(redis, f"the Redis of {task.service}"))
        chunk = Chunk(
            bulk,
            rows,
            entities,
            task.service,
            deep=parameters.deep,
            dry_run=parameters.dry_run,
            rate_limit=parameters.rate_limit,
            settle_seconds=settle_seconds,
        )
        cursor = int(reached["cursor"])
        if task.part is None:
            source: Source = await _changed(stack, dsn, bulk, task, cursor, deep=parameters.deep)
        else:
            source = Keyspace(bulk, Part(*task.part), _pattern(task), cursor, deep=parameters.deep)
        findings = _FINDINGS.validate_json(reached["findings"])
        saved = time.monotonic()
        async with aclosing(chunk.run(source, findings)) as rounds:
            async for progress in rounds:
                watch(progress)
                if time.monotonic() - saved >= _SAVE_SECONDS:
                    await _save(connection, run, task, progress.cursor, findings)
                    saved = time.monotonic()
        await _save(connection, run, task, source.cursor, findings, finished=True)


async def report(connection: asyncpg.Connection, run: str) -> Report:
    """Sum a run up, and keep the report with it.

    Raises:
        ReconcileError: a chunk of it has not been done.
    """
    record = await connection.fetchrow(statement("reconcile/run"), run)
    if record is None:
        message = f"there is no run {run!r}"
        raise ReconcileError(message)
    services: dict[str, dict[str, Findings]] = {}
    total = Findings()
    chunks = await connection.fetch(
        "SELECT task, findings, finished_at FROM cachesync.reconciliation_chunk "
        "WHERE run = $1 ORDER BY service, number",
        run,
    )
    for chunk in chunks:
        task = Task.model_validate_json(chunk["task"])
        if chunk["finished_at"] is None:
            message = f"run {run!r}: chunk {task.label} has not been done"
            raise ReconcileError(message)
        of_service = services.setdefault(task.service, {name: Findings() for name in task.entities})
        for entity, found in _FINDINGS.validate_json(chunk["findings"]).items():
            of_service.setdefault(entity, Findings()).add(found)
            total.add(found, partial(slot_name, task.service, entity))
    parameters = Parameters.model_validate_json(record["parameters"])
    seconds = max(record["seconds"], 0.001)
    made = Report(
        **total.model_dump(),
        run=run,
        outcome=_outcome(total, parameters),
        parameters=parameters,
        notes=tuple(record["notes"]),
        started_at=record["started_at"],
        duration_s=round(seconds, 3),
        rows_per_s=round(total.examined / seconds, 1),
        services=services,
    )
    await connection.execute(
        "UPDATE cachesync.reconciliation SET finished_at = clock_timestamp(), report = $2 WHERE run = $1",
        run,
        made.model_dump_json(),
    )
    return made


def _outcome(total: Findings, parameters: Parameters) -> Literal["clean", "repaired", "drift", "unrepaired"]:
    if not total.drift:
        return "clean"
    if parameters.dry_run:
        return "drift"
    return "unrepaired" if total.failed else "repaired"


async def _planned(
    connection: asyncpg.Connection,
    parameters: Parameters,
    service: str,
    client: WorkerRedis,
    notes: list[str],
) -> list[Task]:
    """The chunks of one service, not yet numbered."""
    entities = parameters.entities
    full = set(entities)
    tasks = []
    redises = primaries(client)
    if parameters.mode == "delta" and None not in redises:
        # The keys of the change log are anywhere, and a chunk has one connection.
        notes.append(f"{service}: a full run in place of a delta, since its cache is a Redis Cluster")
    elif parameters.mode == "delta":
        basis = await connection.fetchval(statement("reconcile/basis"), service, entities, _MARGIN)
        if basis is None:
            notes.append(
                f"{service}: a full run in place of a delta, since no earlier run that left nothing wrong "
                "is covered by the change log"
            )
        else:
            since = basis - _MARGIN
            truncated = await connection.fetch(statement("reconcile/truncated"), since)
            full = {record["entity"] for record in truncated} & set(entities)
            if full:
                notes.append(f"{service}: all of {', '.join(sorted(full))}, since a table was truncated")
            rest = tuple(name for name in entities if name not in full)
            if rest:
                tasks.append(Task(service=service, number=0, entities=rest, since=since))
    if full:
        for node, redis in redises.items():
            with translate_redis_errors(f"the Redis of {service}"):
                slots: int = await asyncio.to_thread(redis.dbsize)
            tasks += [
                Task(
                    service=service,
                    number=0,
                    entities=tuple(name for name in entities if name in full),
                    part=(part.number, part.of),
                    node=node,
                )
                for part in parts(slots, _SLOTS_PER_CHUNK)
            ]
    return tasks


async def _changed(
    stack: AsyncExitStack, dsn: str | None, bulk: Bulk, task: Task, cursor: int, *, deep: bool
) -> Changed:
    """The keys are read on a connection of their own, in a transaction that lasts as long as it takes."""
    connection = await connect(dsn, "cachesync-reconcile")
    stack.push_async_callback(connection.close)
    await stack.enter_async_context(connection.transaction())
    keys = await connection.cursor(statement("reconcile/changed_keys"), task.since, task.entities, cursor)
    return Changed(bulk, task.service, keys, cursor, deep=deep)


async def _save(
    connection: asyncpg.Connection,
    run: str,
    task: Task,
    cursor: int,
    findings: dict[str, Findings],
    *,
    finished: bool = False,
) -> None:
    await connection.execute(
        "UPDATE cachesync.reconciliation_chunk SET cursor = $4, findings = $5, "
        "finished_at = CASE WHEN $6 THEN clock_timestamp() END "
        "WHERE run = $1 AND service = $2 AND number = $3",
        run,
        task.service,
        task.number,
        cursor,
        _FINDINGS.dump_json(findings).decode(),
        finished,
    )


def _first_cursor(task: Task) -> int:
    return 0 if task.part is None else Part(*task.part).first


def _pattern(task: Task) -> str:
    # A service's and an entity's name hold no character that is special in a pattern.
    return slot_name(task.service, task.entities[0] if len(task.entities) == 1 else "*", "*")
