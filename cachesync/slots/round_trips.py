"""Commands to one Redis, batched into round trips."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from hiredis import pack_command
from redis.exceptions import AskError, NoScriptError

from cachesync.errors import CacheRefusedError, CacheUnavailableError
from cachesync.metrics import service as metrics
from cachesync.slots.breaker import Breaker
from cachesync.slots.connection import Connection
from cachesync.slots.scripts import call_script, refusal_of, script

if TYPE_CHECKING:
    from collections.abc import Callable

    from redis.asyncio import Redis

    from cachesync.slots.condition import Condition
    from cachesync.slots.scripts import Command, Script

_FAILURES: Final = 3
_PAUSE_SECONDS: Final = 1.0
# For this long, a Redis that deleted something counts as one that can.
_TRUST_SECONDS: Final = 0.2
# As many deletes as fit into a round trip together with everything else.
_MAX_OVERDUE: Final = 1000


class _Call(NamedTuple):
    """A command that waits for its reply.

    Attributes:
        command: the command.
        reply: the future reply.
        script: the script that the command calls by its digest; None for another command.
    """

    command: Command
    reply: asyncio.Future[Any]
    script: Script | None = None


class _Batch(NamedTuple):
    """What one round trip sends, in this order.

    Attributes:
        calls: the commands that wait for their replies.
        deletes: the keys to delete before anything is read.
        reads: the futures of the slots to read, by their names.
    """

    calls: list[_Call]
    deletes: list[str]
    reads: dict[str, list[asyncio.Future[Any]]]


class RoundTrips:
    """Sends the commands that are issued during one round trip together in the next one.

    Under load, the round trip makes up most of the cost of a hit.

    A Redis that refuses even to delete slots could be read, but its slots can be older than a write that it
    refused. It is therefore not read until it deletes again, which the reads find out along the way. Slots
    that did not take a write of this process are deleted before anything is read again.

    Args:
        client: the client of the Redis.
        probe: a key that is never a slot, and that this Redis owns.
        on_stale_map: called when the Redis does not respond or replies that another node owns a key. Given
            if, and only if, the Redis is a node of a Redis Cluster.

    Attributes:
        probe: that key.
        condition: what is known about the Redis.
    """

    def __init__(
        self,
        client: Redis,
        probe: str,
        condition: Condition,
        on_stale_map: Callable[[], None] | None = None,
    ) -> None:
        self._client = client
        self.probe = probe
        self._on_stale_map = on_stale_map
        self._breaker = Breaker(_FAILURES, _PAUSE_SECONDS)
        self._deletes = Breaker(1, _PAUSE_SECONDS)
        self._deleted_at = -_TRUST_SECONDS
        self._overdue: set[str] = set()
        self._calls: list[_Call] = []
        self._reads: dict[str, list[asyncio.Future[Any]]] = {}
        self._loop = asyncio.get_running_loop()
        self._connection: Connection | None = None
        self._connecting: asyncio.Task[None] | None = None
        # Whether a round trip is in progress, or about to begin.
        self._is_busy = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._is_closed = False
        self.condition = condition

    def node_for(self, _: str) -> Self:
        """Return the Redis that owns a key: a single Redis owns every key."""
        return self

    def nodes(self) -> list[Self]:
        """Return every Redis that owns keys: this one."""
        return [self]

    def known(self) -> list[Self]:
        """Return every Redis that is known: this one."""
        return [self]

    @property
    def is_open(self) -> bool:
        """Whether its breaker is open."""
        return self._breaker.is_open

    def read(self, name: str) -> asyncio.Future[bytes | None]:
        """Read a slot with the next round trip.

        Returns:
            The content of the slot; None if it is empty. The future fails as that of `call`.
        """
        future: asyncio.Future[bytes | None] = self._loop.create_future()
        # One read for all who want the slot at the same time, after it has been loaded.
        if name in self._reads:
            self._reads[name].append(future)
        else:
            self._reads[name] = [future]
        if not self._is_busy:
            self._send_soon()
        return future

    def call(self, *command: bytes | str | int) -> asyncio.Future[Any]:
        """Send a command with the next round trip.

        Returns:
            The reply. The future fails with a CacheRefusedError if the Redis rejected the command, and with a
            CacheUnavailableError if the Redis did not respond, or is not being called after repeated
            failures.
        """
        return self._call(command)

    def run(self, name: str, slots: int, *call: bytes | str | int) -> asyncio.Future[Any]:
        """Run a script with the next round trip.

        Args:
            name: the name of the script.
            slots: the number of slots.
            call: the names of the slots and the arguments of the script.

        Returns:
            The reply. The future fails as that of `call`.
        """
        lua = script(name)
        return self._call(("EVALSHA", lua.sha, slots, *call), lua)

    def delete_before_reading(self, name: str) -> None:
        """Delete a slot before anything is read again, because it may be older than a write.

        If too many wait for that, the stream brings the slot up to date, as it does for other processes.
        """
        if len(self._overdue) < _MAX_OVERDUE:
            self._overdue.add(name)

    @property
    def is_trusted(self) -> bool:
        """Whether slots can be read with nothing else to do before. Any thread may ask."""
        return not (self._is_closed or self._breaker.is_open or self._must_delete)

    @property
    def _must_delete(self) -> bool:
        return bool(self._overdue) or time.monotonic() >= self._deleted_at + _TRUST_SECONDS

    async def problem(self) -> str | None:
        """Return why the Redis cannot be used as a cache now; None if it can."""
        try:
            await self._client.mget(self.probe)
            await self._client.delete(self.probe)
            await call_script("probe", (self.probe,), self._client.execute_command)
        except Exception as error:  # noqa: BLE001 - whatever the reason, it cannot be used
            return refusal_of(error) or type(error).__name__
        return None

    async def close(self) -> None:
        """Wait for the round trips in progress, then disconnect."""
        await self._idle.wait()
        self._is_closed = True
        if self._connection is not None:
            self._connection.close()
        await self._client.aclose()

    def _call(self, command: Command, lua: Script | None = None) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = self._loop.create_future()
        self._calls.append(_Call(command, future, lua))
        if not self._is_busy:
            self._send_soon()
        return future

    def _send_soon(self) -> None:
        self._is_busy = True
        self._idle.clear()
        self._loop.call_soon(self._send)

    def _send(self) -> None:
        """Begin a round trip with all that waits for one."""
        batch = self._next_batch()
        if batch is None:
            self._is_busy = False
            self._idle.set()
        elif self._connection is not None and self._connection.is_open:
            self._transmit(self._connection, batch)
        else:
            self._connecting = self._loop.create_task(self._connect(batch))

    def _next_batch(self) -> _Batch | None:
        calls, reads = self._calls, self._reads
        if not calls and not reads:
            return None
        self._calls, self._reads = [], {}
        batch = _Batch(calls, [], reads)
        if self._is_closed:
            _fail(batch, CacheUnavailableError("the connection to Redis has been closed"))
            return None
        if not self._breaker.allows():
            _fail(batch, CacheUnavailableError("Redis is not being called after repeated failures"))
            return None
        if reads and self._must_delete:
            if self._deletes.allows():
                return _Batch(calls, [self.probe, *self._overdue], reads)
            unread = CacheUnavailableError("Redis is not being read while it refuses to delete")
            _fail(_Batch([], [], reads), unread)
            return _Batch(calls, [], {}) if calls else None
        return batch

    async def _connect(self, batch: _Batch) -> None:
        try:
            self._connection = await Connection.open(self._client.connection_pool)
        except BaseException as error:  # whatever the reason, nobody may wait forever
            self._failed(batch, error)
            if not isinstance(error, Exception):
                raise
        else:
            self._transmit(self._connection, batch)

    def _transmit(self, connection: Connection, batch: _Batch) -> None:
        try:
            packed = [_packed(*one.command) for one in batch.calls]
            packed += [_packed("DEL", name) for name in batch.deletes]
            # MGET instead of GET, which fails for a key of another Redis type. One command for all slots:
            # packing many commands and parsing many replies would cost a hit as much as everything else
            # combined. But a cluster rejects a command with keys of several hash slots, even if one node owns
            # all of them.
            if self._on_stale_map is not None:
                packed += [_packed("MGET", name) for name in batch.reads]
            elif batch.reads:
                packed.append(_packed("MGET", *batch.reads))
            connection.round_trip(
                b"".join(packed),
                len(packed),
                lambda replies: self._finished(batch, replies),
            )
        # A name that is no text, or a transport that the event loop has just closed.
        except Exception as error:  # noqa: BLE001
            self._failed(batch, error)

    def _finished(self, batch: _Batch, replies: list[Any] | Exception) -> None:
        if isinstance(replies, Exception):
            self._failed(batch, replies)
            return
        try:
            self._distribute(batch, replies)
        except Exception as error:  # noqa: BLE001
            self._report(batch, error)
        finally:
            self._send()

    def _report(self, batch: _Batch, error: Exception) -> None:
        """Report an error of this module or of the log: nobody may wait forever because of it."""
        message = f"Redis's replies were not handled: {error}"
        _fail(batch, CacheUnavailableError(message))
        self._loop.call_exception_handler({"message": message, "exception": error})

    def _distribute(self, batch: _Batch, replies: list[Any]) -> None:
        self._breaker.succeeded()
        self.condition.responded()
        calls, deletes, reads = batch
        refusal = None
        for name, reply in zip(deletes, replies[len(calls) :], strict=False):
            self._note_delete(name, reply)
            if _is_refusal(reply):
                refusal = refusal or reply
        for call, reply in zip(calls, replies, strict=False):
            self._resolve(call, reply)
        if reads:
            slots = replies[len(calls) + len(deletes) :]
            if self._on_stale_map is not None:
                slots = [one if isinstance(one, Exception) else one[0] for one in slots]
            elif isinstance(slots[0], Exception):
                slots *= len(reads)
            else:
                slots = slots[0]
            for futures, slot in zip(reads.values(), slots, strict=True):
                for future in futures:
                    self._settle(future, slot if refusal is None else refusal)

    def _failed(self, batch: _Batch, error: BaseException) -> None:
        reason = str(error) or type(error).__name__
        _fail(batch, CacheUnavailableError(f"Redis is unavailable: {reason}"))
        try:
            self._breaker.failed()
            metrics.cache_failures.inc()
            if self._breaker.is_open:
                self.condition.unavailable(reason)
            if self._on_stale_map is not None:
                self._on_stale_map()
        except Exception as another:  # noqa: BLE001
            self._report(batch, another)
        finally:
            self._send()

    def _note_delete(self, name: str, reply: Any) -> None:
        if _is_refusal(reply):
            self._deletes.failed()
            self._deleted_at = -_TRUST_SECONDS
            return
        self._overdue.discard(name)
        if not isinstance(reply, Exception):
            self._deletes.succeeded()
            self._deleted_at = time.monotonic()

    def _resolve(self, call: _Call, reply: Any) -> None:
        if call.command[0] == "DEL":
            self._note_delete(str(call.command[1]), reply)
        if call.script is not None and isinstance(reply, NoScriptError):
            # This loads the script again. Its first argument is the digest.
            self._calls.append(_Call(("EVAL", call.script.source, *call.command[2:]), call.reply))
        else:
            self._settle(call.reply, reply)

    def _settle(self, future: asyncio.Future[Any], reply: Any) -> None:
        if not isinstance(reply, Exception):
            if not future.done():
                future.set_result(reply)
            return
        error = reply
        if _is_refusal(reply):
            # For example OOM or LOADING: this command was not executed, but the connection is sound.
            metrics.cache_failures.inc()
            error = CacheRefusedError(str(reply))
            self.condition.refused(refusal_of(reply))
        elif isinstance(reply, AskError):
            error = CacheUnavailableError(str(reply))
            if self._on_stale_map is not None:
                self._on_stale_map()
        if not future.done():
            future.set_exception(error)


def _packed(*command: bytes | str | int) -> bytes:
    pack: Any = pack_command  # declared for a tuple of one item
    packed: bytes = pack(command)
    return packed


def _is_refusal(reply: Any) -> bool:
    """Return whether a reply is an error other than that the script or the key is somewhere else."""
    return isinstance(reply, Exception) and not isinstance(reply, (NoScriptError, AskError))


def _fail(batch: _Batch, error: Exception) -> None:
    waiting = [call.reply for call in batch.calls]
    for futures in batch.reads.values():
        waiting += futures
    for future in waiting:
        if not future.done():
            future.set_exception(error)
