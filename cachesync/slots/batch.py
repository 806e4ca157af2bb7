"""Access to many slots at once, for the background work."""

from __future__ import annotations

import time
from collections import Counter
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Final, NamedTuple

from hiredis import ReplyError
from redis import Redis
from redis.exceptions import NoPermissionError, RedisError

from cachesync.change import event_of
from cachesync.errors import CacheUnavailableError
from cachesync.lookup import decode_values, lookup_name, values_in
from cachesync.metrics import stream as metrics
from cachesync.slots.bulk import Bulk
from cachesync.slots.clients import pipelined, primaries, scan, translate_redis_errors
from cachesync.slots.condition import Condition
from cachesync.slots.layout import EMPTIES_ABSENT, EMPTY, HEAD_BYTES, SlotChange, slot_name, with_jitter
from cachesync.slots.scripts import is_emptied, refusal_of, run_script
from cachesync.value import UP_TO_PAYLOAD, VERSION

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cachesync.change import Change, Event
    from cachesync.entity import Entity
    from cachesync.slots.clients import BlockingRedis
    from cachesync.slots.scripts import Command

_SCAN_KEYS: Final = 1000
# Redis does nothing else while it runs a script.
_TOGETHER: Final = 200
_TOGETHER_BYTES: Final = 1 << 18
# Position of the only key in the command of a script.
_KEY_POSITION: Final = 3
# The effects of changes for which Redis stored something.
_STORED: Final = ("advanced", "raised")


class _Chunk(NamedTuple):
    """Slots that are changed together.

    Attributes:
        names: the slots' Redis keys.
        contents: the new content of each slot, as `changes.lua` expects it.
        ttl_ms: the lifetime of the contents, in milliseconds.
    """

    names: list[bytes]
    contents: list[bytes]
    ttl_ms: int

    def each(self) -> Iterator[SlotChange]:
        """Yield the change of each slot."""
        for name, content in zip(self.names, self.contents, strict=True):
            is_row = len(content) > VERSION.stop
            yield SlotChange(name.decode(), content[VERSION], content if is_row else EMPTY, self.ttl_ms)

    def cut(self) -> Iterator[_Chunk]:
        """Yield the same slots in parts that do not keep Redis busy for long."""
        names, contents, ttl_ms = self
        most = max(1, min(_TOGETHER, _TOGETHER_BYTES * len(contents) // sum(map(len, contents))))
        if len(names) <= most:
            yield self
            return
        for start in range(0, len(names), most):
            yield _Chunk(names[start : start + most], contents[start : start + most], ttl_ms)


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
        self._prefixes = {name: slot_name(service, name, "").encode() for name in entities}
        # The lookups have names like those of entities, and the slots of both are changed alike.
        self._tables = dict(entities)
        self._with_lookups = {name for name, entity in entities.items() if entity.unique}
        for name in self._with_lookups:
            for columns in entities[name].lookups:
                lookup = lookup_name(name, columns)
                self._tables[lookup] = entities[name]
                self._prefixes[lookup] = slot_name(service, lookup, "").encode()
        self._condition = Condition(service=service)
        self._lag = metrics.lag.labels(service)

    def close(self) -> None:
        """Close the connections of the client."""
        self._client.close()

    def apply(self, changes: Sequence[Change]) -> list[tuple[Change, str]]:
        """Apply a batch of changes, as `apply_events` does.

        Returns:
            The changes that cannot be applied, each with the reason.

        Raises:
            CacheUnavailableError: as for `apply_events`.
        """
        by_event = {id(event): (event, change) for change in changes for event in [event_of(change)]}
        denied = self.apply_events([event for event, _ in by_event.values()])
        return [(by_event[id(event)][1], reason) for event, reason in denied]

    def apply_events(self, events: Sequence[Event]) -> list[tuple[Event, str]]:
        """Apply a batch of changes in one round trip; in a Redis Cluster, in one per primary.

        Of several changes of a row, only the newest is applied. A slot whose new content Redis refuses is
        emptied instead. Applying a batch again does nothing.

        Returns:
            The changes that cannot be applied, although Redis applies others, because the login has no access
            to their slots; each with the reason.

        Raises:
            CacheUnavailableError: Redis did not respond, or refuses even to empty slots. Any part of the
                batch may have been applied.
        """
        newest, truncates, passed_over = _newest(events)
        lookups, unknown = self._lookups(newest, events)
        changed = [*newest.items(), *lookups.items()]
        effects, denied_slots = self._run([self._chunk(name, rows) for name, rows in changed])
        now = int(1000 * time.time())
        if not denied_slots:
            denied = []
            lags = [now - changed_ms for _, key, _, changed_ms, _ in events if key is not None]
        else:
            reasons = [self._denied(event, denied_slots) for event in events]
            denied = [(event, reason) for event, reason in zip(events, reasons, strict=True) if reason]
            lags = [
                now - event.changed_ms
                for event, reason in zip(events, reasons, strict=True)
                if reason is None and event.key is not None
            ]
        for entity, key, effect in passed_over:
            if self._name(entity, key) not in denied_slots:
                effects[effect] += 1
        for effect, number in effects.items():
            metrics.applied.labels(self._service, effect).inc(number)
        self._lag.observe_milliseconds(lags)
        for entity in unknown:
            self._empty(lookup_name(entity, ""), EMPTIES_ABSENT)
        for entity, content in truncates.items():
            self._empty(f"{entity}:", content)
            if entity in self._with_lookups:
                self._empty(lookup_name(entity, ""), content)
        return denied

    def begin(self, entities: Iterable[str]) -> None:
        """Prepare to apply the changes of entities, after others have applied the earlier ones.

        The others may not have known of unique lookups that are declared now, and have left *absent* there.

        Raises:
            CacheUnavailableError: as for `apply_events`.
        """
        for entity in self._with_lookups.intersection(entities):
            self._empty(lookup_name(entity, ""), EMPTIES_ABSENT)

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

    def _name(self, entity: str, key: bytes | None) -> bytes:
        return self._prefixes[entity] + (key or b"")

    def _denied(self, event: Event, slots: Mapping[bytes, str]) -> str | None:
        """Return why the login has no access to one of the slots that an event changes; None if it has."""
        names = [self._name(event.entity, event.key)]
        if event.key is not None and event.entity in self._with_lookups:
            lookups, _ = self._lookups({event.entity: {event.key: event.content}}, [event])
            names += [self._name(name, text) for name, rows in lookups.items() for text in rows]
        return next((slots[name] for name in names if name in slots), None)

    def _lookups(
        self, newest: Mapping[str, Mapping[bytes, bytes]], events: Sequence[Event]
    ) -> tuple[dict[str, dict[bytes, bytes]], set[str]]:
        """Return the values of changed rows in unique lookups.

        What a row had before its newest change does not matter: nobody has it any more, or another row does,
        whose own change says so.

        Args:
            newest: the newest change of each row, by entity and key.
            events: the events.

        Returns:
            The new contents of slots, by the name of the lookup and the value; and the entities with a row
            whose values are not known.
        """
        contents: dict[str, dict[bytes, bytes]] = {}
        unknown: set[str] = set()
        for name in self._with_lookups.intersection(newest):
            entity = self._entities[name]
            bare = {
                (event.key, event.content): event.unique
                for event in events
                if event.unique is not None and event.entity == name
            }
            for key, content in newest[name].items():
                if len(content) > UP_TO_PAYLOAD:
                    values = values_in(entity.lookups, content[UP_TO_PAYLOAD:])
                    found = content[:UP_TO_PAYLOAD] + key
                elif (key, content) in bare:
                    values = decode_values(entity.lookups, bare[key, content] or b"")
                    found = content
                else:
                    # A delete.
                    continue
                if values is None:
                    unknown.add(name)
                    continue
                for columns, text in values.items():
                    if text is not None:
                        slots = contents.setdefault(lookup_name(name, columns), {})
                        slots[text.encode()] = max(found, slots.get(text.encode(), b""))
        return contents, unknown

    def _chunk(self, name: str, rows: Mapping[bytes, bytes]) -> _Chunk:
        prefix, entity = self._prefixes[name], self._tables[name]
        contents = list(rows.values())
        if entity.on_change == "invalidate":
            contents = [content[: VERSION.stop] for content in contents]
        return _Chunk([prefix + key for key in rows], contents, with_jitter(entity.ttl))

    def _empty(self, prefix: str, content: bytes) -> None:
        """Empty every slot that is older than a version; values that are cached while this runs are newer.

        Args:
            prefix: how the names of the slots continue after that of the service.
            content: the version, as `changes.lua` expects it.
        """
        names: list[bytes] = []
        # The names of services, entities and lookups contain no special characters of patterns.
        for name in scan(self._client, f"{self._service}:{prefix}*", _SCAN_KEYS):
            # Other names were given by other programs.
            with suppress(UnicodeDecodeError):
                name.decode()
                names.append(name)
            if len(names) == _SCAN_KEYS:
                self._run([_Chunk(names, [content] * len(names), 1)])
                names = []
        if names:
            self._run([_Chunk(names, [content] * len(names), 1)])

    def _run(self, chunks: Sequence[_Chunk]) -> tuple[Counter[str], dict[bytes, str]]:
        """Change slots.

        Returns:
            How many slots each effect has, which is that of the script, or `refused` if the slot was emptied
            instead; and the slots to which the login has no access, each with the reason.
        """
        effects: Counter[str] = Counter()
        denied: dict[bytes, str] = {}
        rest = self._run_together(chunks, effects) if isinstance(self._client, Redis) else chunks
        changes = [change for chunk in rest for change in chunk.each()]
        for change, effect in zip(changes, self._run_each(changes), strict=True):
            if isinstance(effect, NoPermissionError):
                denied[change.name.encode()] = str(effect)
            else:
                effects[effect] += 1
        return effects, denied

    def _run_together(self, chunks: Sequence[_Chunk], effects: Counter[str]) -> list[_Chunk]:
        """Change slots of a single Redis with one call for many; return those that need a call each.

        These are the slots of a call that was rejected as a whole, because of one of them or because of the
        script, and those after a slot whose content Redis refused.
        """
        parts = [part for chunk in chunks for part in chunk.cut()]
        if not parts:
            return []
        assert isinstance(self._client, Redis)  # noqa: S101 - checked by the caller
        with Bulk(self._client, "Redis", seconds=None) as redis:
            replies = run_script(
                "changes",
                [(*names, ttl_ms, *contents) for names, contents, ttl_ms in parts],
                redis.call,
                [len(part.names) for part in parts],
            )
        rest = []
        for part, reply in zip(parts, replies, strict=True):
            done = 0
            if not isinstance(reply, ReplyError):
                refusal, *counted = reply
                for effect, number in zip(counted[::2], counted[1::2], strict=True):
                    effects[effect.decode()] += number
                    done += number
                if refusal:
                    self._condition.refused(refusal_of(refusal.decode()))
                elif any(effect.decode() in _STORED for effect in counted[::2]):
                    self._condition.stored()
            if done < len(part.names):
                rest.append(_Chunk(part.names[done:], part.contents[done:], part.ttl_ms))
        return rest

    def _run_each(self, changes: Sequence[SlotChange]) -> list[str | NoPermissionError]:
        """Change slots with a call for each, and return the effects.

        Each effect is that of the script; or `refused` if the slot was emptied instead; or the error if the
        login has no access to the slot.
        """
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


def _newest(
    events: Sequence[Event],
) -> tuple[dict[str, dict[bytes, bytes]], dict[str, bytes], list[tuple[str, bytes, str]]]:
    """Return the newest change of each row by entity and key, the newest truncates, and the other changes."""
    newest: dict[str, dict[bytes, bytes]] = {}
    # A truncate empties everything that is older, and each one scans all slots.
    truncates: dict[str, bytes] = {}
    passed_over: list[tuple[str, bytes, str]] = []
    for entity, key, content, _, _ in events:
        if key is None:
            truncates[entity] = max(content, truncates.get(entity, content))
            continue
        rows = newest.get(entity)
        if rows is None:
            rows = newest[entity] = {}
        other = rows.get(key)
        if other is None:
            rows[key] = content
        else:
            # Versions have a fixed width, so the contents compare as their versions do.
            rows[key] = max(content, other)
            same = content[VERSION] == other[VERSION]
            passed_over.append((entity, key, "repeated" if same else "older"))
    return newest, truncates, passed_over
