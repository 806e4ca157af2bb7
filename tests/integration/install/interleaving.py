"""Runs statements of several transactions in a given order, on connections of their own.

A statement that has to wait for another transaction is left waiting; what its session is given meanwhile
follows once it is done.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Sequence

# What concurrent transactions may do to each other, or a transaction to itself.
LEGAL_ERRORS: Final = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.UniqueViolationError,
    asyncpg.ForeignKeyViolationError,
    asyncpg.CardinalityViolationError,
    asyncpg.InFailedSQLTransactionError,
    asyncpg.InvalidSavepointSpecificationError,
)


@dataclass(frozen=True)
class Copy:
    """A COPY of rows into a table."""

    table: str
    columns: tuple[str, ...]
    records: tuple[tuple[object, ...], ...]


Operation = str | Copy


@dataclass
class Session:
    """A connection, and what it has been given to do.

    Attributes:
        connection: it.
        running: the operation that has begun and not ended.
        backlog: the operations that wait for that.
        outcomes: of each operation, what PostgreSQL said.
    """

    connection: asyncpg.Connection
    running: asyncio.Task[str] | None = None
    backlog: deque[Operation] = field(default_factory=deque)
    outcomes: list[tuple[Operation, str]] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.connection.get_server_pid()

    def begin_next(self) -> None:
        if self.running is None and self.backlog:
            self.running = asyncio.create_task(self._run(self.backlog.popleft()))

    async def _run(self, operation: Operation) -> str:
        try:
            if isinstance(operation, Copy):
                outcome = await self.connection.copy_records_to_table(
                    operation.table, columns=operation.columns, records=operation.records
                )
            else:
                outcome = await self.connection.execute(operation)
        except LEGAL_ERRORS as error:
            outcome = type(error).__name__
        self.outcomes.append((operation, outcome))
        return outcome


class Interleaving:
    """Several sessions, and a connection that watches them.

    Attributes:
        sessions: they.
        observer: a connection that sees what is committed.
        commits: how many transactions were committed.
    """

    def __init__(self, sessions: Sequence[asyncpg.Connection], observer: asyncpg.Connection) -> None:
        self.sessions = [Session(connection) for connection in sessions]
        self.observer = observer
        self.commits = 0

    async def do(self, session: int, operation: Operation) -> None:
        """Give a session an operation, and return when all that can run has run."""
        self.sessions[session].backlog.append(operation)
        await self._settle()

    async def finish(self) -> None:
        """Wait for all to end; nobody may wait for a transaction that nobody ends."""
        await self._settle()
        waiting = [session for session in self.sessions if session.running is not None]
        assert not waiting, f"left waiting: {waiting}"

    def waits(self, session: int) -> bool:
        """Whether it waits for another transaction to end."""
        return self.sessions[session].running is not None

    async def _settle(self) -> None:
        while True:
            for session in self.sessions:
                session.begin_next()
            running = [session.running for session in self.sessions if session.running is not None]
            if not running:
                return
            done, _ = await asyncio.wait(running, timeout=0.001, return_when=asyncio.FIRST_COMPLETED)
            if done:
                self._collect()
            elif await self._all_wait():
                return

    def _collect(self) -> None:
        for session in self.sessions:
            if session.running is not None and session.running.done():
                self.commits += session.running.result() == "COMMIT"
                session.running = None

    async def _all_wait(self) -> bool:
        """Whether each that runs waits, in the end, for one that does not; a deadlock ends by itself."""
        pids = {session.pid for session in self.sessions if session.running is not None}
        blockers = {
            record["pid"]: set(record["blockers"])
            for record in await self.observer.fetch(
                "SELECT pid, pg_blocking_pids(pid) AS blockers FROM unnest($1::int[]) AS pid", list(pids)
            )
        }
        waiting = {pid for pid in pids if blockers[pid] - pids}
        while more := {pid for pid in pids - waiting if blockers[pid] & waiting}:
            waiting |= more
        return waiting == pids
