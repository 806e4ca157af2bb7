"""Examines the database."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Final

import asyncpg

from cachesync.doctor.clock import judge_clock
from cachesync.entity import CANARY
from cachesync.errors import DatabaseError, NotInstalledError, PrivilegeError, SettingsError
from cachesync.install.checks import check_tables, database_problems, undeclared
from cachesync.postgres.connect import connect, translate_postgres_errors
from cachesync.postgres.registry import problem_of, read_registry
from cachesync.postgres.statements import statement
from cachesync.relay.sessions import connected_relays

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping

    from cachesync.doctor.finding import Part
    from cachesync.entity import Entity

_SECONDS: Final = 10.0
_OLDEST: Final = 14
_NEWEST: Final = 18
LONG_SECONDS: Final = 600.0
"""How old a transaction must be to be reported, in seconds."""
_MANY_DEAD_LINES: Final = 1_000_000
_NAMED: Final = 3
# It looks each second.
_LOOKED_SECONDS: Final = 60.0
_INSTALL: Final = "run `cachesync install` as the owner of the tables"


async def examine_database(part: Part, dsn: str | None, entities: Mapping[str, Entity]) -> None:
    """Examine the database, with the privileges of a login.

    Args:
        part: takes the findings.
        dsn: the database; None to use the variables PGHOST, PGUSER and so on.
        entities: the declared entities, by name.
    """
    try:
        connection = await connect(dsn, "cachesync-doctor", command_timeout=_SECONDS)
    except (DatabaseError, SettingsError) as error:
        part.error("connection", str(error), "check the address and the login (--dsn, CACHESYNC_DSN)")
        return
    try:
        await _Examination(part, connection, entities).run()
    finally:
        await connection.close()


class _Examination:
    def __init__(self, part: Part, connection: asyncpg.Connection, entities: Mapping[str, Entity]) -> None:
        self._part = part
        self._connection = connection
        self._entities = entities
        self._declared = {name: entity for name, entity in entities.items() if entity is not CANARY}

    async def run(self) -> None:
        with self._part.looking("server"), translate_postgres_errors():
            await self._examine_server()
        for check, examine in (
            ("entities", self._examine_entities),
            ("rights", self._examine_rights),
            ("sequence", self._examine_sequence),
            ("change log", self._examine_log),
            ("locks", self._examine_locks),
            ("relay", self._examine_relay),
            ("live check", self._examine_live_check),
        ):
            with self._part.looking(check):
                try:
                    with translate_postgres_errors():
                        await examine()
                except NotInstalledError as error:
                    self._part.error("installation", str(error), _INSTALL)
                    return
                except PrivilegeError:
                    self._part.not_checked(
                        check, "this login may not see it", "use that of the owner, or of the background work"
                    )

    async def _examine_server(self) -> None:
        before = time.time()
        server = await self._connection.fetchrow(statement("doctor/server"))
        now = (before + time.time()) / 2
        if server is None:  # The statement always returns a row.
            raise AssertionError
        self._server = server
        judge_version(self._part, server["version"], server["major"])
        if server["is_replica"]:
            self._part.error(
                "primary",
                "the server is a replica, which is behind the primary and takes no writes",
                "use the address of the primary in all settings",
            )
        problems = await database_problems(self._connection)
        for problem in problems:
            self._part.error("database", problem, "see docs/database.md")
        if not problems:
            encoding = await self._connection.fetchval("SELECT current_setting('server_encoding')")
            self._part.ok("database", f"its encoding is {encoding}")
        judge_clock(self._part, server["clock"] - now)
        await self._examine_sessions()
        if server["prepared_transactions"] and not server["notify_is_off"]:
            self._part.warning(
                "prepared transactions",
                "max_prepared_transactions allows two-phase commits, but a transaction that changes rows of "
                "an entity cannot be prepared while the relay sleeps",
                "if an application prepares such transactions, run ALTER ROLE ... SET cachesync.notify = off "
                "for its login",
            )

    async def _examine_sessions(self) -> None:
        if not self._server["sees_sessions"]:
            self._part.not_checked(
                "long transactions",
                "the login does not see since when other logins have been in a transaction",
                "run GRANT pg_read_all_stats to it, if it may see that",
            )
            return
        long = await self._connection.fetch(statement("doctor/long_transactions"), LONG_SECONDS)
        for one in long[:_NAMED]:
            self._part.warning(
                "long transactions",
                f"a transaction has been open for {one['seconds']:,.0f} seconds: {one['name']}; until it "
                "ends, vacuum cannot remove what was deleted from the change log, which grows",
                "end the transaction; set idle_in_transaction_session_timeout for its login",
            )
        if not long:
            self._part.ok("long transactions", f"none has been open for {LONG_SECONDS:.0f} seconds")

    async def _examine_entities(self) -> None:
        registry = await read_registry(self._connection)
        problems = 0
        for name, entity in self._entities.items():
            problem = problem_of(entity, registry.get(name))
            if problem is not None:
                problems += 1
                self._part.error("entities", problem, _INSTALL)
        for name in registry:
            if self._entities and name not in self._entities:
                self._part.warning("entities", undeclared(name), "declare it again, or uninstall it")
        if problems:
            # What an installation would refuse.
            owns = await self._owns_tables()
            refused = (await check_tables(self._connection, self._declared))[1] if owns else []
            for problem in refused:
                self._part.error(
                    "tables", problem, "`cachesync install` refuses this table until that is done"
                )
        elif self._entities:
            self._part.ok(
                "entities",
                f"{', '.join(self._declared)} are installed as declared: their triggers are present and fire "
                "ALWAYS, the sequence draws one number at a time, and no row security hides their rows",
            )

    async def _examine_rights(self) -> None:
        roles = await self._connection.fetchrow(statement("doctor/roles"))
        if roles is None:  # The statement always returns a row.
            raise AssertionError
        login = roles["login"]
        if roles["is_superuser"]:
            self._part.ok("rights", f"{login} is a superuser; no service or background work needs to be")
            return
        rights = [
            right
            for right, holds in (
                ("is the owner of the tables", await self._owns_tables()),
                ("has the role cachesync_worker", roles["is_worker"]),
                ("has the role cachesync_service", roles["is_service"]),
            )
            if holds
        ]
        problems = [problem async for problem in self._missing_rights(login, roles, has_rights=bool(rights))]
        for found, remedy in problems:
            self._part.error("rights", found, remedy)
        if not problems:
            self._part.ok("rights", f"{login} {' and '.join(rights)}, and lacks nothing")

    async def _missing_rights(
        self, login: str, roles: asyncpg.Record, *, has_rights: bool
    ) -> AsyncIterator[tuple[str, str]]:
        """Yield what the login lacks, and what to run."""
        for role in ("worker", "service"):
            if roles[f"can_be_{role}"] and not roles[f"is_{role}"]:
                has_rights = True
                group = f"cachesync_{role}"
                # Since PostgreSQL 16, what has been granted does not follow the role.
                remedy = f"run ALTER ROLE {login} INHERIT, REVOKE {group} FROM {login}, and GRANT {group} TO "
                yield (
                    f"{login} is a member of {group}, but does not inherit its privileges",
                    f"{remedy}{login}",
                )
        if not has_rights:
            found = (
                f"{login} is not the owner of the tables, and has neither the role cachesync_worker nor the "
                "role cachesync_service"
            )
            yield (
                found,
                f"run GRANT cachesync_worker TO {login} for the background work, or cachesync_service",
            )
        if roles["is_worker"]:
            lacking = [
                one["lacking"] for one in await self._connection.fetch(statement("doctor/worker_lacks"))
            ]
            if lacking:
                yield f"{login} lacks {', '.join(lacking)}", _INSTALL
        if roles["is_service"]:
            for registration in (await read_registry(self._connection, of_service=True)).values():
                if registration.denied is not None:
                    yield registration.denied, _INSTALL

    async def _owns_tables(self) -> bool:
        try:
            return not await self._connection.fetch(statement("doctor/foreign_tables"))
        except asyncpg.InsufficientPrivilegeError:
            return False

    async def _examine_sequence(self) -> None:
        if await self._connection.fetchval(statement("postgres/sequence_set_back")):
            self._part.error(
                "sequence",
                "the sequence cachesync.row_version was set back: it will draw versions that are lower "
                "than those of changes in the log, which caches ignore",
                _INSTALL,
            )
        else:
            self._part.ok("sequence", "it is ahead of all changes in the log")

    async def _examine_log(self) -> None:
        log = await self._connection.fetchrow(statement("doctor/log_upkeep"))
        if log is None:
            return
        if not (self._server["autovacuum"] and log["autovacuum"]):
            where = "of the table cachesync.change_log" if self._server["autovacuum"] else "of the server"
            remedy = (
                "ALTER TABLE cachesync.change_log RESET (autovacuum_enabled)"
                if self._server["autovacuum"]
                else "ALTER SYSTEM SET autovacuum = on, and reload"
            )
            self._part.error(
                "autovacuum",
                f"the autovacuum {where} is off, so that the change log grows without limit",
                f"run {remedy}",
            )
        elif log["dead"] > max(log["live"], _MANY_DEAD_LINES):
            self._part.warning(
                "autovacuum",
                f"the change log has {log['dead']:,} dead and {log['live']:,} live lines",
                "run VACUUM cachesync.change_log, and look for long transactions",
            )
        else:
            self._part.ok("autovacuum", f"the change log has {log['dead']:,} dead lines")

    async def _examine_locks(self) -> None:
        most = await self._connection.fetchrow(statement("doctor/relations"))
        if most is not None:
            judge_locks(self._part, most["name"], most["relations"], self._server["locks"])

    async def _examine_relay(self) -> None:
        relays = await connected_relays(self._connection)
        if relays:
            self._part.ok("relay", f"{relays} running")
        else:
            self._part.error(
                "relay",
                "the relay is not running, so that changes outside the services are not published",
                "start the DAG outbox_relay, which must not be paused, or `cachesync relay`",
            )

    async def _examine_live_check(self) -> None:
        age = await self._connection.fetchval(statement("doctor/live_check"))
        if age is not None and age < _LOOKED_SECONDS:
            self._part.ok("live check", f"it looked {age:.0f} s ago")
        else:
            self._part.warning(
                "live check",
                "it is not running, so that nobody knows how far behind the caches are",
                "start the DAG live_check, or `cachesync live-check`",
            )


def judge_version(part: Part, version: str, major: int) -> None:
    """Record what a version of PostgreSQL means.

    Args:
        part: takes the finding.
        version: the version as the server reports it.
        major: its major version.
    """
    if major < _OLDEST:
        part.error("version", f"PostgreSQL {version}", f"upgrade it to PostgreSQL {_OLDEST} or newer")
    elif major > _NEWEST:
        part.warning(
            "version",
            f"PostgreSQL {version} is newer than every tested version",
            f"use PostgreSQL {_OLDEST} to {_NEWEST}, or test it yourself",
        )
    else:
        part.ok("version", f"PostgreSQL {version}")


def judge_locks(part: Part, entity: str, relations: int, locks: int) -> None:
    """Record whether the shared lock table has room for a statement on the largest entity.

    Args:
        part: takes the finding.
        entity: the entity.
        relations: the number of its tables, partitions and indexes.
        locks: the number of locks that the server has room for.
    """
    if relations > locks // 2:
        part.warning(
            "locks",
            f"entity {entity!r} has {relations:,} tables, partitions and indexes, each of which takes one of "
            f"the server's {locks:,} locks in a statement on all of them",
            "raise max_locks_per_transaction and restart the server",
        )
    else:
        part.ok("locks", f"the largest entity, {entity}, takes {relations:,} of {locks:,} locks")
