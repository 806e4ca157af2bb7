"""Access to one service's cache, in a thread of its own, so that none waits for the Redis of another."""

from __future__ import annotations

import asyncio
from concurrent.futures import ThreadPoolExecutor
from itertools import count
from typing import TYPE_CHECKING, Any, Final, Literal, NamedTuple, TypeVar

from redis import Redis
from redis.exceptions import ResponseError

from cachesync.entity import CANARY
from cachesync.errors import CacheUnavailableError
from cachesync.slots.bulk import Bulk
from cachesync.slots.clients import naming, pipelined, primaries, translate_redis_errors, without_retries
from cachesync.slots.layout import HEAD_BYTES, new_token, reads_name, slot_name
from cachesync.slots.scripts import refusal_of, run_script

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cachesync.slots.clients import BlockingRedis
    from cachesync.slots.scripts import Command

REDIS_SECONDS: Final = 1.0
"""How long the live check waits for a reply of a Redis, in seconds."""

# Such as while a host name cannot be looked up, which has no timeout of its own.
_LONGEST_SECONDS: Final = 5.0

COMPARED_BYTES: Final = 1 << 16
"""How much of a slot is read to compare it with its row; of what is longer, only the version is compared."""

_LEASE_MS: Final = 5000
_SCANNED: Final = 50
_SAMPLED: Final = 5
_UNREADABLE: Final = b"?"

RedisState = Literal["ok", "refuses writes", "unavailable"]
_T = TypeVar("_T")


class Size(NamedTuple):
    """What a cache occupies.

    Attributes:
        keys: the number of keys.
        memory: the memory that the Redis uses, in bytes.
    """

    keys: int
    memory: int


class Cache:
    """The cache of one service.

    Args:
        service: the name of the service.
        open_client: opens a client of its Redis, with the timeout `REDIS_SECONDS`.

    Attributes:
        service: as given.
        state: whether its Redis responds and accepts writes.
        problem: why it does not; None if it does.
    """

    def __init__(self, service: str, open_client: Callable[[], BlockingRedis]) -> None:
        self.service = service
        self.state: RedisState = "ok"
        self.problem: str | None = None
        self._open_client = open_client
        self._client: BlockingRedis | None = None
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=f"live-check-{service}")
        self._cursors: dict[str, int] = {}

    async def heads(self, slots: Sequence[tuple[str, str]]) -> list[bytes]:
        """Return the first `HEAD_BYTES` of slots, given as entity and key; empty for an empty one.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        return await self._run(lambda client: self._read(client, slots, HEAD_BYTES - 1))

    async def contents(self, slots: Sequence[tuple[str, str]]) -> list[bytes]:
        """Return the contents of slots, up to `COMPARED_BYTES`.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        return await self._run(lambda client: self._read(client, slots, COMPARED_BYTES - 1))

    async def care(
        self, slots: Sequence[tuple[str, str]], entity: str | None
    ) -> tuple[list[bytes], list[tuple[str, bytes]]]:
        """Try what reads and writes of a service do, and keep what came of it in `state` and `problem`.

        Args:
            slots: slots to look at, as entity and key.
            entity: an entity of which some other slots are read, each time others; None to read no others.

        Returns:
            What `heads` returns for the slots; and the keys and contents of the other slots, up to
            `COMPARED_BYTES`.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        refusals, heads, others = await self._run(lambda client: self._care(client, slots, entity))
        self.state = "refuses writes" if refusals else "ok"
        self.problem = "; ".join(dict.fromkeys(refusals)) or None
        return heads, others

    async def lease(self, keys: Sequence[str]) -> dict[str, str]:
        """Take the leases of empty slots of the hidden entity; return the token of each that was taken.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        tokens = {key: new_token() for key in keys}
        calls: list[Command] = [
            (self._canary(key), token, _LEASE_MS, "", "write") for key, token in tokens.items()
        ]
        replies = await self._run(lambda client: _script(client, "lease", calls))
        return {key: tokens[key] for key, reply in zip(keys, replies, strict=True) if reply is None}

    async def fill(self, contents: Iterable[tuple[str, str, bytes, int]]) -> None:
        """Fill slots of the hidden entity, given as key, token, content and lifetime in milliseconds.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        calls: list[Command] = [
            (self._canary(key), token, content, ttl_ms) for key, token, content, ttl_ms in contents
        ]
        await self._run(lambda client: _script(client, "fill", calls))

    async def size(self) -> Size | None:
        """Return what the cache occupies; None if the login may not ask.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        return await self._run(_size)

    async def reads(self) -> dict[tuple[str, str], int]:
        """Return how many reads were answered how since the Redis began, by entity and outcome.

        Raises:
            CacheUnavailableError: Redis did not respond.
        """
        name = reads_name(self.service)
        reads: dict[tuple[str, str], int] = {}
        for outcome, number in (await self._run(lambda client: _hash(client, name))).items():
            entity, _, how = outcome.decode().partition("|")
            reads[entity, how] = int(number)
        return reads

    def close(self) -> None:
        """Disconnect, without waiting for a Redis that does not respond."""
        self._thread.submit(self._disconnect)
        self._thread.shutdown(wait=False)

    def _disconnect(self) -> None:
        if self._client is not None:
            self._client.close()

    async def _run(self, call: Callable[[BlockingRedis], _T]) -> _T:
        try:
            with translate_redis_errors(f"the Redis of {self.service}"):
                async with asyncio.timeout(_LONGEST_SECONDS):
                    return await asyncio.get_running_loop().run_in_executor(self._thread, self._call, call)
        except CacheUnavailableError as error:
            self.state, self.problem = "unavailable", str(error)
            raise

    def _call(self, call: Callable[[BlockingRedis], _T]) -> _T:
        if self._client is None:
            self._client = without_retries(self._open_client())
        return call(self._client)

    def _canary(self, key: str) -> str:
        return slot_name(self.service, CANARY.name, key)

    def _read(self, client: BlockingRedis, slots: Sequence[tuple[str, str]], last: int) -> list[bytes]:
        names = [slot_name(self.service, entity, key) for entity, key in slots]
        replies = _send(client, [(name, ("GETRANGE", name, 0, last)) for name in names])
        return [_content(reply) for reply in replies]

    def _care(
        self, client: BlockingRedis, slots: Sequence[tuple[str, str]], entity: str | None
    ) -> tuple[list[str], list[bytes], list[tuple[str, bytes]]]:
        refusals = self._probe(client)
        heads = self._read(client, slots, HEAD_BYTES - 1)
        keys = [] if entity is None else self._sample(client, entity)
        contents = self._read(client, [(entity or "", key) for key in keys], COMPARED_BYTES - 1)
        return refusals, heads, list(zip(keys, contents, strict=True))

    def _probe(self, client: BlockingRedis) -> list[str]:
        # No key of a row contains NUL.
        prefix = self._canary("\0")
        names = [prefix]
        if not isinstance(client, Redis):
            by_node: dict[str, str] = {}
            for name in (f"{prefix}{number}" for number in count()):
                by_node.setdefault(client.get_node_from_key(name).name, name)
                if len(by_node) == len(client.get_primaries()):
                    break
            names = list(by_node.values())
        replies = _script(client, "probe", [(name,) for name in names])
        return [refusal_of(reply) for reply in replies if isinstance(reply, Exception)]

    def _sample(self, client: BlockingRedis, entity: str) -> list[str]:
        prefix = slot_name(self.service, entity, "")
        nodes = list(primaries(client).items())
        cursor = self._cursors.get(entity, 0)
        # Of a cluster, one primary after the other.
        name, node = nodes[cursor % len(nodes)]
        try:
            with naming(name):
                position, names = node.scan(cursor // len(nodes), match=f"{prefix}*", count=_SCANNED)
        except ResponseError:
            return []  # the login may not
        following = (cursor + 1) % len(nodes) if position == 0 else cursor % len(nodes)
        self._cursors[entity] = position * len(nodes) + following
        texts = (_text(name).removeprefix(prefix) for name in names[:_SAMPLED])
        return [text for text in texts if "\0" not in text and "\ufffd" not in text]


def _send(client: BlockingRedis, commands: Sequence[tuple[str, Command]]) -> list[Any]:
    if not commands or not isinstance(client, Redis):
        return pipelined(client, commands)
    with Bulk(client, "Redis", None) as bulk:
        return bulk.call([command for _, command in commands])


def _script(client: BlockingRedis, name: str, calls: Sequence[Command]) -> list[Any]:
    return run_script(
        name, calls, lambda commands: _send(client, [(str(command[3]), command) for command in commands])
    )


def _content(reply: bytes | Exception) -> bytes:
    if isinstance(reply, bytes):
        return reply
    if str(reply).startswith("WRONGTYPE"):
        return _UNREADABLE
    message = f"it rejects reads: {reply}"
    raise CacheUnavailableError(message)


def _hash(client: BlockingRedis, name: str) -> dict[bytes, bytes]:
    found: Any = client.hgetall(name)
    return dict(found)


def _text(name: bytes | str) -> str:
    return name if isinstance(name, str) else name.decode(errors="replace")


def _size(client: BlockingRedis) -> Size | None:
    nodes = list(primaries(client).values())
    try:
        keys = sum(int(node.dbsize()) for node in nodes)
        memory = sum(int(node.info("memory")["used_memory"]) for node in nodes)
    except ResponseError:
        return None
    return Size(keys, memory)
