"""A stand-in for the library that keeps rows in memory, without PostgreSQL, Redis and Kafka.

It keeps those parts of the library's contract that the services rely on: increasing versions, preconditions
and merge patches. It does not check types and constraints; a test sets the error that PostgreSQL would raise.
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, cast

from cachesync.change import Row
from cachesync.entity import Entity
from cachesync.errors import DuplicateRowError, RowNotFoundError, VersionMismatchError
from cachesync.lookup import columns_name, values_in
from cachesync.postgres.catalog import Column
from cachesync.postgres.key import Key
from cachesync.postgres.lookup import Lookup
from cachesync.service.cache import EntityCache, Outcome, Read, Written
from cachesync.service.table import Page
from serving.app import create_app
from serving.settings import Settings

if TYPE_CHECKING:
    from collections.abc import Iterable
    from datetime import timedelta

    from cachesync.service.cache import GivenKey
    from cachesync.service.row_input import RowInput
    from cachesync.service.service import Service
    from serving.app import App
    from serving.request import Receive, Send

METRICS_PORT = 9190


def column(name: str, base_type: str, category: str, **changed: Any) -> Column:
    """Return a column as the catalog would describe it."""
    usual: dict[str, Any] = {
        "declared_type": base_type,
        "type_schema": "pg_catalog",
        "nullable": False,
        "has_default": False,
        "generated": False,
        "max_length": None,
        "precision": None,
        "scale": None,
        "labels": None,
        "deterministic": True,
        "session_text": False,
        "own_cast": None,
        "cast_enum": False,
    }
    return Column(name=name, base_type=base_type, category=category, **(usual | changed))


STUDENT = (
    column("id", "int8", "N", declared_type="bigint"),
    column("name", "text", "S"),
    column("age", "int4", "N", nullable=True, declared_type="integer"),
)
WORD = (
    column("word", "varchar", "S", max_length=10),
    column("score", "numeric", "N", nullable=True, precision=5, scale=2),
    column("details", "jsonb", "U", nullable=True),
    column("mood", "mood", "E", nullable=True, labels=("sad", "happy")),
    column("letters", "int4", "N", nullable=True, generated=True),
)
THING = (
    column("id", "uuid", "U", has_default=True),
    column("note", "text", "S", nullable=True),
)
LINE = (
    column("product", "text", "S"),
    column("line", "int4", "N", declared_type="integer"),
    column("amount", "int4", "N", nullable=True, declared_type="integer"),
)


class MemoryCache:
    """The rows of one entity.

    Attributes:
        fails: error that every call raises, if set.
        given: the rows that the services have written, as they passed them on.
        outcome: how reads are answered.
        cached: whether the cache step of writes succeeds.
        stored_key: the key that a trigger gives every row; None if there is no such trigger.
        problem: why changes may not be captured; None if they are.
    """

    def __init__(
        self,
        name: str,
        columns: tuple[Column, ...],
        *,
        key: int = 1,
        unique: tuple[tuple[str, ...], ...] = (),
    ) -> None:
        self.key = Key(columns[:key])
        self.entity = Entity(
            name=name,
            table=name,
            key=self.key.names,
            unique=unique,
            ttl=cast("timedelta", "1h"),
            absent_ttl=cast("timedelta", "1m"),
            path=f"/{name}s",
        )
        self.columns = columns
        self.fails: Exception | None = None
        self.given: list[RowInput] = []
        self.outcome = Outcome.HIT
        self.cached = True
        self.stored_key: str | None = None
        self.problem: str | None = None
        self._rows: dict[str, Row] = {}
        self._version = 41

    async def read(self, key: GivenKey) -> Read:
        self._fail()
        return Read(self.outcome, self._rows.get(self.key.canonical(key)))

    async def find(self, columns: tuple[str, ...], given: GivenKey) -> Read:
        self._fail()
        by_name = {column.name: column for column in self.columns}
        text = Lookup(tuple(by_name[name] for name in columns)).canonical(given)
        for row in self._rows.values():
            if (values_in(self.entity.lookups, row.payload) or {})[columns_name(columns)] == text:
                return Read(self.outcome, row)
        return Read(self.outcome, None)

    async def page(self, after: GivenKey | None, limit: int) -> Page:
        self._fail()
        start = None if after is None else self._order(self.key.canonical(after))
        keys = sorted(self._rows, key=self._order)
        following = [key for key in keys if start is None or self._order(key) > start]
        return Page((self._rows[key] for key in following[:limit]), more=len(following) > limit)

    async def insert(self, row: RowInput) -> Written:
        members = self._members(row)
        texts = [str(members.get(name, "6f1c2a34-90ab-4cde-8f01-23456789abcd")) for name in self.key.names]
        key = self.key.canonical(texts)
        if key in self._rows:
            message = f"Key ({', '.join(self.key.names)})=({', '.join(texts)}) already exists."
            raise DuplicateRowError(self.key.names, message)
        return self._store(key, members, created=True)

    async def replace(self, key: str, row: RowInput, expected: frozenset[int] | None) -> Written:
        members = self._members(row)
        old = self._rows.get(key)
        if expected is not None and (old is None or (expected and old.version not in expected)):
            message = "the row does not have the expected version"
            raise VersionMismatchError(message)
        return self._store(key, members, created=old is None)

    async def merge(self, key: str, patch: RowInput, expected: frozenset[int] | None) -> Written:
        members = self._members(patch)
        row = self._existing(key, expected)
        return self._store(key, json.loads(row.payload) | members, created=False)

    async def delete(self, key: str, expected: frozenset[int] | None) -> Written:
        self._fail()
        self._existing(key, expected)
        del self._rows[key]
        self._version += 1
        return Written(None, self._version, created=False, cached=self.cached)

    def _order(self, key: str) -> Any:
        parts = zip(self.key.columns, self.key.parts(key), strict=True)
        return [int(part) if column.integer_range else part for column, part in parts]

    def _fail(self) -> None:
        if self.fails is not None:
            raise self.fails

    def _members(self, row: RowInput) -> dict[str, Any]:
        self._fail()
        self.given.append(row)
        members: dict[str, Any] = json.loads(row.text)
        assert sorted(members) == sorted(row.columns)
        return members

    def _existing(self, key: str, expected: frozenset[int] | None) -> Row:
        row = self._rows.get(key)
        if row is None:
            message = f"no {self.entity.name} has the key {key!r}"
            raise RowNotFoundError(message)
        if expected and row.version not in expected:
            message = "the row does not have the expected version"
            raise VersionMismatchError(message)
        return row

    def _store(self, key: str, members: dict[str, Any], *, created: bool) -> Written:
        self._version += 1
        key = self.stored_key or key
        whole = {column.name: members.get(column.name) for column in self.columns}
        row = self._rows[key] = Row(key, self._version, b"01234567", json.dumps(whole).encode())
        return Written(row, row.version, created=created, cached=self.cached)


class MemoryService:
    """A service with four such caches."""

    def __init__(self) -> None:
        self.student = MemoryCache("student", STUDENT, unique=(("name",), ("name", "age")))
        self.word = MemoryCache("word", WORD)
        self.thing = MemoryCache("thing", THING)
        self.line = MemoryCache("line", LINE, key=2, unique=(("amount",),))
        self.parts = {"postgresql": True, "redis": True, "kafka": True}
        self.not_installed: dict[str, str] = {}
        self.closed = False

    @property
    def caches(self) -> dict[str, EntityCache]:
        return {
            cache.entity.name: cast("EntityCache", cache)
            for cache in (self.student, self.word, self.thing, self.line)
        }

    def share_metrics(self) -> None:
        pass

    def problems(self) -> dict[str, str]:
        return self.not_installed

    async def health(self) -> dict[str, bool]:
        return self.parts

    async def close(self) -> None:
        self.closed = True


def served(app: App, port: int = 8090) -> Any:
    """Return the application as a server calls it: with the address of the connection, and a list of headers.

    Args:
        app: the application.
        port: the port of every connection.
    """

    async def call(scope: dict[str, Any], receive: Receive, send: Send) -> None:
        # Those of Falcon's test client, and their names and values, can be iterated over only once.
        headers = [tuple(field) for field in scope.get("headers", ())]
        await app({**scope, "server": ("127.0.0.1", port), "headers": headers}, receive, send)

    return call


def http_scope(
    method: str, path: str, headers: Iterable[tuple[bytes, bytes]] = (), port: int = 8090
) -> dict[str, Any]:
    """Return the ASGI scope of a request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "server": ("127.0.0.1", port),
        "headers": list(headers),
    }


def settings(**changed: Any) -> Settings:
    usual = {
        "service": "sa",
        "port": 8090,
        "metrics_port": METRICS_PORT,
        "db_username": "sa",
        "db_password": "secret",
        "body_limit": 1000,
    }
    return Settings.model_validate({**usual, **changed})


def app_on(service: MemoryService, **changed: Any) -> App:
    """Return the application of a service.

    Args:
        service: the stand-in for the library.
        changed: settings that differ from the usual ones.
    """

    async def open_service(_settings: Settings) -> Service:
        return cast("Service", service)

    return create_app(settings(**changed), open_service)
