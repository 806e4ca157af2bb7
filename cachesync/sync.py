"""The caches of a service of the user's own whose code blocks, such as one with Flask, Django or Celery.

The same as `AsyncCaches` and `AsyncCache`, whose documentation holds here too: these run in an event loop in
a thread of its own, and what needs the user's own connections is done in the thread of the caller.
"""

from __future__ import annotations

import os
import threading
import weakref
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, Self, TypeVar, overload

from cachesync.entity import load_entities
from cachesync.errors import SettingsError
from cachesync.service.borrowed import is_django
from cachesync.service.caches import AsyncCaches, Key, KeyPart, require_entity
from cachesync.service.calls import LoopThread, done_at_once
from cachesync.service.database import UncommittedError, past_the_cache
from cachesync.service.following import Following
from cachesync.service.sessions import own_blocking_transaction

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
    from pathlib import Path
    from types import TracebackType

    from cachesync.change import Change
    from cachesync.entity import Entity
    from cachesync.service.caches import OnRead
    from cachesync.service.database import Database
    from cachesync.service.following import Followed, Settle, Settled

__all__ = ["Cache", "Caches"]

T = TypeVar("T")
K = TypeVar("K", bound=Key)


class Cache:
    """The cached rows of one entity, as `Caches` returns it.

    Keys are those of `AsyncCache`.
    """

    def __init__(self, caches: Caches, entity: str) -> None:
        self._caches = caches
        self._entity = entity

    @overload
    def get(self, key: Key) -> dict[str, Any] | None: ...

    @overload
    def get(self, key: Key, *, as_: type[T]) -> T | None: ...

    def get(self, key: Key, *, as_: type[T] | None = None) -> dict[str, Any] | T | None:
        """Return a row, as `AsyncCache.get` does; None if there is no such row."""
        hit = self._caches.hit(self._entity, key, as_)
        if hit is not None:
            return hit[0]
        row: dict[str, Any] | T | None = self._read(lambda cache: cache.get(key, as_=as_))
        return row

    @overload
    def get_by(self, /, *, as_: None = None, **values: KeyPart) -> dict[str, Any] | None: ...

    @overload
    def get_by(self, /, *, as_: type[T], **values: KeyPart) -> T | None: ...

    def get_by(self, /, *, as_: type[T] | None = None, **values: KeyPart) -> dict[str, Any] | T | None:
        """Return the row that has a value in unique columns, as `AsyncCache.get_by` does."""
        row: dict[str, Any] | T | None = self._read(lambda cache: cache.get_by(as_=as_, **values))
        return row

    @overload
    def get_many(self, keys: Iterable[K]) -> dict[K, dict[str, Any] | None]: ...

    @overload
    def get_many(self, keys: Iterable[K], *, as_: type[T]) -> dict[K, T | None]: ...

    def get_many(
        self, keys: Iterable[K], *, as_: type[T] | None = None
    ) -> dict[K, dict[str, Any] | None] | dict[K, T | None]:
        """Return rows, as `AsyncCache.get_many` does."""
        wanted = list(keys)
        rows: dict[K, Any] = self._read(lambda cache: cache.get_many(wanted, as_=as_))
        return rows

    def _read(self, read: Callable[[Any], Coroutine[Any, Any, Any]]) -> Any:
        """Do a read of `AsyncCache`."""

        async def work(caches: AsyncCaches) -> Any:
            await caches.connections.watch.look_if_due()
            return await read(caches[self._entity])

        with suppress(UncommittedError):
            return self._caches.call(work)
        token = past_the_cache.set(True)
        try:
            return self._caches.call(work)
        finally:
            past_the_cache.reset(token)


class Caches:
    """The caches of a service of the user's own, for code that blocks. Any number of threads can use them.

    They are opened when they are first used, in each process: after a fork, the child opens its own. Use them
    as a context manager, or call `close`, to end them earlier than the process.

    Args:
        service: the name of the service; its slots are named `{service}:{entity}:{key}`.
        redis: the URL of the service's own Redis or Redis Cluster.
        database: where rows are read that are not cached: the user's own pool or engine, which stays the
            user's, a connection of Django, whose alias names that of each thread, or a DSN, for which a pool
            is opened. See `blocking_database`. The login needs the role `cachesync_service`.
        entities: the entities file, or its content as `load_entities` returns it.
        on_read: as for `AsyncCaches`; called in the thread of the caller or of the event loop.

    Raises:
        SettingsError: the name, the URL or the kind of the database is invalid.
        DeclarationError: the entities file is invalid.
    """

    def __init__(
        self,
        service: str,
        *,
        redis: str,
        database: object,
        entities: str | Path | Mapping[str, Entity],
        on_read: OnRead | None = None,
    ) -> None:
        self._service = service
        self._on_read = on_read
        self._redis = redis
        self._database = database if isinstance(database, str) else _blocking(database)
        self._entities = (
            load_entities(entities) if isinstance(entities, str | os.PathLike) else dict(entities)
        )
        self._new()
        self._is_closed = False
        self._lock = threading.Lock()
        self._opened: _Opened | None = None
        _ALL.add(self)

    def open(self) -> Self:
        """Open the caches now, not when they are first used; see `AsyncCaches.open`.

        Raises:
            NotInstalledError: the database side is missing or does not match the entities file.
            PrivilegeError: the login does not have the role of a service.
            DatabaseUnavailableError: PostgreSQL did not respond, or rejected the login.
            SettingsError: the DSN is invalid, or leads to a connection pooler.
        """
        self._is_closed = False
        self._behind()
        return self

    def close(self) -> None:
        """Disconnect from Redis, and from the database if it was given as a DSN."""
        with self._lock:
            self._is_closed = True
            opened, self._opened = self._opened, None
        if opened is not None:
            try:
                opened.loop.call(opened.caches.close, to_the_end=True)
            finally:
                opened.loop.close()

    def __enter__(self) -> Self:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def __getitem__(self, entity: str) -> Cache:
        require_entity(self._entities, entity)
        return Cache(self, entity)

    @property
    def entities(self) -> Mapping[str, Entity]:
        """The declared entities, by name."""
        return self._entities

    @contextmanager
    def following(self, session: Any) -> Iterator[Followed]:
        """Follow the user's own transaction, as `AsyncCaches.following` does.

        An exception such as a KeyboardInterrupt in the block rolls the transaction back. If one is raised
        during the commit, the slots follow what was committed before it leaves the block.

        Args:
            session: a `Connection` of psycopg, a `Session`, a `scoped_session` or a `Connection` of
                SQLAlchemy, or a connection of Django, for which the block is an `atomic` one, too.

        Yields:
            What the transaction has changed, known at the end of the block.

        Raises:
            TransactionError: the transaction cannot be followed.
            NotInstalledError: the database side was installed by an earlier version.
            PrivilegeError: the login does not have the role of a service.
        """
        settle = self.settler()
        if is_django(session):
            from cachesync.service.django_transactions import following  # noqa: PLC0415 - if there is Django

            with following(session, settle) as result:
                yield result
            return
        block = Following(own_blocking_transaction(session), settle)
        result = done_at_once(block.begin)
        try:
            yield result
            done_at_once(block.commit)
        except BaseException:
            done_at_once(block.undo)
            raise

    def changes_in(self, session: object) -> list[Change]:
        """Return what the current transaction has changed, as `AsyncCaches.changes_in` does."""
        return done_at_once(own_blocking_transaction(session).changes)

    def committed(self, changes: Iterable[Change | tuple[str, Key, int]]) -> bool:
        """Bring committed changes to the slots, as `AsyncCaches.committed` does."""
        committed = list(changes)
        return self.call(lambda caches: caches.committed(committed), to_the_end=True)

    def settler(self) -> Settle:
        """Open the caches, and return what brings changes to their slots, which blocks."""
        opened = self._behind()
        connections = opened.caches.connections

        async def settle(committed: Iterable[Change], uncertain: Iterable[Change]) -> Settled:
            def work() -> Coroutine[Any, Any, Settled]:
                return connections.settle(committed, uncertain)

            try:
                return opened.loop.call(work, to_the_end=True)
            except SettingsError:
                # The caches were closed in the block.
                loop = LoopThread()
                try:
                    return loop.call(work, to_the_end=True)
                finally:
                    loop.close()

        return settle

    def hit(self, entity: str, key: Key, as_: type[T] | None) -> tuple[dict[str, Any] | T | None] | None:
        """Return what `Cache.get` returns if its thread can tell without the event loop."""
        opened = self._behind()
        if opened.caches.connections.watch.is_due:
            return None
        return opened.caches[entity].hit(key, as_)

    def call(self, work: Callable[[AsyncCaches], Coroutine[Any, Any, T]], *, to_the_end: bool = False) -> T:
        """Do work with the caches in their event loop; see `LoopThread.call`."""
        opened = self._behind()
        return opened.loop.call(lambda: work(opened.caches), to_the_end=to_the_end)

    def _behind(self) -> _Opened:
        opened = self._opened
        if opened is not None:
            return opened
        with self._lock:
            if self._opened is None:
                if self._is_closed:
                    message = "the caches are closed; call `open`"
                    raise SettingsError(message)
                loop = LoopThread()
                caches = self._new()
                try:
                    loop.call(caches.open)
                except BaseException:
                    loop.close()
                    raise
                self._opened = _Opened(loop, caches)
            return self._opened

    def _new(self) -> AsyncCaches:
        return AsyncCaches(
            self._service,
            redis=self._redis,
            database=self._database,
            entities=self._entities,
            on_read=self._on_read,
        )

    def leave_to_parent(self) -> None:
        """Forget, in the child of a fork, what the parent has opened."""
        if self._opened is not None:
            # Its sockets are the parent's, too, so that nothing may ever be finalized.
            _OF_PARENTS.append(self._opened)
        self._opened = None
        self._lock = threading.Lock()


@dataclass(frozen=True, slots=True)
class _Opened:
    """The caches in a process."""

    loop: LoopThread
    caches: AsyncCaches


def _blocking(database: object) -> Database:
    try:
        from cachesync.service.borrowed_blocking import blocking_database  # noqa: PLC0415 - not for a DSN
    except ImportError as error:
        message = f"a pool, an engine or a connection needs psycopg 3.2 or newer: {error}"
        raise SettingsError(message) from error
    return blocking_database(database)


_ALL: Final[weakref.WeakSet[Caches]] = weakref.WeakSet()
_OF_PARENTS: Final[list[_Opened]] = []


def _after_fork() -> None:
    for caches in _ALL:
        caches.leave_to_parent()


os.register_at_fork(after_in_child=_after_fork)
