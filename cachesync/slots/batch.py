"""Access to many slots at once, for the background work."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import RedisError, ResponseError

from cachesync import metrics
from cachesync.change import Operation
from cachesync.errors import CacheUnavailableError
from cachesync.slots.clients import pipelined, scan
from cachesync.slots.layout import HEAD_BYTES, emptied, slot_change_of, slot_name
from cachesync.slots.scripts import run_script

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cachesync.change import Change
    from cachesync.entity import Entity
    from cachesync.slots.clients import BlockingRedis
    from cachesync.slots.layout import SlotChange
    from cachesync.slots.scripts import Command

_SCAN_KEYS: Final = 1000
# Position of the only key in the command of a script.
_KEY_POSITION: Final = 3


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
        self._lag = metrics.lag.labels(service)

    def apply(self, changes: Sequence[Change]) -> list[tuple[Change, str]]:
        """Apply a batch of changes in one round trip; in a Redis Cluster, in one per primary.

        Applying a batch again does nothing.

        Returns:
            The changes that can never be applied, because the Redis key of their slot holds another type,
            each with the reason.

        Raises:
            CacheUnavailableError: Redis did not respond, or rejects commands for now. Any part of the batch
                may have been applied.
        """
        truncates = [change for change in changes if change.operation is Operation.TRUNCATE]
        rows = [change for change in changes if change.operation is not Operation.TRUNCATE]
        effects = self._run(
            [slot_change_of(self._service, self._entities[change.entity], change) for change in rows]
        )
        refused = []
        now = datetime.now(UTC)
        for change, effect in zip(rows, effects, strict=True):
            if isinstance(effect, ResponseError):
                refused.append((change, str(effect)))
                continue
            metrics.applied.labels(self._service, effect.decode()).inc()
            self._lag.observe(max(0.0, (now - change.changed_at).total_seconds()))
        for change in truncates:
            self._truncate(change)
        return refused

    def heads(self, changes: Sequence[Change]) -> list[bytes | str]:
        """Return the first `HEAD_BYTES` of the slot of each change.

        Args:
            changes: changes of rows, not truncates.

        Returns:
            One item per change; the reason, as `str`, if the Redis key of the slot holds another type.

        Raises:
            CacheUnavailableError: Redis did not respond, or rejects commands for now.
        """
        names = [slot_name(self._service, change.entity, change.key or "") for change in changes]
        heads = pipelined(self._client, [(name, ("GETRANGE", name, 0, HEAD_BYTES - 1)) for name in names])
        _raise_general_error(heads)
        return [str(head) if isinstance(head, ResponseError) else head for head in heads]

    def _truncate(self, change: Change) -> None:
        """Empty every older slot of the entity; values that are cached while this runs are newer."""
        names: list[str] = []
        # The names of services and entities contain no special characters of patterns.
        for name in scan(self._client, slot_name(self._service, change.entity, "*"), _SCAN_KEYS):
            names.append(name.decode())
            if len(names) == _SCAN_KEYS:
                self._run([emptied(name, change.version) for name in names])
                names.clear()
        self._run([emptied(name, change.version) for name in names])

    def _run(self, changes: Sequence[SlotChange]) -> list[Any]:
        """Return the effect of each change; a ResponseError if the Redis key holds another type."""
        # The last argument is the token of a lease, which events do not have.
        effects = run_script("change", [(*change, "") for change in changes], self._send)
        _raise_general_error(effects)
        return effects

    def _send(self, commands: list[Command]) -> list[Any]:
        return pipelined(self._client, [(str(command[_KEY_POSITION]), command) for command in commands])


def _raise_general_error(replies: Iterable[Any]) -> None:
    """Raise the first error that does not concern one slot alone."""
    for reply in replies:
        wrong_type = isinstance(reply, ResponseError) and "WRONGTYPE" in str(reply)
        if isinstance(reply, RedisError) and not wrong_type:
            raise CacheUnavailableError(str(reply)) from reply
