"""Applying changes to one service's cache."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoScriptError, RedisError, ResponseError

from cachesync import metrics
from cachesync.change import Operation
from cachesync.redis_client import pipelined, scan
from cachesync.slot import EMPTY, HEAD_BYTES, encode_value, encode_version, script, slot_name, with_jitter

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cachesync.change import Change
    from cachesync.entity import Entity
    from cachesync.redis_client import WorkerRedis

_CHANGE: Final = script("change")
_SCAN_KEYS: Final = 1000

_Call = tuple[str, bytes, bytes, int]


class Applier:
    """Brings changes to the slots of one service.

    Args:
        client: its Redis, or Redis Cluster.
        service: its name.
        entities: the declared entities.
    """

    def __init__(self, client: WorkerRedis, service: str, entities: Mapping[str, Entity]) -> None:
        self._client = client
        self._service = service
        self._entities = entities
        self._lag = metrics.lag.labels(service)

    def apply(self, changes: Sequence[Change]) -> list[tuple[Change, ResponseError]]:
        """Apply a batch as one pipeline, one per primary of a cluster; applying it again does nothing.

        Returns:
            The changes that can never be applied, since what stands in their place is no slot.

        Raises:
            RedisError: Redis does not answer, or refuses for now; nothing or a part was applied.
        """
        truncates = [change for change in changes if change.operation is Operation.TRUNCATE]
        rows = [change for change in changes if change.operation is not Operation.TRUNCATE]
        effects = self._run([self._call(change) for change in rows])
        refused = []
        now = datetime.now(UTC)
        for change, effect in zip(rows, effects, strict=True):
            if isinstance(effect, ResponseError):
                refused.append((change, effect))
                continue
            metrics.applied.labels(self._service, effect.decode()).inc()
            self._lag.observe(max(0.0, (now - change.changed_at).total_seconds()))
        for change in truncates:
            self._truncate(change)
        return refused

    def heads(self, changes: Sequence[Change]) -> list[bytes | ResponseError]:
        """How the slots of changes of rows begin; an error where what stands in its place is no slot.

        Raises:
            RedisError: Redis does not answer, or refuses for now.
        """
        names = [slot_name(self._service, change.entity, change.key or "") for change in changes]
        heads: list[bytes | ResponseError] = pipelined(
            self._client, [(name, ("GETRANGE", name, 0, HEAD_BYTES - 1)) for name in names]
        )
        _raise_unless_wrong_type(heads)
        return heads

    def _truncate(self, change: Change) -> None:
        """Empty every slot of the entity that is older; what is cached while this runs is newer."""
        version = encode_version(change.version)
        names: list[str] = []
        # A service's and an entity's name hold no character that is special in a pattern.
        for name in scan(self._client, slot_name(self._service, change.entity, "*"), _SCAN_KEYS):
            names.append(name.decode())
            if len(names) == _SCAN_KEYS:
                self._run([(name, version, EMPTY, 1) for name in names])
                names.clear()
        self._run([(name, version, EMPTY, 1) for name in names])

    def _call(self, change: Change) -> _Call:
        entity = self._entities[change.entity]
        slot = EMPTY
        if change.payload is not None and change.fingerprint is not None and entity.on_change == "refresh":
            slot = encode_value(change.version, change.fingerprint, change.payload)
        return (
            slot_name(self._service, entity.name, change.key or ""),
            encode_version(change.version),
            slot,
            with_jitter(entity.ttl),
        )

    def _run(self, calls: Sequence[_Call]) -> list[Any]:
        """What the script answered to each call; a ResponseError where a slot is no string."""
        if not calls:
            return []
        answers = self._pipeline("EVALSHA", _CHANGE.sha, calls)
        unknown = [place for place, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
        if unknown:
            # A Redis was restarted or flushed its scripts; EVAL loads it again.
            again = self._pipeline("EVAL", _CHANGE.source, [calls[place] for place in unknown])
            for place, answer in zip(unknown, again, strict=True):
                answers[place] = answer
        _raise_unless_wrong_type(answers)
        return answers

    def _pipeline(self, command: str, lua: str, calls: Iterable[_Call]) -> list[Any]:
        return pipelined(
            self._client,
            [
                (name, (command, lua, 1, name, version, slot, ttl_ms, ""))
                for name, version, slot, ttl_ms in calls
            ],
        )


def _raise_unless_wrong_type(answers: Iterable[Any]) -> None:
    for answer in answers:
        wrong_type = isinstance(answer, ResponseError) and "WRONGTYPE" in str(answer)
        if isinstance(answer, RedisError) and not wrong_type:
            raise answer
