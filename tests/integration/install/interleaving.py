"""Runs the statements of several transactions in a given order, each transaction on its own connection.

A statement that must wait for another transaction is left waiting; later statements of its session run
once it is done.
"""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Final

import asyncpg

if TYPE_CHECKING:
    from collections.abc import Sequence

# Errors that concurrent transactions can legitimately cause, or a transaction can cause itself.
LEGAL_ERRORS: Final = (
    asyncpg.DeadlockDetectedError,
    asyncpg.SerializationError,
    asyncpg.UniqueViolationError,
    asyncpg.ForeignKeyViolationError,
    asyncpg.CardinalityViolationError,
    # Of a row that does not belong to the named partition, or that ON CONFLICT would move to another.
    asyncpg.CheckViolationError,
    asyncpg.FeatureNotSupportedError,
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
    """A connection and its operations.

    Attributes:
        connection: the connection.
        running: the operation in progress.
        backlog: the operations that wait for it.
        outcomes: each completed operation, with the command tag or the name of the error.
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
    """Several sessions and a connection that observes them.

    Attributes:
        sessions: the sessions.
        observer: a connection that sees what is committed.
        commits: the number of committed transactions.
    """

    def __init__(self, sessions: Sequence[asyncpg.Connection], observer: asyncpg.Connection) -> None:
        self.sessions = [Session(connection) for connection in sessions]
        self.observer = observer
        self.commits = 0

    async def do(self, session: int, operation: Operation) -> None:
        """Give a session an operation, and return when every operation that can run has run."""
        self.sessions[session].backlog.append(operation)
        await self._settle()

    async def finish(self) -> None:
        """Wait for all operations to end; none may wait for a transaction that nobody ends."""
        await self._settle()
        waiting = [session for session in self.sessions if session.running is not None]
        assert not waiting, f"still waiting: {waiting}"

    def waits(self, session: int) -> bool:
        """Return whether a session waits for another transaction to end."""
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
        """Return whether every running session waits, directly or not, for an idle one.

        A deadlock does not count: PostgreSQL ends it.
        """
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
