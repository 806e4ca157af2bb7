"""Access to many slots at once, for the background work."""

from __future__ import annotations

from contextlib import suppress
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoPermissionError, RedisError

from cachesync import metrics
from cachesync.change import Operation
from cachesync.errors import CacheUnavailableError
from cachesync.slots.clients import pipelined, primaries, scan, translate_redis_errors
from cachesync.slots.condition import Condition
from cachesync.slots.layout import HEAD_BYTES, emptied, slot_change_of, slot_name
from cachesync.slots.scripts import is_emptied, refusal_of, run_script

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cachesync.change import Change
    from cachesync.entity import Entity
    from cachesync.slots.clients import BlockingRedis
    from cachesync.slots.layout import SlotChange
    from cachesync.slots.scripts import Command

_SCAN_KEYS: Final = 1000
# Position of the only key in the command of a script.
_KEY_POSITION: Final = 3
# The effects of changes for which Redis stored something.
_STORED: Final = frozenset({"advanced", "raised"})


class Applier:
    """Applies changes to the slots of one service.

    Args:
        client: the client of the service's Redis or Redis Cluster.
        service: the name of the service.
        entities: the declared entities, by name.
    """

    def __init__(self, client: BlockingRedis, service: str, entities: Mapping[str, Entity]) -> None:
        self._client = client
        self._service = service
        self._entities = entities
        self._condition = Condition(service=service)
        self._lag = metrics.lag.labels(service)

    def apply(self, changes: Sequence[Change]) -> list[tuple[Change, str]]:
        """Apply a batch of changes in one round trip; in a Redis Cluster, in one per primary.

        A slot whose new content Redis refuses is emptied instead. Applying a batch again does nothing.

        Returns:
            The changes that cannot be applied, although Redis applies others, because the login has no access
            to their slots; each with the reason.

        Raises:
            CacheUnavailableError: Redis did not respond, or refuses even to empty slots. Any part of the
                batch may have been applied.
        """
        # A truncate empties everything that is older, and each one scans all slots.
        truncates: dict[str, Change] = {}
        rows = []
        for change in changes:
            if change.operation is not Operation.TRUNCATE:
                rows.append(change)
            elif change.entity not in truncates or change.version > truncates[change.entity].version:
                truncates[change.entity] = change
        effects = self._run(
            [slot_change_of(self._service, self._entities[change.entity], change) for change in rows]
        )
        denied = []
        now = datetime.now(UTC)
        for change, effect in zip(rows, effects, strict=True):
            if isinstance(effect, NoPermissionError):
                denied.append((change, str(effect)))
                continue
            metrics.applied.labels(self._service, effect).inc()
            self._lag.observe(max(0.0, (now - change.changed_at).total_seconds()))
        for change in truncates.values():
            self._truncate(change)
        return denied

    def is_available(self) -> bool:
        """Return whether Redis responds; for a Redis Cluster, whether every primary does."""
        try:
            with translate_redis_errors():
                for redis in primaries(self._client).values():
                    redis.ping()
        except CacheUnavailableError:
            return False
        return True

    def heads(self, changes: Sequence[Change]) -> list[bytes | str]:
        """Return the first `HEAD_BYTES` of the slot of each change.

        Args:
            changes: changes of rows, not truncates.

        Returns:
            One item per change; the reason, as `str`, if the login has no access to the slot.

        Raises:
            CacheUnavailableError: Redis did not respond, or rejects commands for now.
        """
        names = [slot_name(self._service, change.entity, change.key or "") for change in changes]
        replies = pipelined(self._client, [(name, ("GETRANGE", name, 0, HEAD_BYTES - 1)) for name in names])
        heads: list[bytes | str] = []
        for reply in replies:
            if not isinstance(reply, RedisError):
                heads.append(reply)
            elif _is_denied(reply):
                heads.append(str(reply))
            elif str(reply).startswith("WRONGTYPE"):
                heads.append(b"not a string")
            else:
                raise CacheUnavailableError(str(reply)) from reply
        return heads

    def _truncate(self, change: Change) -> None:
        """Empty every older slot of the entity; values that are cached while this runs are newer."""
        names: list[str] = []
        # The names of services and entities contain no special characters of patterns.
        for name in scan(self._client, slot_name(self._service, change.entity, "*"), _SCAN_KEYS):
            # Other names were given by other programs.
            with suppress(UnicodeDecodeError):
                names.append(name.decode())
            if len(names) == _SCAN_KEYS:
                self._run([emptied(name, change.version) for name in names])
                names.clear()
        self._run([emptied(name, change.version) for name in names])

    def _run(self, changes: Sequence[SlotChange]) -> list[str | NoPermissionError]:
        """Return the effect of each change: that of the script; `refused` if the slot was emptied instead; or
        the error if the login has no access to the slot.
        """  # noqa: D205
        # The last argument is the token of a lease, which events do not have.
        replies = run_script("change", [(*change, "") for change in changes], self._send)
        failed = [
            index
            for index, reply in enumerate(replies)
            if isinstance(reply, RedisError) and not is_emptied(reply)
        ]
        deletes: list[tuple[str, Command]] = [
            (changes[index].name, ("DEL", changes[index].name)) for index in failed
        ]
        for index, reply in zip(failed, pipelined(self._client, deletes), strict=True):
            if _is_denied(reply):
                replies[index] = reply
            elif isinstance(reply, RedisError):
                raise CacheUnavailableError(refusal_of(reply)) from reply
        return [self._effect(reply) for reply in replies]

    def _effect(self, reply: Any) -> str | NoPermissionError:
        if _is_denied(reply):
            denied: NoPermissionError = reply
            return denied
        if isinstance(reply, RedisError):
            self._condition.refused(refusal_of(reply))
            return "refused"
        effect: str = reply.decode()
        if effect in _STORED:
            self._condition.stored()
        return effect

    def _send(self, commands: list[Command]) -> list[Any]:
        return pipelined(self._client, [(str(command[_KEY_POSITION]), command) for command in commands])


def _is_denied(reply: Any) -> bool:
    """Return whether a reply is an error that concerns one slot alone, not the command."""
    return isinstance(reply, NoPermissionError) and "to access" in str(reply)
