"""A run of the reconciliation: planned as chunks, each of which can be processed, and retried, independently.

The progress of each chunk is stored in the database, so that an interrupted run resumes where it left off.
"""

from __future__ import annotations

import asyncio
import time
from contextlib import AsyncExitStack, aclosing
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Final

from pydantic import TypeAdapter

from cachesync.errors import NotInstalledError, ReconcileError
from cachesync.postgres.connect import connect, translate_postgres_errors, with_translated_postgres_errors
from cachesync.postgres.statements import statement
from cachesync.reconcile.chunk import SETTLE_SECONDS, Chunk, Compared, Progress
from cachesync.reconcile.drift import Findings, outcome_of
from cachesync.reconcile.keyspace import Part, parts
from cachesync.reconcile.models import Parameters, Report, Task
from cachesync.reconcile.rows import ComparedRows, connect_for_rows
from cachesync.reconcile.source import ChangedKeys, Keyspace, Source
from cachesync.slots.bulk import Bulk
from cachesync.slots.clients import primaries, translate_redis_errors
from cachesync.slots.layout import slot_name

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    import asyncpg

    from cachesync.entity import Entity
    from cachesync.slots.clients import BlockingRedis

_SLOTS_PER_CHUNK: Final = 1_000_000
_SAVE_SECONDS: Final = 2.0
# A delta run looks back this much further, because the earlier run skipped changes that were in flight.
_MARGIN: Final = timedelta(minutes=1)

_FINDINGS: Final = TypeAdapter(dict[str, Findings])


@with_translated_postgres_errors
async def plan(
    connection: asyncpg.Connection,
    run: str,
    parameters: Parameters,
    clients: Mapping[str, BlockingRedis],
    link: str | None = None,
) -> list[Task]:
    """Plan a run, or return the existing plan if the run with this id has not ended.

    A run that has ended is deleted and planned again. The chunks are also planned again if the primaries of a
    Redis Cluster have changed.

    Args:
        connection: a connection with the role `cachesync_worker`.
        run: the run's id.
        parameters: the parameters of the run.
        clients: each service's Redis, by the service's name.
        link: where people can follow the run; None if there is no such page.

    Returns:
        The chunks.

    Raises:
        NotInstalledError: the database side is missing or older than this library.
        CacheUnavailableError: a service's Redis did not respond.
        ReconcileError: a service of the parameters has no client.
    """
    missing = [service for service in parameters.services if service not in clients]
    if missing:
        message = f"no Redis is given for {', '.join(missing)}"
        raise ReconcileError(message)
    await _require_installed(connection)
    async with connection.transaction():
        await connection.execute(statement("reconcile/forget"), run)
        await connection.execute(
            statement("reconcile/insert_run"),
            run,
            parameters.model_dump_json(),
            link,
        )
        existing = await _tasks(connection, run)
        if existing:
            if _covers_primaries(existing, clients):
                return existing
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
            statement("reconcile/insert_chunk"),
            [(run, task.service, task.number, task.model_dump_json(), _first_cursor(task)) for task in tasks],
        )
        await connection.execute("UPDATE cachesync.reconciliation SET notes = $2 WHERE run = $1", run, notes)
    return tasks


async def _require_installed(connection: asyncpg.Connection) -> None:
    if await connection.fetchval("SELECT to_regclass('cachesync.reconciliation')") is None:
        message = "the database has no table cachesync.reconciliation; run `cachesync install`"
        raise NotInstalledError(message)


async def _tasks(connection: asyncpg.Connection, run: str) -> list[Task]:
    records = await connection.fetch(statement("reconcile/chunks"), run)
    return [Task.model_validate_json(record["task"]) for record in records]


def _covers_primaries(tasks: list[Task], clients: Mapping[str, BlockingRedis]) -> bool:
    """Return whether each service's chunks cover exactly the primaries that its cache has now."""
    nodes: dict[str, set[str | None]] = {}
    for task in tasks:
        nodes.setdefault(task.service, set()).add(task.node)
    return all(nodes[service] == set(primaries(clients[service])) for service in nodes)


@with_translated_postgres_errors
async def unfinished(connection: asyncpg.Connection, prefix: str, parameters: Parameters) -> str | None:
    """Return and claim the last run with these parameters, if it has no report and is less than a day old.

    Args:
        connection: a connection with the role `cachesync_worker`; the claim lasts until it is closed.
        prefix: the prefix of the run's id.
        parameters: the parameters of the run.

    Returns:
        The run's id, or None if there is no such run or another connection has claimed it.

    Raises:
        NotInstalledError: the database side is missing or older than this library.
    """
    await _require_installed(connection)
    run: str | None = await connection.fetchval(
        statement("reconcile/unfinished"), prefix, parameters.model_dump_json()
    )
    return run


@with_translated_postgres_errors
async def claim(connection: asyncpg.Connection, run: str) -> None:
    """Prevent others from resuming a run until the connection is closed.

    Args:
        connection: a connection to the database.
        run: the run's id.
    """
    await connection.execute("SELECT pg_advisory_lock(hashtextextended($1, 0))", run)


async def run_chunk(
    dsn: str | None,
    client: BlockingRedis,
    run: str,
    task: Task,
    entities: Mapping[str, Entity],
    *,
    on_progress: Callable[[Progress], None],
    settle_seconds: float = SETTLE_SECONDS,
) -> None:
    """Reconcile a chunk, or the part of it that is not finished.

    Args:
        dsn: the database, with a login that has the role `cachesync_worker`; None to use the variables
            PGHOST, PGUSER and so on.
        client: the Redis of the chunk's service.
        run: the run's id.
        task: the chunk.
        entities: the declared entities by name.
        on_progress: called after each round; not at all if the chunk is already finished.
        settle_seconds: how long a slot must be wrong to count as drift, in seconds.

    Raises:
        ReconcileError: the chunk, or its primary of the Redis Cluster, no longer exists.
        NotInstalledError: an entity is not installed.
        CacheUnavailableError: Redis did not respond, or its keys are moving to another node.
        DatabaseUnavailableError: PostgreSQL did not respond.
    """
    async with AsyncExitStack() as stack:
        stack.enter_context(translate_postgres_errors())
        connection = await connect_for_rows(dsn)
        stack.push_async_callback(connection.close)
        saved = await connection.fetchrow(statement("reconcile/chunk"), run, task.service, task.number)
        if saved is None:
            message = f"run {run!r} has no chunk {task.label}; the database side may have been uninstalled"
            raise ReconcileError(message)
        if saved["finished_at"] is not None:
            return
        parameters = Parameters.model_validate_json(saved["parameters"])
        rows = {name: await ComparedRows.open(connection, entities[name]) for name in task.entities}
        compared: dict[str, Compared] = {**rows}
        declared = dict(entities)
        for name, of_entity in rows.items():
            for lookup in await of_entity.lookups():
                compared[lookup.name] = lookup
                declared[lookup.name] = entities[name]
        redis = primaries(client).get(task.node)
        if redis is None:
            message = (
                f"the Redis Cluster of {task.service} no longer has a primary {task.node}; plan the run again"
            )
            raise ReconcileError(message)
        bulk = stack.enter_context(Bulk(redis, f"the Redis of {task.service}"))
        chunk = Chunk(
            bulk,
            compared,
            declared,
            task.service,
            deep=parameters.deep,
            dry_run=parameters.dry_run,
            rate_limit=parameters.rate_limit,
            settle_seconds=settle_seconds,
        )
        cursor = int(saved["cursor"])
        if task.part is None:
            source: Source = await _changed_keys(
                stack, dsn, bulk, task, cursor, entities=entities, deep=parameters.deep
            )
        else:
            fingerprints = {
                (name, slot_name(task.service, name, "").encode()): await one.fingerprint()
                for name, one in rows.items()
            }
            source = Keyspace(
                bulk,
                Part(*task.part),
                _pattern(task),
                cursor,
                deep=parameters.deep,
                fingerprints=fingerprints,
            )
        findings = _FINDINGS.validate_json(saved["findings"])
        saved_at = time.monotonic()
        async with aclosing(chunk.run(source, findings)) as rounds:
            async for progress in rounds:
                on_progress(progress)
                if time.monotonic() - saved_at >= _SAVE_SECONDS:
                    await _save(connection, run, task, progress.cursor, findings)
                    saved_at = time.monotonic()
        await _save(connection, run, task, source.cursor, findings, finished=True)


@with_translated_postgres_errors
async def report(connection: asyncpg.Connection, run: str) -> Report:
    """Combine the results of a run's chunks, and store the report.

    Args:
        connection: a connection with the role `cachesync_worker`.
        run: the run's id.

    Raises:
        ReconcileError: the run does not exist, or one of its chunks is not finished.
    """
    await _require_installed(connection)
    record = await connection.fetchrow(statement("reconcile/run"), run)
    if record is None:
        message = f"run {run!r} does not exist"
        raise ReconcileError(message)
    services: dict[str, dict[str, Findings]] = {}
    total = Findings()
    for chunk in await connection.fetch(statement("reconcile/chunks"), run):
        task = Task.model_validate_json(chunk["task"])
        if chunk["finished_at"] is None:
            message = f"run {run!r}: chunk {task.label} is not finished"
            raise ReconcileError(message)
        of_service = services.setdefault(task.service, {name: Findings() for name in task.entities})
        for entity, found in _FINDINGS.validate_json(chunk["findings"]).items():
            of_service.setdefault(entity, Findings()).merge(found)
            total.merge(found, partial(slot_name, task.service, entity))
    parameters = Parameters.model_validate_json(record["parameters"])
    seconds = max(record["seconds"], 0.001)
    result = Report(
        **total.model_dump(),
        run=run,
        outcome=outcome_of(total, dry_run=parameters.dry_run),
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
        result.model_dump_json(),
    )
    return result


async def _planned(
    connection: asyncpg.Connection,
    parameters: Parameters,
    service: str,
    client: BlockingRedis,
    notes: list[str],
) -> list[Task]:
    """Return the chunks of one service, not yet numbered, and note where they deviate from the request."""
    entities = parameters.entities
    full = set(entities)
    tasks = []
    redises = primaries(client)
    if parameters.mode == "delta" and None not in redises:
        # The keys in the change log are spread over all primaries, and a chunk has one connection.
        notes.append(f"{service}: full run instead of delta, because the cache is a Redis Cluster")
    elif parameters.mode == "delta":
        basis = await connection.fetchval(statement("reconcile/basis"), service, entities, _MARGIN)
        if basis is None:
            notes.append(
                f"{service}: full run instead of delta, because the change log does not reach back to a run "
                "that left no drift"
            )
        else:
            since = basis - _MARGIN
            truncated = await connection.fetch(statement("reconcile/truncated"), since)
            full = {record["entity"] for record in truncated} & set(entities)
            if full:
                names = ", ".join(sorted(full))
                notes.append(f"{service}: all slots of {names} examined, because a table was truncated")
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


async def _changed_keys(
    stack: AsyncExitStack,
    dsn: str | None,
    bulk: Bulk,
    task: Task,
    cursor: int,
    *,
    entities: Mapping[str, Entity],
    deep: bool,
) -> ChangedKeys:
    """Open a source of the changed keys, with its own connection and a transaction as long as the chunk."""
    connection = await connect(dsn, "cachesync-reconcile")
    stack.push_async_callback(connection.close)
    await stack.enter_async_context(connection.transaction())
    keys = await connection.cursor(statement("reconcile/changed_keys"), task.since, task.entities, cursor)
    # One round is read while the rows of the previous one are compared.
    values_of = {
        name: (await ComparedRows.open(connection, entities[name])).values_of
        for name in task.entities
        if entities[name].unique
    }
    return ChangedKeys(bulk, task.service, keys, cursor, values_of, deep=deep)


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
        statement("reconcile/save_chunk"),
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
    # The names of services and entities contain no character that is special in a pattern.
    # Those of lookups have an @ after the name of the entity.
    return f"{task.service}:{task.entities[0]}[:@]*" if len(task.entities) == 1 else f"{task.service}:*"
