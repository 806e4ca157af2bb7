"""The clients whose operations form a history; some use a service, others the database directly."""

from __future__ import annotations

import asyncio
import json
import threading
import time
import uuid
from contextlib import contextmanager
from dataclasses import dataclass
from http import HTTPStatus
from random import Random
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import asyncpg
import httpx

from cachesync.errors import DatabaseUnavailableError
from cachesync.key_text import joined, split
from cachesync.postgres.connect import connect
from tests.faults.history.record import Clock, Kind, Operation, Outcome, Row, digest

if TYPE_CHECKING:
    from collections.abc import Iterator

    from asyncpg.pool import PoolConnectionProxy

    from local.system import System


@dataclass(frozen=True, slots=True)
class Table:
    """What the clients need to know of an entity's table.

    Attributes:
        name: the table.
        path: the path of the entity.
        key: the columns of the key.
        column: a column of text.
        text: the SQL expression for the text of a row's key.
        values: the SQL expressions for the values of the key's columns in that text.
        rows: the rows that clients read and write.
    """

    name: str
    path: str
    key: tuple[str, ...]
    column: str
    text: str
    values: str
    rows: list[Row]


_SUBJECTS = ("Art", "Art~1Music", "~0")
TABLES = {
    "student": Table(
        name="public.student",
        path="/students",
        key=("id",),
        column="name",
        text="id::text",
        values="key::bigint",
        rows=[Row("student", str(key)) for key in range(5000, 5200)],
    ),
    "course": Table(
        name="public.course",
        path="/courses",
        key=("id",),
        column="title",
        text="id::text",
        values="key::uuid",
        rows=[
            Row("course", str(uuid.uuid5(uuid.NAMESPACE_URL, f"course-{number}"))) for number in range(100)
        ],
    ),
    "grade": Table(
        name="public.grade",
        path="/grades",
        key=("student_id", "subject"),
        column="remark",
        text="student_id || '/' || replace(replace(subject, '~', '~0'), '/', '~1')",
        values="split_part(key, '/', 1)::bigint, "
        "replace(replace(split_part(key, '/', 2), '~1', '/'), '~0', '~')",
        rows=[Row("grade", f"{key}/{subject}") for key in range(5000, 5040) for subject in _SUBJECTS],
    ),
}
# Of grades. They move from one to another.
CERTIFICATES = [f"c/{number}~" for number in range(40)]
_HOT = 8
_CLIENTS = 4
_PSQL_PAUSE_SECONDS = 0.15
# Longer than a service's database timeout, shorter than a fault.
_TIMEOUT_SECONDS = 5.0
_RECONNECT_SECONDS = 0.3
_READ: dict[int, Outcome] = {HTTPStatus.OK: Outcome.DONE, HTTPStatus.NOT_FOUND: Outcome.ABSENT}


class Workload:
    """Threads that read and write until they are stopped.

    Args:
        system: the system.
        clock: the clock of the history.
        rate: operations per second through the services, if they are fast enough.
        seed: determines what the clients do; the timing depends on the machine.

    Attributes:
        operations: the operations so far.
    """

    def __init__(self, system: System, clock: Clock, *, rate: float, seed: int) -> None:
        self._system = system
        self._clock = clock
        self._stopping = threading.Event()
        self.operations: list[Operation] = []
        clients = [(service, number) for service in system.services for number in range(_CLIENTS)]
        self._pause = len(clients) / rate
        self._threads = [
            threading.Thread(
                target=self._serve,
                args=(f"{service}-{number}", service, Random(f"{seed} {service} {number}")),
            )
            for service, number in clients
        ]
        self._threads += [
            threading.Thread(target=self._psql, args=(f"psql-{number}", Random(f"{seed} psql {number}")))
            for number in range(2)
        ]

    @contextmanager
    def running(self) -> Iterator[None]:
        for thread in self._threads:
            thread.start()
        try:
            yield
        finally:
            self._stopping.set()
            for thread in self._threads:
                thread.join()

    def read_all(self) -> None:
        """Read every row once through each service."""
        for service in self._system.services:
            with self._client(service) as client:
                for table in TABLES.values():
                    for row in table.rows:
                        self._read(client, f"{service}-last", service, row)
                for value in CERTIFICATES:
                    self._find(client, f"{service}-last", service, value)

    def _client(self, service: str) -> httpx.Client:
        return httpx.Client(base_url=self._system.services[service].url, timeout=_TIMEOUT_SECONDS)

    def _serve(self, name: str, service: str, random: Random) -> None:
        next_at = time.monotonic() + random.uniform(0, self._pause)
        with self._client(service) as client:
            while not self._stopping.wait(max(0.0, next_at - time.monotonic())):
                # Operations that a fault delayed are not made up for.
                next_at = max(next_at, time.monotonic() - 1) + self._pause
                row = pick(random)
                choice = random.random()
                if choice < 0.45:
                    self._read(client, name, service, row)
                elif choice < 0.6:
                    self._find(client, name, service, random.choice(CERTIFICATES))
                else:
                    self._write(client, name, service, row, random)

    def _read(self, client: httpx.Client, name: str, service: str, row: Row) -> None:
        start = self._clock()
        answer = _answer(client, "GET", _path(row))
        status = 0 if answer is None else answer.status_code
        known: dict[str, Any] = {"outcome": _READ.get(status, Outcome.UNKNOWN)}
        if answer is not None and status in _READ:
            known["cache"] = answer.headers["x-cache"]
            if status == HTTPStatus.OK:
                known |= {"version": _version(answer), "digest": digest(answer.content)}
        self._record(client=name, service=service, row=row, kind=Kind.READ, start=start, **known)

    def _find(self, client: httpx.Client, name: str, service: str, value: str) -> None:
        start = self._clock()
        answer = _answer(client, "GET", f"/grades/by/certificate/{quote(value, safe='')}")
        status = 0 if answer is None else answer.status_code
        row = Row("grade@certificate", value)
        known: dict[str, Any] = {"kind": Kind.FIND, "outcome": _READ.get(status, Outcome.UNKNOWN)}
        if answer is not None and status in _READ:
            known["cache"] = answer.headers["x-cache"]
            if status == HTTPStatus.OK:
                found = answer.json()
                row = Row("grade", joined([str(found[column]) for column in TABLES["grade"].key]))
                known |= {"kind": Kind.READ, "version": _version(answer), "digest": digest(answer.content)}
        self._record(client=name, service=service, row=row, start=start, value=value, **known)

    def _write(self, client: httpx.Client, name: str, service: str, row: Row, random: Random) -> None:
        method = random.choices(("PUT", "PATCH", "DELETE", "POST"), (10, 5, 2, 2))[0]
        path = TABLES[row.entity].path if method == "POST" else _path(row)
        body = _content(row, random)
        if method == "POST":
            parts = zip(TABLES[row.entity].key, _parts(row), strict=True)
            body |= {name: int(part) if part.isdigit() else part for name, part in parts}
        start = self._clock()
        answer = _answer(client, method, path, None if method == "DELETE" else body)
        kind = Kind.DELETE if method == "DELETE" else Kind.UPSERT
        if answer is None or answer.is_server_error:
            # It might have been committed, or might still be.
            known: dict[str, Any] = {"outcome": Outcome.UNKNOWN}
        elif answer.is_client_error:
            known = {"outcome": Outcome.REFUSED}
        else:
            known = {"outcome": Outcome.DONE, "cache": answer.headers.get("x-cache", "")}
            if kind is Kind.UPSERT:
                known |= {"version": _version(answer), "digest": digest(answer.content)}
        self._record(client=name, service=service, row=row, kind=kind, start=start, **known)

    def _record(self, **known: Any) -> None:
        self.operations.append(Operation(end=self._clock(), **known))

    def _psql(self, name: str, random: Random) -> None:
        asyncio.run(self._psql_loop(name, random))

    async def _psql_loop(self, name: str, random: Random) -> None:
        """Write past the services: single and bulk statements, and rollbacks."""
        connection: asyncpg.Connection | None = None
        while not self._stopping.is_set():
            try:
                if connection is None or connection.is_closed():
                    connection = await connect(self._system.dsn, name)
            except DatabaseUnavailableError:
                await asyncio.sleep(_RECONNECT_SECONDS)
                continue
            await self._transaction(connection, name, random)
            await asyncio.sleep(random.uniform(0, 2 * _PSQL_PAUSE_SECONDS))
        if connection is not None:
            connection.terminate()

    async def _transaction(self, connection: asyncpg.Connection, name: str, random: Random) -> None:
        kind = random.choices(
            ("update", "bulk", "delete", "insert", "again", "move", "give", "rollback"),
            (9, 3, 2, 4, 2, 3, 5, 2),
        )[0]
        of_entity = random.choice(list(TABLES.values())).rows
        # From 101 rows on, rows share lines of the change log.
        count = random.choice((40, len(of_entity)))
        rows = random.sample(of_entity, count) if kind == "bulk" else [pick(random)]
        if kind in {"move", "give"}:
            rows = random.sample(TABLES["grade"].rows, 2)
        entity = rows[0].entity
        start = self._clock()
        transaction = connection.transaction()
        try:
            await transaction.start()
            written = await change(connection, kind, entity, [row.key for row in rows], random)
            if kind == "rollback":
                await transaction.rollback()
                return
            await transaction.commit()
        except (asyncpg.TransactionRollbackError, asyncpg.UniqueViolationError):
            # A deadlock, or a certificate that another grade has: the database has undone the transaction.
            await transaction.rollback()
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            # Whether it was committed is unknown, and it was not acknowledged.
            connection.terminate()
        else:
            for key, version, payload in written:
                self._record(
                    client=name,
                    service="psql",
                    row=Row(entity, key),
                    kind=Kind.DELETE if payload is None else Kind.UPSERT,
                    start=start,
                    outcome=Outcome.DONE,
                    version=version,
                    digest="" if payload is None else digest(payload.encode()),
                )


async def change(
    connection: asyncpg.Connection | PoolConnectionProxy,
    kind: str,
    entity: str,
    keys: list[str],
    random: Random,
) -> list[tuple[str, int, str | None]]:
    """Change rows in the transaction, and return the key, version and payload of each change."""
    table, column, text = TABLES[entity].name, TABLES[entity].column, TABLES[entity].text
    texts = f"{text} = ANY($1)"
    if kind == "move":
        return await _move(connection, entity, *keys)
    if kind == "give":
        value = random.choice(CERTIFICATES)
        former = await connection.fetch(
            f"UPDATE {table} SET certificate = NULL WHERE certificate = $1 RETURNING {text}", value
        )
        given = await connection.fetch(
            f"UPDATE {table} SET certificate = $2 WHERE {text} = $1 RETURNING {text}", keys[0], value
        )
        return await _written(connection, entity, [record[0] for record in (*former, *given)])
    if kind in {"update", "bulk", "rollback"}:
        # Others could insert the other rows now.
        updated = await connection.fetch(
            f"UPDATE {table} SET {column} = $2 WHERE {texts} RETURNING {text}", keys, _text(random)
        )
        keys = [record[0] for record in updated]
    deleted: list[str] = []
    if kind in {"delete", "again"}:
        found = await connection.fetch(f"DELETE FROM {table} WHERE {texts} RETURNING {text}", keys)
        deleted = [record[0] for record in found]
    if kind in {"insert", "again"}:
        names, values = ", ".join(TABLES[entity].key), TABLES[entity].values
        inserted = await connection.fetch(
            f"INSERT INTO {table} ({names}, {column}) SELECT {values}, $2 "
            f"FROM unnest($1::text[]) AS u (key) ON CONFLICT DO NOTHING RETURNING {text}",
            keys,
            _text(random),
        )
        keys = [record[0] for record in inserted]
    if kind == "delete":
        return [(key, await _latest(connection, entity, key), None) for key in deleted]
    return await _written(connection, entity, keys)


async def _move(
    connection: asyncpg.Connection | PoolConnectionProxy, entity: str, source: str, target: str
) -> list[tuple[str, int, str | None]]:
    """Give a row the key of another row, which is deleted first."""
    table, text = TABLES[entity].name, TABLES[entity].text
    deleted = await connection.fetch(f"DELETE FROM {table} WHERE {text} = $1 RETURNING {text}", target)
    names = ", ".join(TABLES[entity].key)
    moved = await connection.fetch(
        f"UPDATE {table} SET ({names}) = ROW ({TABLES[entity].values}) FROM (SELECT $2::text) AS u (key) "
        f"WHERE {text} = $1 RETURNING {text}",
        source,
        target,
    )
    gone = [source] if moved else [target] if deleted else []
    written: list[tuple[str, int, str | None]] = [
        (key, await _latest(connection, entity, key), None) for key in gone
    ]
    return written + (await _written(connection, entity, [target]) if moved else [])


async def _latest(connection: asyncpg.Connection | PoolConnectionProxy, entity: str, key: str) -> int:
    """Return the version of the last change that the transaction has made to a key."""
    version: int = await connection.fetchval("SELECT cachesync.latest_version($1, $2)", entity, key)
    return version


async def _written(
    connection: asyncpg.Connection | PoolConnectionProxy, entity: str, keys: list[str]
) -> list[tuple[str, int, str | None]]:
    """Return the keys, versions and payloads of rows."""
    records = await connection.fetch(
        f"SELECT key::text, version, payload FROM cachesync.{entity} WHERE key::text = ANY($1)", keys
    )
    return [(record["key"], record["version"], record["payload"]) for record in records]


def pick(random: Random) -> Row:
    """Return a row, often one of the hot ones."""
    rows = TABLES[random.choices(list(TABLES), (5, 3, 2))[0]].rows
    return random.choice(rows[:_HOT] if random.random() < 0.4 else rows)


def _content(row: Row, random: Random) -> dict[str, Any]:
    if row.entity == "student":
        return {"name": _text(random), "age": random.randrange(150)}
    if row.entity == "grade":
        certificate = random.choice([None, random.choice(CERTIFICATES)])
        return {"points": random.randrange(100), "remark": _text(random), "certificate": certificate}
    return {"title": _text(random), "fee": random.randrange(10_000), "details": {"words": [_text(random)]}}


def _parts(row: Row) -> list[str]:
    """Return the text of each column of a row's key."""
    return split(row.key, len(TABLES[row.entity].key))


def _path(row: Row) -> str:
    return "/".join([TABLES[row.entity].path, *(quote(part, safe="") for part in _parts(row))])


def _text(random: Random) -> str:
    return f"{random.getrandbits(64):x}"


def _answer(client: httpx.Client, method: str, path: str, body: object = None) -> httpx.Response | None:
    content = None if body is None else json.dumps(body)
    headers = {} if body is None else {"content-type": "application/json"}
    try:
        return client.request(method, path, content=content, headers=headers)
    except httpx.TransportError:
        return None


def _version(answer: httpx.Response) -> int:
    return int(answer.headers["etag"].strip('"'))
